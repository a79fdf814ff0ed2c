from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_sets import open_source
from official_files import write_av_mnist, write_iemocap, write_meld

from blossom_ray.data.dataset import Dataset
from blossom_ray.data.sets.av_mnist import AvMnistData
from blossom_ray.data.sets.custom import CustomData
from blossom_ray.data.sets.iemocap import IemocapData
from blossom_ray.data.sets.meld import MeldData
from blossom_ray.data.sets.synthetic import SyntheticData
from blossom_ray.data.sets.text import TextTokens
from blossom_ray.data.sets.uci_har import UciHarData
from blossom_ray.errors import DataError


def own_dataset(rows: int = 6, class_names: tuple[str, ...] = ("no", "yes")) -> Dataset:
    def part(held_out: Dataset | None, names: tuple[str, ...]) -> Dataset:
        inputs = {name: np.zeros((rows, 2), np.float32) for name in ("left", "right")}
        return Dataset(inputs, np.arange(rows) % 2, names, held_out=held_out)

    return part(part(None, class_names), ("no", "yes"))


def custom(factory: Any, **options: Any) -> CustomData:
    return CustomData(dataset="custom", factory=factory, options=options)


def test_synthetic() -> None:
    source = open_source(SyntheticData(dataset="synthetic", samples=20), ("b", "a"), 0)
    assert source.modalities == ("a", "b")
    assert set(source.load().inputs) == {"a", "b"}
    assert np.array_equal(source.targets().labels, source.load().labels)


def test_uci_har_needs_a_path(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"data.path is missing; expected the official 'UCI HAR Dataset.zip' or .*; get it from the UCI"
    ):
        open_source(UciHarData(dataset="uci-har"), ("acc",), 0)
    path = str(tmp_path / "har.zip")
    assert open_source(UciHarData(dataset="uci-har", path=path), ("gyro",), 0).modalities == ("gyro",)


def test_own_data_are_built_once_and_reduced_to_what_clients_own() -> None:
    calls = []

    def build(rows: int) -> Dataset:
        calls.append(rows)
        return own_dataset(rows)

    source = open_source(custom(build, rows=8), ("left",), 0)
    assert calls == []
    assert len(source.targets().labels) == 8
    dataset = source.load()
    assert set(dataset.inputs) == {"left"}
    assert dataset.held_out is not None
    assert set(dataset.held_out.inputs) == {"left"}
    assert calls == [8]


def test_own_data_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_data_for_a_test.py").write_text(
        "import numpy as np\n"
        "from blossom_ray.data.dataset import Dataset\n"
        "def build(rows):\n"
        "    return Dataset({'m': np.ones((rows, 1), np.float32)}, np.zeros(rows, np.int64), ('only',))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    source = open_source(custom("own_data_for_a_test:build", rows=3), ("m",), 0)
    assert source.load().num_samples == 3


def fails(**_: object) -> Dataset:
    raise RuntimeError("no such server")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (custom(fails), "data.factory raised RuntimeError: no such server"),
        (custom(dict), "data.factory returned dict; expected a blossom_ray.Dataset"),
        (custom(own_dataset, row=3), "data.factory raised TypeError: .*unexpected keyword argument 'row'"),
        (custom(own_dataset, class_names=("a", "b")), "a held-out set with other class names; expected the same"),
    ],
)
def test_faults_of_own_data(data: CustomData, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_source(data, ("left",), 0).load()


def test_own_data_without_a_modality_that_clients_own() -> None:
    source = open_source(custom(own_dataset), ("left", "top"), 0)
    with pytest.raises(DataError, match=r"returned the modalities left, right; expected also top, which clients own"):
        source.targets()


def test_data_sets_of_sound_and_text_get_their_options(tmp_path: Path) -> None:
    write_av_mnist(tmp_path / "av")
    pairs = {
        seed: open_source(
            AvMnistData(dataset="av-mnist", path=str(tmp_path / "av"), pairs=20, pairing_seed=None), ("image",), seed
        ).load()
        for seed in (0, 1)
    }
    fixed = open_source(AvMnistData(dataset="av-mnist", path=str(tmp_path / "av"), pairs=20), ("image",), 1).load()
    assert pairs[0].fingerprint() == fixed.fingerprint() != pairs[1].fingerprint()
    text = TextTokens(tokens=4, dim=8)
    meld = MeldData(dataset="meld", path=str(write_meld(tmp_path / "meld", sound=False)), classes="paper", text=text)
    assert open_source(meld, ("text",), 0).load().class_names == ("anger", "joy", "neutral", "sadness")
    path = str(write_iemocap(tmp_path / "iemocap", dialogues=1))
    iemocap = IemocapData(dataset="iemocap", path=path, held_out_session=2, subjects="session", text=text)
    dataset = open_source(iemocap, ("text",), 0).load()
    assert dataset.input_shapes == {"text": (4, 8)}
    assert set(dataset.held_out.subjects.tolist()) == {1}
    for data, page in (
        (AvMnistData, "github.com/Jakobovski"),
        (MeldData, "declare-lab"),
        (IemocapData, "sail.usc.edu"),
    ):
        with pytest.raises(DataError, match=f"data.path is missing; expected .*; get it from .*{page}"):
            open_source(data(dataset=data.model_fields["dataset"].annotation.__args__[0]), ("audio",), 0)
