"""Folders of pictures, sounds and texts, and what Hugging Face says of columns: the rows that they make up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from blossom_ray.core.scores import Task
from blossom_ray.data.dataset import Dataset
from blossom_ray.data.sets.table import Table, TableData
from blossom_ray.data.table.rows import TableRows
from blossom_ray.errors import DataError


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"what {name} says", encoding="utf-8")
    return folder


def columns(folder: Path, file: int = 0) -> dict[str, list[Any]]:
    """All columns of a file of the table, with the rows in order."""
    own = TableRows(str(folder)).files[file]
    found: dict[str, list[Any]] = {name: [] for name in own.types}
    for _, batch in own.batches(list(own.types)):
        for name, values in batch.items():
            found[name] += values.to_pylist()
    return found


def test_what_has_one_name_is_a_row(tmp_path: Path) -> None:
    fill(tmp_path, "dog/2.PNG", "cat/1.png", "cat/1.wav", "cat/1.txt", "cat/10.jpeg", "dog/2.b.flac", "README.txt")
    fill(tmp_path, ".git/x.png", "Thumbs.db", "cat/.hidden.xyz", "LICENSE", "cat/boxes.json", "dog/Thumbs.db")
    assert columns(tmp_path) == {
        "audio": ["cat/1.wav", None, None, "dog/2.b.flac"],
        "image": ["cat/1.png", "cat/10.jpeg", "dog/2.PNG", None],
        "text": ["what cat/1.txt says", None, None, None],
        "label": ["cat", "cat", "dog", "dog"],
    }
    rows = TableRows(str(tmp_path))
    assert rows.unread == ("files that are not read: 1, such as cat/boxes.json",)
    assert [file.folder for file in rows.files] == [tmp_path]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["2.png", "1.png"], {"image": ["1.png", "2.png"]}),
        (["photos/2.png", "photos/1.png"], {"image": ["photos/1.png", "photos/2.png"]}),  # one folder is no class
        (
            ["train/cat/1.png", "Test/cat/2.png", "dev/dog/1.png"],
            {
                "image": ["Test/cat/2.png", "dev/dog/1.png", "train/cat/1.png"],
                "label": ["cat", "dog", "cat"],
                "split": ["test", "validation", "train"],
            },
        ),
        (["train/1.png", "test/1.png"], {"image": ["test/1.png", "train/1.png"], "split": ["test", "train"]}),
        # Not all say a split: train is a vehicle.
        (["train/1.png", "plane/1.png"], {"image": ["plane/1.png", "train/1.png"], "label": ["plane", "train"]}),
        (
            ["train/photos/a/1.png", "train/sounds/a/1.wav", "train/photos/b/1.png"],
            {
                "audio": ["train/sounds/a/1.wav", None],
                "image": ["train/photos/a/1.png", "train/photos/b/1.png"],
                "label": ["a", "b"],
                "split": ["train", "train"],
            },
        ),
        (["photos/1.png", "sounds/1.wav"], {"audio": ["sounds/1.wav"], "image": ["photos/1.png"]}),
        (["pos/1.txt", "neg/1.txt"], {"text": ["what neg/1.txt says", "what pos/1.txt says"], "label": ["neg", "pos"]}),
        (
            ["ä\n/1\u202e.png", "b/\U0001f600.gif"],
            {"image": ["b/\U0001f600.gif", "ä\n/1\u202e.png"], "label": ["b", "ä\n"]},
        ),
    ],
    ids=str,
)
def test_folders_say_class_and_split(names: list[str], expected: dict[str, Any], tmp_path: Path) -> None:
    assert columns(fill(tmp_path, *names)) == expected


def test_texts_are_read_in_batches(tmp_path: Path) -> None:
    fill(tmp_path, *(f"{number % 2}/{number:03}.txt" for number in range(200)), "description.json")
    assert "image" not in columns(tmp_path)
    fill(tmp_path, "0/more.png")
    assert columns(tmp_path)["text"][99:101] == ["what 0/198.txt says", None]
    assert TableRows(str(tmp_path)).files[0].may_have_nulls("text")
    (tmp_path / "0" / "000.txt").write_bytes("\ufeffé\n".encode())
    assert columns(tmp_path)["text"][0] == "é\n"


def test_metadata_say_more_of_files(tmp_path: Path) -> None:
    fill(tmp_path, "photos/1.png", "photos/1.wav", "photos/2.png", "photos/3.png", "more/deep/4.png")
    lines = [
        {"file_name": "photos/2.png", "text": "second", "label": 1, "bounds": [1.5, 2]},
        {"file_name": "./photos/1.png", "text": "first", "label": 0, "left_file_name": "more/deep/4.png"},
        {"text": "none", "label": 0},
        {"file_name": "photos/2.png", "text": "again", "label": 1},
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert columns(tmp_path) == {
        "left": [None, "more/deep/4.png", None, None],
        "audio": [None, "photos/1.wav", None, None],
        "image": ["photos/2.png", "photos/1.png", None, "photos/2.png"],
        "text": ["second", "first", "none", "again"],
        "label": [1, 0, 0, 1],
        "bounds": [[1.5, 2.0], None, None, None],
    }
    rows = TableRows(str(tmp_path))
    assert rows.unread == (
        "files that are named by no metadata, and so left out: 1, such as photos/3.png",
        "files that are in several rows, which may stand in training and in testing: 1, such as photos/2.png",
    )
    assert rows.place("text")(1) == "metadata.jsonl, column 'text', row 1"
    of_lines = columns(tmp_path)
    (tmp_path / "metadata.jsonl").unlink()
    pq.write_table(
        pa.Table.from_pylist([{"left_file_name": None} | line for line in lines]), tmp_path / "metadata.parquet"
    )
    assert columns(tmp_path) == of_lines


def test_metadata_of_each_split_and_labels_of_folders(tmp_path: Path) -> None:
    fill(tmp_path, "train/cat/1.png", "train/dog/1.png", "test/cat/1.png")
    (tmp_path / "train" / "metadata.csv").write_text("file_name,age\ndog/1.png,3\ncat/1.png,\n")
    (tmp_path / "test" / "metadata.csv").write_text("file_name,age\ncat/1.png,4\n")
    assert columns(tmp_path, 0) == {"image": ["test/cat/1.png"], "label": ["cat"], "split": ["test"], "age": [4]}
    assert columns(tmp_path, 1) == {
        "image": ["train/dog/1.png", "train/cat/1.png"],
        "label": ["dog", "cat"],
        "split": ["train", "train"],
        "age": [3, None],
    }
    (tmp_path / "test" / "metadata.csv").write_text("file_name,age,label\ncat/1.png,4,tiger\n")
    assert columns(tmp_path, 0)["label"] == ["tiger"]


def test_a_csv_with_paths_and_a_folder_are_the_same_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLOSSOM_RAY_CACHE", str(tmp_path / "cache"))
    for row, label in enumerate(["cat", "cat", "dog"]):
        (tmp_path / "set" / label).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2), (10 * row, 0, 255)).save(tmp_path / "set" / label / f"{row}.png")
    paths = ["cat/0.png", "cat/1.png", "dog/2.png"]
    (tmp_path / "set" / "rows.csv").write_text("photo,label\n" + "".join(f"{path},{path[:3]}\n" for path in paths))
    image = {"kind": "image", "size": 2}
    of_csv = load(tmp_path / "set" / "rows.csv", modalities={"image": image | {"column": "photo"}})
    (tmp_path / "set" / "rows.csv").unlink()
    of_folder = load(tmp_path / "set", modalities={"image": image})
    assert of_csv.fingerprint() == of_folder.fingerprint()
    np.testing.assert_allclose(of_folder.inputs["image"][:][:, 0, 0, 0], np.float32([0, 10, 20]) / 255)
    assert of_folder.class_names == ("cat", "dog")


def load(path: Path, owned: str = "image", task: Task = "classification", **values: Any) -> Dataset:
    return Table(TableData.model_validate({"dataset": "table", "path": str(path), **values}), (owned,), task).load()


CLASSES = {"_type": "ClassLabel", "names": ["cat", "dog", "owl", "emu"]}


def noted(path: Path, labels: list[Any], feature: Any = CLASSES) -> None:
    """A Parquet file as `push_to_hub` of Hugging Face writes it."""
    features = {"acc": {"_type": "Value", "dtype": "float64"}, "label": feature}
    table = pa.table({"acc": [float(row) for row in range(len(labels))], "label": labels})
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})}), path)


def test_numbers_of_classes_have_the_names_that_hugging_face_noted(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    noted(path, [3, 0, 1, 0])
    found = load(path, "acc")
    assert (found.class_names, found.labels.tolist()) == (("cat", "dog", "emu"), [2, 0, 1, 0])
    assert load(path, "acc", class_names=["a", "b", "c", "d"]).class_names == ("a", "b", "c", "d")
    noted(path, [3, -1, None, 0])
    found = load(path, "acc")
    assert (found.class_names, found.labels.tolist()) == (("cat", "emu"), [1, 0, 0, 0])
    assert found.known is not None
    assert found.known.tolist() == [True, False, False, True]
    noted(path, ["wolf", "cat", "cat", "cat"])
    assert load(path, "acc").class_names == ("cat", "wolf")
    assert load(path, "acc", "regression", label_column="acc").class_names == ("acc",)
    for feature in ({"feature": CLASSES, "_type": "List"}, {"feature": CLASSES, "length": -1, "_type": "Sequence"}):
        noted(path, [[3, 0], [], [1], [0, 3]], feature)
        found = load(path, "acc", "multilabel")
        assert found.class_names == ("cat", "dog", "owl", "emu")
        assert found.labels.tolist() == [[1, 0, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0], [1, 0, 0, 1]]


@pytest.mark.parametrize(
    ("labels", "feature", "message"),
    [
        ([0, 4], CLASSES, "row 1 is 4; expected -1, or 0 to 3, a ClassLabel"),
        ([0, -2], CLASSES, "row 1 is -2; expected -1, or 0 to 3, a ClassLabel"),
        ([-1, None], CLASSES, "row 0 is null; expected a label in some row"),
        ([[0], [4]], {"feature": CLASSES, "_type": "List"}, "row 1 has 4; expected 0 to 3, a ClassLabel"),
        ([[0], [None]], {"feature": CLASSES, "_type": "List"}, "row 1 holds a null; expected names of classes"),
    ],
)
def test_numbers_that_are_none_of_the_classes(labels: list[Any], feature: Any, message: str, tmp_path: Path) -> None:
    noted(tmp_path / "rows.parquet", labels, feature)
    task: Task = "multilabel" if isinstance(labels[0], list) else "classification"
    with pytest.raises(DataError, match=message):
        load(tmp_path / "rows.parquet", "acc", task)


@pytest.mark.parametrize(
    "feature", [None, 7, {"_type": "ClassLabel", "names": [1]}, {"_type": "ClassLabel"}, [CLASSES]]
)
def test_features_that_say_nothing(feature: Any, tmp_path: Path) -> None:
    noted(tmp_path / "rows.parquet", [3, 1, 3], feature)
    assert load(tmp_path / "rows.parquet", "acc").class_names == ("1", "3")


def test_files_that_name_classes_differently_are_refused(tmp_path: Path) -> None:
    noted(tmp_path / "a.parquet", [0, 1])
    noted(tmp_path / "b.parquet", [0, 1], {"_type": "ClassLabel", "names": ["dog", "cat"]})
    with pytest.raises(
        DataError, match=r"column 'label' has other names of classes .ClassLabel. in some files than in"
    ):
        load(tmp_path, "acc")
    assert load(tmp_path, "acc", class_names=["x", "y"]).labels.tolist() == [0, 1, 0, 1]


def test_other_names_of_splits_are_told_by_the_scenario(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"acc": [0.0, 1, 2], "label": [0, 1, 0], "split": ["train", "validation", "extra"]}), path)
    with pytest.raises(
        DataError, match=r"row 1 is 'validation'; expected .* data.split_names says what other names mean"
    ):
        load(path, "acc")
    found = load(path, "acc", split_names={"validation": "train", "extra": "test"})
    assert found.held_out is not None
    assert (found.inputs["acc"].tolist(), found.held_out.inputs["acc"].tolist()) == ([[0.0], [1.0]], [[2.0]])


def test_names_of_files_that_have_not_counted_before_are_told(tmp_path: Path) -> None:
    for split in ("train", "test"):
        pq.write_table(pa.table({"acc": [0.0, 1], "label": [0, 1]}), tmp_path / f"{split}.parquet")
    found = load(tmp_path, "acc")
    assert (found.num_samples, found.held_out) == (4, None)
    assert "data.split_column: file_split goes by them" in found.notes[0]
    (tmp_path / "test.parquet").rename(tmp_path / "more.parquet")
    assert load(tmp_path, "acc").notes == ()
