"""Features of a table's modalities: computed once, kept, found again, and what clients learn from."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import polars as pl
import pytest
import torch
import transformers
from PIL import Image
from scipy.io import wavfile
from test_extractors import bert, wav2vec2
from torch import Tensor, nn

from blossom_ray import Scenario, from_arrays, simulate
from blossom_ray.core.progress import listening
from blossom_ray.data.dataset import Dataset
from blossom_ray.data.files import extracted
from blossom_ray.data.modalities.audio import AudioModality
from blossom_ray.data.modalities.text import TextModality
from blossom_ray.data.sets.table import TableData
from blossom_ray.errors import InputError, ScenarioError
from blossom_ray.models.predict import read_samples
from blossom_ray.reading.inspection import Inspector
from blossom_ray.reading.writer import scenario_yaml


class Counted(nn.Module):
    """Means of the rows of each colour: (colours, height). Counts the batches and the samples that it sees."""

    batches: ClassVar[list[int]] = []
    fail_at: ClassVar[int | None] = None

    def forward(self, pictures: Tensor) -> Tensor:
        if len(self.batches) == self.fail_at:
            raise KeyboardInterrupt
        self.batches.append(len(pictures))
        return pictures.mean(3)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BLOSSOM_RAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(Counted, "batches", [])
    monkeypatch.setattr(Counted, "fail_at", None)


PIXELS = np.random.default_rng(0).integers(0, 256, (20, 6, 4, 3), np.uint8)
LABELS = np.arange(20) % 2
SEQUENCES = (PIXELS.transpose(0, 3, 1, 2) / np.float32(255)).mean(3, dtype=np.float32)


def written(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def table(path: str = "table.parquet", changes: dict[int, bytes | None] | None = None, **columns: Any) -> str:
    pictures = [written(pixels) for pixels in PIXELS]
    for row, content in (changes or {}).items():
        pictures[row] = content  # type: ignore[call-overload]
    columns = {"photo": pl.Series(pictures, dtype=pl.Binary), "label": LABELS, **columns}
    pl.DataFrame(columns).write_parquet(path)
    return path


def loaded(path: str, on_error: str = "refuse", size: Sequence[int] = (6, 4), **features: Any) -> Dataset:
    features = {"module": f"{__name__}:Counted", "output": "sequence", "batch_size": 3, **features}
    photo = {"kind": "image", "size": size, "on_error": on_error, "features": features}
    data = TableData.model_validate({"dataset": "table", "path": path, "modalities": {"photo": photo}})
    return data.open(("photo",), 0, "classification").load()


def files() -> dict[str, float]:
    return {path.name: path.stat().st_mtime_ns for path in Path("cache").glob("features-*/*")}


def test_features_are_computed_once() -> None:
    path = table()
    found = loaded(path)
    assert found.inputs["photo"].shape == (20, 3, 6)
    assert found.inputs["photo"].dtype == np.float32
    np.testing.assert_allclose(found.inputs["photo"][:], SEQUENCES, rtol=1e-6)
    assert Counted.batches == [3] * 6 + [2]
    again = loaded(path)
    assert Counted.batches == [3] * 6 + [2]
    np.testing.assert_array_equal(again.inputs["photo"][:], found.inputs["photo"][:])
    assert again.fingerprint() == found.fingerprint()
    vector = loaded(path, output="vector")
    np.testing.assert_allclose(vector.inputs["photo"][:], SEQUENCES.mean(1), rtol=1e-6)
    loaded(path, batch_size=20)
    assert Counted.batches[-1] == 20
    assert loaded(path, size=[3, 2]).inputs["photo"].shape == (20, 3, 3)


def test_what_was_killed_goes_on_with_the_next_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extracted, "_FILE_BYTES", 6 * 18 * 4)
    path = table()
    Counted.fail_at = 5
    with pytest.raises(KeyboardInterrupt):
        loaded(path)
    kept = files()
    assert len(kept) == 2  # of two batches each
    Counted.fail_at = None
    found = loaded(path)
    assert Counted.batches == [3] * 5 + [3, 3, 2]
    np.testing.assert_allclose(found.inputs["photo"][:], SEQUENCES, rtol=1e-6)
    assert kept.items() < files().items()


def test_a_damaged_file_is_written_anew() -> None:
    path = table()
    before = loaded(path).inputs["photo"][:]
    (file,) = Path("cache").glob("features-*/*.arrow")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    np.testing.assert_array_equal(loaded(path).inputs["photo"][:], before)
    assert len(Counted.batches) == 14


def test_gaps_held_out_rows_and_what_is_dropped() -> None:
    """No model sees a row without value: gaps stay gaps, and a row that is dropped is nowhere."""
    split = ["test" if row % 5 == 0 else "train" for row in range(20)]
    path = table(changes={2: None, 7: b"no picture", 10: None}, split=split)
    found = loaded(path, on_error="drop")
    assert sum(Counted.batches) == 17
    shared = [row for row in range(20) if row % 5 and row != 7]
    held_out = [0, 5, 10, 15]
    assert found.held_out is not None
    for part, rows, gap in ((found, shared, 2), (found.held_out, held_out, 10)):
        expected = np.where(np.equal(rows, gap)[:, None, None], 0, SEQUENCES[rows])
        np.testing.assert_allclose(part.inputs["photo"][:], expected, rtol=1e-6)
        np.testing.assert_array_equal(part.observed["photo"], np.not_equal(rows, gap))
        np.testing.assert_array_equal(part.labels, LABELS[rows])
    with pytest.raises(InputError, match=r"row 7.* is no picture"):
        loaded(path)


def test_nothing_that_can_be_decoded() -> None:
    path = table(changes=dict.fromkeys(range(20), b"no picture"))
    with pytest.raises(InputError, match=r"has no row that can be decoded: table.parquet, .*row 0 is no picture"):
        loaded(path, on_error="drop")
    assert Counted.batches == []


def test_progress_is_told() -> None:
    heard: list[tuple[str, int, int]] = []
    with listening(lambda *step: heard.append(step)):
        loaded(table(changes={3: None}))
    told = [step for step in heard if step[0] == "features of photo"]
    assert told[0] == ("features of photo", 3, 19)
    assert told[-1] == ("features of photo", 19, 19)
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)


class Dividing(nn.Module):
    def forward(self, pictures: Tensor) -> Tensor:
        return (pictures / pictures.amax((1, 2, 3), keepdim=True)).flatten(1)


class Growing(nn.Module):
    size = 1

    def forward(self, pictures: Tensor) -> Tensor:
        self.size += 1
        return pictures.flatten(1)[:, : self.size]


@pytest.mark.parametrize(
    ("features", "error"),
    [
        ({"module": Dividing, "output": "vector"},
         r"table.parquet, .*row 13.*: what data.modalities.photo.features gives is not finite; expected finite"),
        ({"module": Growing, "output": "vector"},
         r"data.modalities.photo.features: the model gives \(3,\) for some samples and \(2,\) for others; exp"),
    ],
)  # fmt: skip
def test_features_that_are_refused(features: dict[str, Any], error: str) -> None:
    path = table(changes={13: written(np.zeros((6, 4, 3), np.uint8)), 4: None})
    with pytest.raises(InputError, match=error):
        loaded(path, **features)


def test_callables_are_told_apart_by_what_they_give() -> None:
    """Two closures of one source: their values differ, so do their features."""
    path = table()

    def holder(factor: float) -> Callable[[], nn.Module]:
        linear = nn.Linear(4, 1, bias=False)
        nn.init.constant_(linear.weight, factor)
        return lambda: nn.Sequential(linear, nn.Flatten(2))

    one, two = (loaded(path, module=holder(factor)).inputs["photo"][:] for factor in (0.25, 0.5))
    np.testing.assert_allclose(one, SEQUENCES, rtol=1e-5)
    np.testing.assert_allclose(two, 2 * SEQUENCES, rtol=1e-5)


def test_features_of_arrays() -> None:
    """As of a table; in both places what is kept by one is found by the other."""
    photo = {"kind": "image", "size": [6, 4], "features": {"module": f"{__name__}:Counted", "output": "sequence"}}
    pictures = [written(pixels) for pixels in PIXELS]
    found = from_arrays({"photo": pictures}, LABELS, modalities={"photo": photo})
    np.testing.assert_allclose(found.inputs["photo"][:], SEQUENCES, rtol=1e-6)
    seen = len(Counted.batches)
    loaded(table(), batch_size=32)
    assert len(Counted.batches) == seen
    wrong = {**photo, "features": {"module": f"{__name__}:Counted", "layer": "top"}}
    with pytest.raises(InputError, match=r"modality 'photo'.features.layer is 'top', not in the model"):
        from_arrays({"photo": pictures}, LABELS, modalities={"photo": wrong})


def scenario(path: str, **features: Any) -> Scenario:
    features = {"module": f"{__name__}:Counted", "output": "sequence", **features}
    return Scenario.model_validate(
        {
            "rounds": 2,
            "data": {
                "dataset": "table",
                "path": path,
                "modalities": {"photo": {"kind": "image", "size": [6, 4], "features": features}},
            },
            "clients": [{"count": 2, "modalities": ["photo"]}],
            "model": {"encoders": {"photo": {"kind": "gru"}}},
            "execution": {"runtime": "local"},
        }
    )


@pytest.mark.parametrize("engine", ["sequential", "vectorized"])
def test_a_run_on_features_is_one_on_these_numbers(engine: str) -> None:
    path = table(split=["test" if row % 5 == 0 else "train" for row in range(20)])
    of_features = scenario(path).override({"training.engine": engine})
    run = simulate(of_features, out="runs")
    assert run.manifest["data"]["input_shapes"] == {"photo": [3, 6]}
    assert run.manifest["features"]["photo"]["module"] == f"{__name__}:Counted"
    assert __name__ in run.manifest["own_code"]
    columns = pl.read_parquet(path).with_columns(photo=pl.Series(SEQUENCES.tolist()))
    columns.write_parquet("numbers.parquet")
    numbers = simulate(of_features.override({"data.path": "numbers.parquet", "data.modalities": {}}), out="runs")
    assert "features" not in numbers.manifest
    assert run.manifest["data"]["fingerprint"] == numbers.manifest["data"]["fingerprint"]
    assert run.manifest["digest"] == numbers.manifest["digest"]


def test_texts_and_sounds_of_a_table(tmp_path: Path) -> None:
    """As a loop over `transformers` with the folder's own tokenizer, or feature extractor, has them."""
    texts = ["no yes late", "", "late " * 9, "No, never yes!"]
    folder = bert(tmp_path / "bert")
    model = transformers.AutoModel.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(texts, padding="max_length", truncation=True, max_length=7, return_tensors="pt")
    with torch.no_grad():
        states = (model.eval()(**batch).last_hidden_state * batch["attention_mask"][:, :, None]).numpy()
    signal = np.random.default_rng(0).integers(-9000, 9000, (4, 120), np.int16)
    sounds = []
    for samples in signal:
        wavfile.write(file := io.BytesIO(), 8000, samples)
        sounds.append(file.getvalue())
    listener = wav2vec2(tmp_path / "wav2vec2")
    pl.DataFrame({"text": texts, "sound": sounds, "label": [0, 1, 0, 1]}).write_parquet("media.parquet")
    text = {
        "kind": "text",
        "max_length": 7,
        "features": {"transformers": folder, "output": "sequence", "batch_size": 3},
    }
    sound = {"kind": "audio", "form": "raw", "rate": 8000, "seconds": 0.015, "features": {"transformers": listener}}
    data = TableData.model_validate(
        {"dataset": "table", "path": "media.parquet", "modalities": {"text": text, "sound": sound}}
    )
    found = data.open(("sound", "text"), 0, "classification").load().inputs
    np.testing.assert_allclose(found["text"][:], states, atol=1e-6)
    heard = transformers.AutoModel.from_pretrained(listener).eval()
    values = signal / 32768
    normal = (values - values.mean(1, keepdims=True)) / np.sqrt(values.var(1, keepdims=True) + 1e-7)
    with torch.no_grad():
        expected = heard(torch.tensor(normal, dtype=torch.float32)).last_hidden_state.mean(1)
    np.testing.assert_allclose(found["sound"][:], expected, atol=1e-5)
    assert data.num_tokens("text") is None
    assert not list(data.conflicts())
    wrong = {"features": {"transformers": folder, "mean": [0.5], "std": [1.0]}}
    assert [each.path for each in TextModality.model_validate({**text, **wrong}).conflicts()] == ["features.mean"]
    assert [each.path for each in AudioModality.model_validate({**sound, "form": "mfcc"}).conflicts()] == ["form"]


def test_a_folder_without_tokenizer(tmp_path: Path) -> None:
    """`transformers` would make one of five special tokens, to which all words are unknown."""
    folder = bert(tmp_path / "bert")
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        (tmp_path / "bert" / name).unlink(missing_ok=True)
    text = TextModality.model_validate({"kind": "text", "features": {"transformers": folder}})
    with pytest.raises(
        InputError, match=r"^tokenizer .*/bert has no tokenizer; expected one of tokenizer.json, vocab.txt"
    ):
        text.decoder()
    (tmp_path / "bert" / "tokenizer_config.json").write_text('{"tokenizer_class": "ByT5Tokenizer"}')
    with pytest.raises(InputError, match=r"^tokenizer .*/bert cannot be had without its code; expected one that has"):
        text.decoder()


def test_a_model_that_is_taken_away_says_what_features_it_takes(tmp_path: Path) -> None:
    wide = {"in_features": 4, "out_features": 5}
    torch.save(nn.Linear(**wide).state_dict(), "w.pt")
    given = scenario(table(), module="torch.nn:Linear", options=wide, weights="w.pt", output="vector")
    given = given.override({"rounds": 1, "checkpoint": {"every": 1}, "model.encoders.photo": {"kind": "mlp"}})
    told = simulate(given, out="runs").model(0).description
    assert told["modalities"]["photo"]["features"]["weights"] == hashlib.sha256(Path("w.pt").read_bytes()).hexdigest()
    with pytest.raises(ValueError, match=r"photo is decoded as image, then given to a frozen model, .* shape \[3\]"):
        read_samples(Path("table.parquet"), told)


@pytest.mark.parametrize(
    ("features", "problem"),
    [
        ({"weights": "no.pt"}, "photo.features.weights is 'no.pt', and .*/no.pt does not exist; expected the model's"),
        ({"module": "no_such:thing"}, "photo.features.module is 'no_such:thing', but there is no module 'no_such'"),
        ({"module": None}, "photo.features.module is null; expected either module or transformers"),
        ({"module": None, "transformers": "."}, "photo.features.transformers is '.', which has no config.json"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_said_before_a_run(features: dict[str, Any], problem: str) -> None:
    path = table()
    Path("scenario.yaml").write_text(scenario_yaml(scenario(path)))
    overrides = {f"data.modalities.photo.features.{key}": value for key, value in features.items()}
    with pytest.raises(ScenarioError, match=problem) as raised:
        Inspector().read(Path("scenario.yaml"), overrides, {})
    assert len(raised.value.problems) == 1
