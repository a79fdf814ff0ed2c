from __future__ import annotations

import io
import json
import re
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from blossom_ray.cli import app
from blossom_ray.data.dataset import Dataset
from blossom_ray.data.sets.table import Table, TableData
from blossom_ray.data.stored import StoredRows
from blossom_ray.data.table.writer import write_table
from blossom_ray.errors import DataError, ScenarioError
from blossom_ray.reading.scenario import Scenario
from blossom_ray.runs.session import simulate
from blossom_ray.scenario.identity import identity

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 4, 4), np.uint8)
LABELS = ["cat", "dog"] * 6


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BLOSSOM_RAY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


PICTURES: list[Any] = [png(pixels) for pixels in PIXELS]


def column_of(kind: str, folder: Path, contents: list[Any]) -> pa.Array:
    """The same pictures as a column of another kind; None is a gap."""
    names = [f"pictures/{number}.png" for number in range(len(contents))]
    (folder / "pictures").mkdir(exist_ok=True)
    for name, content in zip(names, contents, strict=True):
        if content is not None:
            (folder / name).write_bytes(content)
    paths = [None if content is None else name for name, content in zip(names, contents, strict=True)]
    match kind:
        case "binary" | "large_binary" | "binary_view":
            return pa.array(contents, getattr(pa, kind)())
        case "paths":
            return pa.array(paths)
        case "categories":
            return pa.array(paths).dictionary_encode()
        case "struct":
            named = zip(contents, names, strict=True)
            rows = [None if content is None else {"bytes": content, "path": name} for content, name in named]
            return pa.array(rows, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
        case _:
            rows = [{"bytes": None, "path": path} for path in paths]
            return pa.array(rows, pa.struct({"bytes": pa.binary(), "path": pa.string()}))


def written(folder: Path, photo: pa.Array, name: str = "rows.parquet", **columns: Any) -> Path:
    table = pa.table({"photo": photo, "label": LABELS[: len(photo)], **columns})
    if name.endswith(".parquet"):
        pq.write_table(table, folder / name, row_group_size=5)
    else:
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=5)
    return folder / name


def table_of(path: Path, photo: dict[str, Any] | None = None, **values: Any) -> Table:
    photo = {"kind": "image", "size": 4, "channels": 1, **(photo or {})}
    photo = {key: value for key, value in photo.items() if value is not ...}
    tree = {"dataset": "table", "path": str(path), "modalities": {"photo": photo}, **values}
    return Table(TableData.model_validate(tree), ("photo",), "classification")


def load(path: Path, photo: dict[str, Any] | None = None, **values: Any) -> Dataset:
    dataset, targets = table_of(path, photo, **values).load(), table_of(path, photo, **values).targets()
    assert targets.labels.tolist() == dataset.targets.labels.tolist()
    assert {name: rows.tolist() for name, rows in targets.observed.items()} == {
        name: rows.tolist() for name, rows in dataset.observed.items()
    }
    return dataset


KINDS = ["binary", "large_binary", "paths", "categories", "struct", "struct of paths"]


@pytest.mark.parametrize(("kind", "format_"), [*product(KINDS, ["parquet", "arrow"]), ("binary_view", "arrow")])
def test_pictures_are_read_from_columns_of_all_kinds(kind: str, format_: str, tmp_path: Path) -> None:
    contents = [*PICTURES[:7], None, *PICTURES[8:]]
    dataset = load(written(tmp_path, column_of(kind, tmp_path, contents), f"rows.{format_}"))
    assert isinstance(dataset.inputs["photo"], StoredRows)
    assert dataset.observed["photo"].tolist() == [row != 7 for row in range(12)]
    expected = (PIXELS / np.float32(255)).astype(np.float32) * (np.arange(12) != 7)[:, None, None]
    assert (dataset.inputs["photo"][:][:, 0] == expected).all()
    assert dataset.labels.tolist() == [0, 1] * 6


def test_held_out_rows_go_along(tmp_path: Path) -> None:
    splits = ["test" if row % 3 == 0 else "train" for row in range(12)]
    dataset = load(written(tmp_path, column_of("paths", tmp_path, PICTURES), split=splits))
    assert dataset.held_out is not None
    assert (dataset.held_out.inputs["photo"][:][:, 0] == PIXELS[::3] / np.float32(255)).all()
    assert len(dataset.inputs["photo"]) == 8


def test_a_client_without_pictures_does_not_own_them(tmp_path: Path) -> None:
    contents = [None if row % 3 == 0 else picture for row, picture in enumerate(PICTURES)]
    columns = {"client": ["abc"[row % 3] for row in range(12)], "x": np.arange(12.0)}
    path = written(tmp_path, column_of("struct", tmp_path, contents), **columns)
    table = replace(table_of(path, partition={"kind": "given"}), modalities=("photo", "x"))
    targets = table.targets()
    assert targets.clients is not None
    assert {key: [*own] for key, own in targets.clients.members().items()} == {("photo", "x"): [1, 2], ("x",): [0]}
    assert np.isnan(table.load().inputs["photo"][:][::3]).all()


def test_a_value_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    contents = [*PICTURES[:6], b"<svg/>", *PICTURES[7:]]
    place = "rows.parquet, column 'photo', row 6"
    for kind, named in (("binary", ""), ("paths", " (pictures/6.png)"), ("struct", " (pictures/6.png)")):
        path = written(tmp_path, column_of(kind, tmp_path, contents))
        with pytest.raises(DataError) as refused:
            table_of(path).load()
        found = "is no picture (begins with b'<svg/>'); expected PNG, JPEG, WebP, GIF or BMP"
        assert str(refused.value) == f"{place}{named} {found}"


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["../secret.png"], "row 0 is '../secret.png', which has '..'"),
        (["/etc/passwd"], "row 0 is '/etc/passwd', which is no relative path"),
        (["pictures/0.png", "out.png"], "row 1 is 'out.png', a link that leads out of the table's folder"),
        (["none.png"], "row 0 is 'none.png', which cannot be found"),
        (["https://host/1.png"], "row 0 is 'https://host/1.png', which is no relative path"),
    ],
)
def test_paths_that_leave_the_folder(paths: list[str], message: str, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    (tmp_path / "secret.png").write_bytes(PICTURES[0])
    (folder / "out.png").symlink_to(tmp_path / "secret.png")
    column_of("paths", folder, PICTURES)
    with pytest.raises(DataError, match=message.replace(".", r"\.")):
        table_of(written(folder, pa.array(paths))).load()


@pytest.mark.parametrize("kind", ["binary", "paths"])
def test_dropped_rows_are_as_if_they_were_not_there(kind: str, tmp_path: Path) -> None:
    wrong = [0, 5, 6, 11]
    contents = [b"no picture" if row in wrong else picture for row, picture in enumerate(PICTURES)]
    columns = {
        "subject": [f"s{row // 3}" for row in range(12)],
        "split": ["test" if row % 4 == 3 else "train" for row in range(12)],
        "mood": ["never" if row == 0 else ["sad", "glad"][row % 2] for row in range(12)],
    }
    more = {"label_column": "mood"}
    dataset = load(written(tmp_path, column_of(kind, tmp_path, contents), **columns), {"on_error": "drop"}, **more)
    kept = np.array([row for row in range(12) if row not in wrong])
    other = tmp_path / "other"
    other.mkdir()
    photo = column_of(kind, other, [PICTURES[row] for row in kept])
    expected = load(written(other, photo, **{n: [own[row] for row in kept] for n, own in columns.items()}), **more)
    assert dataset.fingerprint() == expected.fingerprint()
    assert dataset.class_names == ("glad", "sad")
    (left_out,) = dataset.left_out
    assert (left_out.what, left_out.count) == ("rows whose photo cannot be decoded", 4)
    named = {"binary": "", "paths": " (pictures/5.png)"}[kind]
    assert left_out.examples[1] == f"rows.parquet, column 'photo', row 5{named}"


def test_rows_behind_dropped_ones_keep_their_numbers(tmp_path: Path) -> None:
    contents = [b"no picture", *PICTURES[1:]]
    path = written(tmp_path, pa.array(contents), subject=[*range(8), None, *range(9, 12)], split=["train"] * 11 + ["x"])
    with pytest.raises(DataError, match="column 'split', row 11 "):
        table_of(path, {"on_error": "drop"}).load()


def test_where_no_row_to_train_on_can_be_decoded_the_split_is_not_blamed(tmp_path: Path) -> None:
    contents = pa.array([b"<html>"] * 8 + PICTURES[8:])
    path = written(tmp_path, contents, split=["train"] * 8 + ["test"] * 4)
    with pytest.raises(DataError, match="column 'split' says 'train' in no row that can be decoded; expected it"):
        table_of(path, {"on_error": "drop"}).load()


def test_where_nothing_can_be_decoded_one_line_says_so(tmp_path: Path) -> None:
    path = written(tmp_path, pa.array([b"<html>"] * 12))
    with pytest.raises(DataError) as refused:
        table_of(path, {"on_error": "drop"}).targets()
    assert str(refused.value).startswith(f"{path} has no row that can be decoded: rows.parquet, column 'photo', row 0 ")
    with pytest.raises(DataError, match="column 'photo' is null in all rows"):
        table_of(written(tmp_path, pa.array([None] * 12, pa.binary()))).load()


@pytest.mark.parametrize("photo", [[1.0] * 12, [[b"a"]] * 12, [{"content": b"a"}] * 12])
def test_columns_of_other_types(photo: Any, tmp_path: Path) -> None:
    expected = "expected contents of files, a struct of bytes and path, or paths as text"
    with pytest.raises(DataError, match=f"column 'photo' has type .*; {expected}"):
        table_of(written(tmp_path, pa.array(photo))).targets()


@pytest.mark.parametrize("column", [["a b", None, "b a a"], [b"a b", None, b"b a a"]])
def test_texts_are_the_values_themselves(column: list[Any], tmp_path: Path) -> None:
    texts = pa.array(column)
    for array in (texts, texts.dictionary_encode()):
        dataset = load(written(tmp_path, array), {"kind": "text", "max_length": 4, "size": ..., "channels": ...})
        (first, second), third, _ = (dataset.inputs["photo"][:][row][:2] for row in (0, 2, 1))
        assert dataset.inputs["photo"][:].tolist() == [[first, second, 0, 0], [0] * 4, [second, first, first, 0]]
        assert third.tolist() == [second, first]


def test_files_without_a_kind_are_refused_with_a_hint(tmp_path: Path) -> None:
    path = written(tmp_path, column_of("paths", tmp_path, PICTURES))
    with pytest.raises(DataError, match=r"has type string; .*, or a kind in data\.modalities that decodes it, such as"):
        Table(TableData.model_validate({"dataset": "table", "path": str(path)}), ("photo",), "classification").targets()


def test_targets_of_a_scenario_that_refuses_need_no_decoding(tmp_path: Path, cache: Path) -> None:
    path = written(tmp_path, pa.array([b"no picture"] * 12))
    assert table_of(path).targets().labels.tolist() == [0, 1] * 6
    assert not cache.exists()


def test_a_written_table_has_the_decoded_numbers(tmp_path: Path) -> None:
    contents = [*PICTURES[:7], None, *PICTURES[8:]]
    dataset = load(written(tmp_path, column_of("struct", tmp_path, contents)))
    path = write_table(dataset, tmp_path / "again.arrow")
    spec = TableData.model_validate({"dataset": "table", "path": str(path), "class_names": ["cat", "dog"]})
    assert Table(spec, ("photo",), "classification").load().fingerprint() == dataset.fingerprint()


def scenario_of(path: Path, **modality: Any) -> dict[str, Any]:
    return {
        "rounds": 1,
        "data": {"dataset": "table", "path": str(path), "modalities": {"photo": modality}},
        "clients": [{"count": 2, "modalities": ["photo"]}],
        "sharing": "full-model",
        "model": {"encoders": {"photo": {"kind": "mlp", "hidden": [4], "dim": 4}}},
        "execution": {"runtime": "local"},
    }


@pytest.mark.parametrize("engine", ["sequential", "vectorized"])
def test_a_run_on_pictures_is_one_on_their_numbers(engine: str, tmp_path: Path) -> None:
    pictures = written(tmp_path, column_of("paths", tmp_path, PICTURES))
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(PIXELS[:, None] / np.float32(255)))
    numbers = written(tmp_path, tensors, "numbers.arrow")
    trees = [scenario_of(pictures, kind="image", size=4, channels=1), scenario_of(numbers)]
    runs = [simulate(Scenario.model_validate({**tree, "training": {"engine": engine}})) for tree in trees]
    assert runs[0].final == runs[1].final


def saved(tmp_path: Path, path: Path, **modality: Any) -> str:
    (tmp_path / "scenario.yaml").write_text(json.dumps(scenario_of(path, **modality)))
    return str(tmp_path / "scenario.yaml")


def test_a_plan_says_what_the_cache_takes(tmp_path: Path, cache: Path) -> None:
    path = saved(tmp_path, written(tmp_path, pa.array(PICTURES)), kind="image", size=4)
    found = json.loads(CliRunner().invoke(app, ["plan", path, "--no-probe", "--json"]).output)
    (kept,) = found["decoded"]["data.modalities.photo"]
    assert (kept["num_samples"], kept["num_new"]) == (12, 12)
    (file,) = cache.glob("image-*/*.arrow")
    assert (kept["folder"], kept["num_bytes"]) == (str(file.parent), file.stat().st_size)
    assert found["shard_bytes"] > 12 * 3 * 4 * 4 * 4
    again = CliRunner().invoke(app, ["plan", path, "--no-probe"]).output
    assert "12 samples, all there before: " in " ".join(again.split())
    assert "on disk" in again
    prepared = CliRunner().invoke(app, ["data", "prepare", path]).output
    assert re.match(rf"table: 12 samples ready after .*; {file.stat().st_size / 1000:.1f} kB of it in ", prepared)


def test_commands_refuse_before_anything_is_made(tmp_path: Path) -> None:
    table = written(tmp_path, pa.array([*PICTURES[:11], b"<html>"]))
    path = saved(tmp_path, table, kind="image", size=4)
    for command in (["simulate", path, "--out", str(tmp_path / "runs")], ["plan", path], ["data", "prepare", path]):
        refused = CliRunner().invoke(app, command).exception
        assert isinstance(refused, DataError)
        message = "rows.parquet, column 'photo', row 11 is no picture (begins with b'<html>'); expected PNG, JPEG, "
        assert str(refused) == f"{message}WebP, GIF or BMP"
    assert not (tmp_path / "runs").exists()
    done = CliRunner().invoke(app, ["validate", path, "--set", "data.modalities.photo.on_error=drop"])
    assert (done.exit_code, "error" in done.output) == (0, False)


def test_a_sweep_decodes_before_its_first_cell(tmp_path: Path) -> None:
    path = saved(tmp_path, written(tmp_path, pa.array([*PICTURES[:11], b"<html>"])), kind="image", size=4)
    command = ["sweep", path, "--out", str(tmp_path / "sweep"), "--vary", "data.modalities.photo.size=4,5"]
    assert "row 11 is no picture" in str(CliRunner().invoke(app, command).exception)
    assert not (tmp_path / "sweep").exists()


def test_a_missing_library_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(DataError, match=r"pictures need Pillow, .*; pip install 'blossom-ray\[images\]'$"):
        table_of(written(tmp_path, pa.array(PICTURES))).load()


def test_a_modality_that_names_no_kind_is_numbers() -> None:
    said, unsaid = (
        Scenario.model_validate(scenario_of(Path("rows.parquet"), column="acc", **more))
        for more in ({"kind": "numbers"}, {})
    )
    assert identity(said) == identity(unsaid)
    of_sets = []
    for more in ({"kind": "numbers"}, {}):
        tree = scenario_of(Path("rows.parquet"), column="acc", **more)
        tree["datasets"] = {"own": tree.pop("data")}
        tree["tasks"] = {"own": {"kind": "classification", "data": "own"}}
        of_sets.append(identity(Scenario.model_validate(tree)))
    assert of_sets[0] == of_sets[1]
    pictures = Scenario.model_validate(scenario_of(Path("rows.parquet"), kind="image"))
    assert identity(pictures) != identity(unsaid)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"kind": "imge"},
            "data.modalities.photo.kind is 'imge'; expected .*did you mean 'image'",
        ),
        ({"kind": 3}, "data.modalities.photo.kind is 3; expected one of numbers, image.*"),
        ({"size": 4}, "data.modalities.photo.size is not a known key; expected one of kind, .*column, shape, nan"),
        ({"shape": [0]}, "data.modalities.photo.shape.0 is 0"),
        ({"kind": "image", "fit": "zoom"}, "data.modalities.photo.fit is 'zoom'; expected one of crop, pad, stretch"),
        ({"kind": "image", "column": ["a", "b"]}, "data.modalities.photo.column .*; expected one column"),
        ({"kind": "image", "size": 0}, "data.modalities.photo.size is 0; expected an integer of at least 1"),
    ],
)
def test_wrong_keys_are_told_by_their_kind(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    good = Scenario.model_validate(scenario_of(written(tmp_path, pa.array(PICTURES))))
    with pytest.raises(ScenarioError, match=message):
        good.override({f"data.modalities.photo.{key}": value for key, value in changes.items()})


def test_another_kind_keeps_the_keys_that_both_have(tmp_path: Path) -> None:
    path = written(tmp_path, pa.array(PICTURES))
    good = Scenario.model_validate(scenario_of(path, column="photo", nan="unobserved"))
    changed = good.override({"data.modalities.photo.kind": "image", "data.modalities.photo.size": 8})
    assert identity(changed) == identity(
        Scenario.model_validate(scenario_of(path, kind="image", column="photo", size=8))
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_values_of_a_column(kind: str, tmp_path: Path) -> None:
    rows = table_of(written(tmp_path, column_of(kind, tmp_path, [None, *PICTURES[1:]]))).rows
    assert rows.first_values("photo", 3) == PICTURES[1:4]
    assert rows.first_values("photo", 100) == PICTURES[1:]
    assert rows.first_values("label", 2) == ["cat", "dog"]


def test_a_column_of_numbers_has_no_such_values(tmp_path: Path) -> None:
    assert table_of(written(tmp_path, pa.array(PICTURES), x=np.arange(12))).rows.first_values("x", 3) == []
