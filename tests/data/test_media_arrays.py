from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from blossom_ray import Scenario, from_arrays, simulate
from blossom_ray.data.modalities.image import ImageModality
from blossom_ray.data.stored import StoredRows
from blossom_ray.errors import DataError

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 4, 4), np.uint8)
SAMPLES = (PIXELS[:, None] / np.float32(255)).astype(np.float32)
LABELS = ["cat", "dog"] * 3
IMAGE = {"kind": "image", "size": 4, "channels": 1}


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


PICTURES = [png(pixels) for pixels in PIXELS]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BLOSSOM_RAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for number, content in enumerate(PICTURES):
        (tmp_path / f"{number}.png").write_bytes(content)
    return tmp_path


def values_of(kind: str, folder: Path) -> Any:
    paths = [folder / f"{number}.png" for number in range(6)]
    match kind:
        case "bytes":
            return PICTURES
        case "paths":
            return paths
        case "relative":
            return [path.name for path in paths]
        case "leading out":
            return [f"{folder}/../{folder.name}/{path.name}" for path in paths]
        case "mappings":
            return [{"bytes": content, "path": "x"} for content in PICTURES[:3]] + [{"path": str(p)} for p in paths[3:]]
        case "objects":
            return np.array(PICTURES, object)
        case "buffers":
            return [memoryview(content) for content in PICTURES]
        case _:
            return pa.array(PICTURES)


@pytest.mark.parametrize(
    "kind", ["bytes", "paths", "relative", "leading out", "mappings", "objects", "buffers", "column"]
)
def test_pictures_of_a_program(kind: str, folder: Path) -> None:
    x = np.arange(12.0).reshape(6, 2)
    dataset = from_arrays({"photo": values_of(kind, folder), "x": x}, LABELS, modalities={"photo": IMAGE})
    assert isinstance(dataset.inputs["photo"], StoredRows)
    assert dataset.fingerprint() == from_arrays({"photo": SAMPLES, "x": x}, LABELS).fingerprint()


def test_options_may_be_a_section() -> None:
    section = ImageModality.model_validate(IMAGE)
    dataset = from_arrays({"photo": PICTURES}, LABELS, modalities={"photo": section})
    assert (dataset.inputs["photo"][:] == SAMPLES).all()


def test_gaps_splits_and_clients() -> None:
    clients, splits = [*"aabbb", None], ["train"] * 5 + ["held-out"]
    for given, values in ((PICTURES, SAMPLES), ([None, None, *PICTURES[2:]], [None, None, *SAMPLES[2:]])):
        for more in ({}, {"observed": {"photo": [True] * 5 + [False]}}):
            decoded, expected = (
                from_arrays(
                    {"photo": own, "x": np.zeros((6, 1))}, LABELS, clients=clients, splits=splits, **more, **options
                )
                for own, options in ((given, {"modalities": {"photo": IMAGE}}), (values, {}))
            )
            assert decoded.fingerprint() == expected.fingerprint()


def test_rows_that_cannot_be_decoded_are_dropped_and_counted() -> None:
    media = {"photo": {**IMAGE, "on_error": "drop"}}
    wrong = [PICTURES[0], b"<html>", *PICTURES[2:5], "none.png"]
    more = {"subjects": [5, 5, 6, 6, 7, 7], "splits": ["train"] * 3 + ["test"] * 3}
    kept = [0, 2, 3, 4]
    dataset = from_arrays({"photo": wrong}, LABELS, modalities=media, **more)
    own = {name: [values[row] for row in kept] for name, values in more.items()}
    expected = from_arrays({"photo": SAMPLES[kept]}, [LABELS[row] for row in kept], **own)
    assert dataset.fingerprint() == expected.fingerprint()
    (left_out,) = dataset.left_out
    assert str(left_out) == (
        "left out: rows whose photo cannot be decoded: 2, such as modality 'photo', row 1, modality 'photo', row 5"
    )
    dataset = from_arrays({"photo": PICTURES}, LABELS, held_out=({"photo": wrong}, LABELS), modalities=media)
    assert dataset.held_out is not None
    assert (dataset.held_out.inputs["photo"][:] == SAMPLES[kept]).all()
    assert dataset.held_out.labels.tolist() == [0, 0, 1, 0]
    assert dataset.left_out[0].count == 2


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([*PICTURES[:5], b"<html>"], {}, r"modality 'photo', row 5 is no picture \(begins with b'<html>'\)"),
        ([*PICTURES[:5], "none.png"], {}, r"modality 'photo', row 5 is 'none.png', which does not exist"),
        ([*PICTURES[:5], "."], {}, r"modality 'photo', row 5 is '.', which is a"),
        ([*PICTURES[:5], 7], {}, r"modality 'photo', row 5 is of type int; expected bytes, a path, or a mapping"),
        ("0.png", {}, r"modality 'photo' is str; expected a list with a value for each row"),
        (PICTURES[:5], {}, r"modality 'photo' has 5 rows; expected 6, as many as labels"),
        ([b""] * 6, {"on_error": "drop"}, r"has no value that can be decoded: modality 'photo', row 0 "),
        ([None] * 6, {}, r"modality 'photo' has no value; expected one in some row"),
        (PICTURES, {"kind": "numbers"}, r"modalities\['photo'\] is of kind 'numbers'; expected one that decodes"),
        (PICTURES, {"kind": "imge"}, r"modalities\['photo'\] is not right: "),
        (PICTURES, {"size": 0}, r"modalities\['photo'\] is not right in "),
        (PICTURES, {"column": "x"}, r"modalities\['photo'\] has 'column'; expected it in data.modalities"),
        (PICTURES, {"scale": "standard"}, r"modalities\['photo'\] has 'scale'; expected it in data.modalities"),
    ],
)  # fmt: skip
def test_what_is_refused(values: Any, options: dict[str, Any], message: str) -> None:
    own = {"kind": options["kind"]} if "kind" in options else {**IMAGE, **options}
    with pytest.raises(DataError, match=message) as refused:
        from_arrays({"photo": values}, LABELS, modalities={"photo": own})
    assert len(str(refused.value).splitlines()) == 1


def test_a_modality_that_is_not_given_is_refused() -> None:
    with pytest.raises(DataError, match="modalities has 'photos'; expected some of photo"):
        from_arrays({"photo": PICTURES}, LABELS, modalities={"photos": IMAGE})


def test_a_run_keeps_decoded_pictures_beside_it(folder: Path) -> None:
    scenario = Scenario.model_validate(
        {
            "rounds": 1,
            "data": {"dataset": "custom"},
            "clients": [{"count": 1, "modalities": ["photo"]}],
            "sharing": "full-model",
            "model": {"encoders": {"photo": {"kind": "mlp", "hidden": [4], "dim": 4}}},
            "execution": {"runtime": "local"},
        }
    )
    dataset = from_arrays({"photo": PICTURES}, LABELS, modalities={"photo": IMAGE})
    run = simulate(scenario, data=dataset, out=folder / "runs")
    again = simulate(run.scenario)
    assert again.final == run.final == simulate(scenario, data=from_arrays({"photo": SAMPLES}, LABELS)).final
