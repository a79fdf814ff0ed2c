"""`blossom-ray init`: what it writes runs, what it cannot write it says at once, and on a terminal it asks."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from conftest import Command
from downloads import DOWNLOADS
from PIL import Image

from blossom_ray import Scenario, simulate
from blossom_ray.data.options import DATASETS
from blossom_ray.data.sets.table import TableData
from blossom_ray.reading.init import STARTING_POINTS

pytestmark = pytest.mark.slow

TINY: dict[str, Any] = {"rounds": 1, "execution.runtime": "local"}


def test_without_a_terminal_it_takes_the_suggestions(command: Command, tmp_path: Path) -> None:
    outcome = command("init")
    assert (outcome.exit_code, outcome.err) == (0, "")
    assert outcome.out == (
        "scenario.yaml: 10 clients, 20 rounds, modalities acc, gyro\nrun it: blossom-ray simulate scenario.yaml\n"
    )
    written = Scenario.load(tmp_path / "scenario.yaml")
    assert written == Scenario.load("quickstart").override({"name": "scenario"})
    text = (tmp_path / "scenario.yaml").read_text(encoding="utf-8")
    assert text.startswith("# Run this scenario: blossom-ray simulate scenario.yaml\n")
    assert "# Number of rounds. Rounds count from 1; round 0 is the untrained model.\nrounds: 20\n" in text


def test_choices_stand_in_the_file(command: Command, tmp_path: Path) -> None:
    chosen = ("--clients", "2:acc 1:acc,eye", "--sharing", "full-model", "--rounds", "3", "--partition", "iid")
    outcome = command("init", *chosen, "--out", "my own.yaml", "--json")
    assert json.loads(outcome.out) == {
        "scenario": "my own.yaml", "clients": 3, "rounds": 3, "modalities": ["acc", "eye"]
    }  # fmt: skip
    written = Scenario.load(tmp_path / "my own.yaml")
    assert written.name == "my-own"
    assert written.modality_sets == ("acc", "acc+eye")
    assert (written.sharing, written.data.partition.kind) == ("full-model", "iid")
    # `eye` is no modality of the quickstart: a sequence by default, so it is read as one.
    assert {name: encoder.kind for name, encoder in written.model.encoders.items()} == {
        "acc": "conv1d", "eye": "conv-gru"
    }  # fmt: skip
    assert simulate(written.override(TINY | {"data.samples": 200})).status == "finished"


def test_all_keys_are_written_if_asked(command: Command, tmp_path: Path) -> None:
    assert command("init", "--full").exit_code == 0
    assert "\nfailures:\n" in (tmp_path / "scenario.yaml").read_text(encoding="utf-8")


def test_every_data_set_has_a_starting_point() -> None:
    assert set(STARTING_POINTS) == set(DATASETS) - {"custom"}


@pytest.mark.parametrize("dataset", DOWNLOADS)
def test_a_scenario_for_downloaded_data_runs(
    dataset: str, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BLOSSOM_RAY_CACHE", str(tmp_path / "cache"))
    folder = DOWNLOADS[dataset](tmp_path)
    outcome = command("init", "--dataset", dataset, "--path", str(folder), "--partition", "iid")
    assert (outcome.exit_code, outcome.err) == (0, "")
    written = Scenario.load(tmp_path / "scenario.yaml")
    assert written.data.dataset == dataset
    assert written.model == Scenario.load(STARTING_POINTS[dataset], {"data.path": str(folder)}).model
    assert simulate(written.override(TINY)).status == "finished"


@pytest.mark.data
def test_clients_may_own_a_part_of_the_modalities(command: Command, small_uci_har: Path, tmp_path: Path) -> None:
    arguments = ("--dataset", "uci-har", "--path", str(small_uci_har), "--partition", "iid", "--clients", "2:gyro")
    assert command("init", *arguments).exit_code == 0
    written = Scenario.load(tmp_path / "scenario.yaml")
    assert written.modalities == ("gyro",)
    assert simulate(written.override(TINY)).status == "finished"


@pytest.mark.parametrize("task", ["classification", "multilabel", "regression"])
def test_a_table_tells_its_modalities_shapes_and_task(task: str, command: Command, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    labels: dict[str, Any] = {
        "classification": draw.integers(0, 2, 60),
        "multilabel": draw.integers(0, 2, (60, 3)).tolist(),
        "regression": draw.normal(size=60),
    }
    columns = {
        "window": pl.Series(draw.normal(size=(60, 20, 2)), dtype=pl.Array(pl.Float32, (20, 2))),
        "short": pl.Series(draw.normal(size=(60, 3, 2)), dtype=pl.Array(pl.Float32, (3, 2))),
        "photo": pl.Series(draw.normal(size=(60, 1, 8, 9)), dtype=pl.Array(pl.Float32, (1, 8, 9))),
        "age": draw.normal(size=60),
        "remark": ["text is no modality"] * 60,
        "ragged": [[1.0] * (1 + row % 2) for row in range(60)],
        "label": labels[task],
        "subject": np.arange(60) % 20,
    }
    pl.DataFrame(columns).write_parquet(tmp_path / "own.parquet")
    outcome = command("init", "--dataset", "table", "--path", "own.parquet")
    assert (outcome.exit_code, outcome.err) == (0, "")
    written = Scenario.load(tmp_path / "scenario.yaml")
    assert written.task == task
    assert {name: encoder.kind for name, encoder in written.model.encoders.items()} == {
        "window": "conv-gru", "short": "gru", "photo": "conv2d", "age": "mlp", "ragged": "gru"
    }  # fmt: skip
    assert "ragged: series of numbers, 1 to 2 long (kind: series, length: 2, scale: standard" in outcome.out
    assert [group.count for group in written.clients] == [3, 3, 3, 3, 3, 4]
    assert simulate(written.override(TINY)).status == "finished"


def write_table(folder: Path, **columns: Any) -> None:
    values = np.random.default_rng(0).normal(size=(40, 6)).tolist()
    pq.write_table(pa.table({"acc": values, "label": ["sit", "walk"] * 20, **columns}), folder / "rows.parquet")


TABLE = ("--dataset", "table", "--path", "rows.parquet")
ROWS = list(range(40))


def test_what_pandas_leaves_behind_is_no_modality(command: Command, tmp_path: Path) -> None:
    indices = dict.fromkeys(("__index_level_0__", "Unnamed: 0", "Unnamed: 0.1", "time", "subject"), ROWS)
    write_table(tmp_path, gyro=[row / 2 for row in ROWS], **indices)
    table = pq.read_table(tmp_path / "rows.parquet")
    described = {"index_columns": ["__index_level_0__", "time", "subject", {"kind": "range"}], "columns": []}
    pq.write_table(table.replace_schema_metadata({"pandas": json.dumps(described)}), tmp_path / "rows.parquet")
    outcome = command("init", *TABLE)
    assert (outcome.exit_code, outcome.err) == (0, "")
    assert outcome.out.splitlines() == [
        "scenario.yaml: 10 clients, 30 rounds, modalities acc, gyro",
        "task: classification, 2 classes: sit, walk (labels are text or whole numbers; --task chooses another)",
        "no modality: rows.parquet, column '__index_level_0__' is the index of a frame of pandas",
        "no modality: rows.parquet, column 'Unnamed: 0' is the index of a frame of pandas",
        "no modality: rows.parquet, column 'Unnamed: 0.1' is the index of a frame of pandas",
        "no modality: rows.parquet, column 'time' is the index of a frame of pandas",
        "run it: blossom-ray simulate scenario.yaml",
    ]
    assert simulate(Scenario.load(tmp_path / "scenario.yaml", TINY)).status == "finished"


@pytest.mark.parametrize("metadata", ["{", "[]", '{"index_columns": 3}', '{"index_columns": [null, [], 1]}', "\xff"])
def test_metadata_of_pandas_that_are_none_do_no_harm(metadata: str, command: Command, tmp_path: Path) -> None:
    write_table(tmp_path)
    table = pq.read_table(tmp_path / "rows.parquet").replace_schema_metadata({"pandas": metadata.encode("latin-1")})
    pq.write_table(table, tmp_path / "rows.parquet")
    assert command("init", *TABLE).exit_code == 0


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (["gyro z"], {"gyro_z": "gyro z"}),
        (["gyro z", "gyro_z", "gyro/z"], {"gyro_z_2": "gyro z", "gyro_z": "gyro_z", "gyro_z_3": "gyro/z"}),
        (["a.b", "1", "1e3", "null", "yes"], {name: name for name in ("a.b", "1", "1e3", "null", "yes")}),
        (["_x", "-", " ", "Größe (cm)", "a:b,c+d"], {
            "x": "_x", "column": "-", "column_2": " ", "Gr_e_cm": "Größe (cm)", "a_b_c_d": "a:b,c+d"
        }),
        (["x" * 64, "x" * 65, "x" * 300], {"x" * 64: "x" * 64, "x" * 56 + "_2": "x" * 65, "x" * 56 + "_3": "x" * 300}),
        (["\0", "a\nb", "{}", "# y: z", "'q\""], {
            "column": "\0", "a_b": "a\nb", "column_2": "{}", "y_z": "# y: z", "q": "'q\""
        }),
        ([f"channel {number}" for number in range(30)], {"numbers": [f"channel {number}" for number in range(30)]}),
    ],
)  # fmt: skip
def test_columns_of_any_name_are_modalities(
    columns: list[str], expected: dict[str, Any], command: Command, tmp_path: Path
) -> None:
    write_table(tmp_path, **{column: np.arange(40) / 40 for column in columns})
    outcome = command("init", *TABLE)
    assert (outcome.exit_code, outcome.err) == (0, "")
    written = Scenario.load(tmp_path / "scenario.yaml")
    assert isinstance(written.data, TableData)
    sections = written.data.modalities
    found = {name: sections[name].column if name in sections else name for name in written.modalities}
    assert found == {"acc": "acc", **{name: tuple(of) if isinstance(of, list) else of for name, of in expected.items()}}
    assert simulate(written.override(TINY)).status == "finished"


@pytest.mark.parametrize("num_rows", [2, 5, 9, 40])
def test_as_many_clients_are_suggested_as_a_table_has_rows_for(num_rows: int, command: Command, tmp_path: Path) -> None:
    columns = {"acc": np.ones(num_rows), "gyro": np.ones(num_rows), "label": np.arange(num_rows) % 2}
    pl.DataFrame(columns).write_parquet(tmp_path / "rows.parquet")
    assert command("init", *TABLE).exit_code == 0
    assert simulate(Scenario.load(tmp_path / "scenario.yaml", TINY)).status == "finished"


@pytest.mark.parametrize(
    ("label", "task", "said"),
    [
        (np.arange(40) % 3 + 0.0, "classification", "3 classes: 0, 1, 2 (labels are text or whole numbers"),
        (np.arange(40) / 2, "regression", "1 targets: label (labels are numbers that are not whole"),
        ([["a"], ["a", "b"]] * 20, "multilabel", "2 classes: a, b (labels are lists of names, or of 0 and 1"),
    ],
)
def test_the_task_that_is_chosen_is_told(label: Any, task: str, said: str, command: Command, tmp_path: Path) -> None:
    write_table(tmp_path, label=label)
    outcome = command("init", *TABLE)
    assert f"task: {task}, {said}; --task chooses another)" in outcome.out.splitlines()
    told = json.loads(command("init", *TABLE, "--force", "--json").out)
    assert (told["task"], told["left_out"]) == (task, [])
    assert simulate(Scenario.load(tmp_path / "scenario.yaml", TINY)).status == "finished"


def test_columns_with_rows_that_no_run_could_read_are_left_out(command: Command, tmp_path: Path) -> None:
    write_table(tmp_path, b=[1.0] * 39 + [np.nan], c=[[[1]], [[1, 2]]] * 20, d=["x"] * 40)
    outcome = command("init", *TABLE)
    assert [line for line in outcome.out.splitlines() if line.startswith("no modality")] == [
        "no modality: rows.parquet, column 'b', row 39 holds a value that is not finite",
        "no modality: rows.parquet, column 'c', row 1 has 2 values",
        "no modality: rows.parquet, column 'd' has type string",
    ]
    assert simulate(Scenario.load(tmp_path / "scenario.yaml", TINY)).status == "finished"


@pytest.mark.parametrize(
    ("columns", "problems"),
    [
        (
            {"acc": ["x"] * 40},
            ["data.path is 'rows.parquet', which has no column for a modality; rows.parquet, column 'acc' has type "
             "string; expected a column of numbers"],
        ),
        (
            {"label": [b"a"] * 40},
            ["data.path is 'rows.parquet': rows.parquet, column 'label' has type binary; expected whole numbers or "
             "text (for task: classification)",
             "data.path is 'rows.parquet': rows.parquet, column 'label' has type binary; expected numbers, (nested) "
             "lists of numbers, or a fixed-shape tensor (for task: multilabel, regression)"],
        ),
        (
            {"split": ["test"] * 40},
            ["data.path is 'rows.parquet': rows.parquet, column 'split' says 'train' in no row; expected it in some"],
        ),
        (
            {"split": ["train"] + ["test"] * 39},
            ["data.partition divides 1 samples over 1 clients; expected at least 2 samples per client: fewer clients "
             "or more samples"],
        ),
    ],
)  # fmt: skip
def test_a_table_without_what_a_scenario_needs(
    columns: dict[str, Any], problems: list[str], command: Command, tmp_path: Path
) -> None:
    write_table(tmp_path, **columns)
    outcome = command("init", *TABLE)
    assert outcome.exit_code == 2
    assert outcome.err.splitlines() == [f"--path: {problem}" for problem in problems]


def test_a_table_without_labels(command: Command, tmp_path: Path) -> None:
    pq.write_table(pa.table({"acc": [1.0] * 4, "y": [0, 1] * 2}), tmp_path / "rows.parquet")
    outcome = command("init", *TABLE)
    assert outcome.err == (
        "--path: data.path is 'rows.parquet': rows.parquet has no column 'label' (its columns: 'acc', 'y'); expected "
        "it in every file (--label names another column)\n"
    )


def test_labels_stand_in_a_column_that_is_named(command: Command, tmp_path: Path) -> None:
    pq.write_table(pa.table({"acc": [1.0, 2.0] * 20, "y": [0.5, 1.5] * 20}), tmp_path / "rows.parquet")
    outcome = command("init", *TABLE, "--label", "y")
    assert "task: regression, 1 targets: y" in outcome.out
    scenario = Scenario.load(tmp_path / "scenario.yaml", TINY)
    assert (scenario.task, scenario.modalities) == ("regression", ("acc",))
    assert simulate(scenario).status == "finished"
    for arguments, found in (
        ((*TABLE, "--label", "z"), "no column 'z' (its columns: 'acc', 'y')"),
        (("--label", "y"), "--label: is 'y', while --dataset is 'synthetic'; expected a column of a table"),
    ):
        outcome = command("init", *arguments, "--force")
        assert outcome.exit_code == 2
        assert found in outcome.err


def test_all_that_is_wrong_is_said_at_once(command: Command, tmp_path: Path) -> None:
    wrong = ("--clients", "3acc x:gyro 2:acc,acc", "--sharing", "privat", "--rounds", "0", "--partition", "iid:0.5")
    outcome = command("init", *wrong, "--out", "no/such.yaml")
    assert (outcome.exit_code, outcome.out) == (2, "")
    form = "expected COUNT:MODALITY,MODALITY for each group, such as '3:acc 4:acc,gyro'"
    said = outcome.err.splitlines()
    assert said[:2] == [
        "--out: is 'no/such.yaml', whose folder does not exist; expected a file in a folder that is there",
        f"--clients: has '3acc'; {form}",
    ]
    for problem in (
        "--clients: clients.0.count is 'x'; expected an integer of at least 1",
        "--clients: clients.1.modalities is ['acc', 'acc']; expected each modality once",
        "--sharing: sharing is 'privat'; expected one of full-model, private-head,",
        "--rounds: rounds is 0; expected an integer of at least 1",
        "--partition: data.partition.alpha is not a known key; expected one of kind",
    ):
        assert any(line.startswith(problem) for line in said), (problem, said)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (
            ("--dataset", "uci-hra"),
            "--dataset: data.dataset is 'uci-hra'; expected one of synthetic, uci-har, ku-har, ptb-xl, av-mnist, meld, "
            "iemocap, table; did you mean 'uci-har'?",
        ),
        (("--dataset", "custom"), "--dataset: data.dataset is 'custom', which takes code; expected one of synthetic,"),
        (("--dataset", "uci-har"), "--path: data.path is null; expected the official 'UCI HAR Dataset.zip'"),
        (("--dataset", "table"), "--path: data.path is null; expected text"),
        (("--dataset", "table", "--path", "no.parquet"), "--path: data.path is 'no.parquet', which does not exist"),
        (("--path", "here.zip"), "--path: data.path is 'here.zip'; expected null"),
        (("--clients", " "), "--clients: is empty; expected COUNT:MODALITY,MODALITY for each group"),
        (("--out", "."), "--out: is '.', which is a folder; expected a file"),
    ],
)
def test_a_choice_that_cannot_be_met(
    arguments: tuple[str, ...], problem: str, command: Command, tmp_path: Path
) -> None:
    outcome = command("init", *arguments)
    assert (outcome.exit_code, outcome.out) == (2, "")
    assert outcome.err.splitlines()[0].startswith(problem)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_stays_unless_forced(command: Command, tmp_path: Path) -> None:
    (tmp_path / "scenario.yaml").write_text("mine", encoding="utf-8")
    outcome = command("init")
    assert outcome.exit_code == 2
    assert outcome.err == "--out: is 'scenario.yaml', which is there already; expected a new file, or --force\n"
    assert (tmp_path / "scenario.yaml").read_text(encoding="utf-8") == "mine"
    assert command("init", "--force").exit_code == 0
    assert Scenario.load(tmp_path / "scenario.yaml").rounds == 20


def on_a_terminal(folder: Path, arguments: list[str], keys: str) -> tuple[int, str]:
    """Exit code and screen of `init` on a terminal on which `keys` are typed."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "blossom_ray", "init", *arguments]
    environment = {**os.environ, "TERM": "dumb", "COLUMNS": "200", "NO_COLOR": "1"}
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=folder, env=environment)
    os.close(theirs)
    os.write(ours, keys.encode())
    screen = b""
    try:
        # Linux says EIO where the other side is closed.
        while chunk := os.read(ours, 4096):
            screen += chunk
    except OSError:
        pass
    finally:
        os.close(ours)
    return process.wait(timeout=300), screen.decode()


def test_on_a_terminal_it_asks_for_what_is_not_given(tmp_path: Path) -> None:
    keys = "\n2:acc x:eye\n\n\n2:acc 2:eye\n"
    exit_code, screen = on_a_terminal(tmp_path, ["--rounds", "4", "--out", "asked.yaml"], keys)
    assert exit_code == 0, screen
    assert "Data set [synthetic/uci-har/" in screen
    assert "Rounds" not in screen
    # A wrong answer is explained, and that question asked again.
    assert "--clients: clients.1.count is 'x'; expected an integer of at least 1" in screen
    written = Scenario.load(tmp_path / "asked.yaml")
    assert (written.num_clients, written.rounds, written.modalities) == (4, 4, ("acc", "eye"))


def test_the_end_of_input_ends_the_questions(tmp_path: Path) -> None:
    exit_code, screen = on_a_terminal(tmp_path, [], "\n\x04")
    assert exit_code == 1
    assert "Aborted" in screen
    assert "Traceback" not in screen
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_flag_that_cannot_be_asked_for_again_is_told(tmp_path: Path) -> None:
    exit_code, screen = on_a_terminal(tmp_path, ["--yes", "--dataset", "uci-har"], "")
    assert exit_code == 2
    assert "--path: data.path is null" in screen


def test_whole_numbers_are_no_modality_beside_others(command: Command, tmp_path: Path) -> None:
    write_table(tmp_path, trial=ROWS, session=ROWS, depth=[row / 4 for row in ROWS])
    outcome = command("init", *TABLE)
    assert "modalities acc, depth\n" in outcome.out
    told = "no modality: trial, session: whole numbers, as ids and counts are; data.modalities takes what is measured"
    assert told in outcome.out.splitlines()
    table = pq.read_table(tmp_path / "rows.parquet").select(["label", "trial", "session"])
    pq.write_table(table, tmp_path / "rows.parquet")
    outcome = command("init", *TABLE, "--force")
    assert "modalities session, trial\n" in outcome.out  # there is nothing else to learn from


def test_another_task_may_be_chosen(command: Command, tmp_path: Path) -> None:
    write_table(tmp_path, label=np.arange(40) % 3)
    outcome = command("init", *TABLE, "--task", "regression")
    assert "task: regression, 1 targets: label" in outcome.out.splitlines()
    assert Scenario.load(tmp_path / "scenario.yaml").task == "regression"
    for arguments, found in (
        ((*TABLE, "--task", "clustering"), "--task: is 'clustering'; expected one of classification, multilabel, regr"),
        (("--task", "regression"), "--task: is for a table, while --dataset is 'synthetic'; expected one of"),
    ):
        outcome = command("init", *arguments, "--force")
        assert outcome.exit_code == 2
        assert found in outcome.err


def test_a_partition_that_is_asked_for_leaves_the_clients_of_the_data_aside(command: Command, tmp_path: Path) -> None:
    write_table(tmp_path, client=[row % 4 for row in ROWS], gyro=[row / 2 for row in ROWS])
    outcome = command("init", *TABLE, "--partition", "iid")
    assert (outcome.exit_code, outcome.err) == (0, "")
    written = Scenario.load(tmp_path / "scenario.yaml")
    assert (written.data.partition.kind, written.modalities, written.num_clients) == ("iid", ("acc", "gyro"), 10)
    outcome = command("init", *TABLE, "--clients", "3:acc 1:acc,gyro", "--force")
    assert outcome.exit_code == 2
    assert "have 3 clients with acc, while column 'client' has 0 clients with values of exactly these; '0', '1'" in (
        outcome.err
    )


def test_a_column_without_values_and_splits_that_make_no_clients_are_no_obstacle(
    command: Command, tmp_path: Path
) -> None:
    """A subject that is in the held-out set alone has nothing to train on."""
    subjects = [row % 5 for row in ROWS]
    splits = ["test" if subject == 4 else "train" for subject in subjects]
    write_table(
        tmp_path, subject=subjects, split=splits, gyro=[None if row % 3 else row / 2 for row in ROWS], rest=[None] * 40
    )
    outcome = command("init", *TABLE)
    assert (outcome.exit_code, outcome.err) == (0, "")
    assert "no modality: rows.parquet, column 'rest' is null in all rows" in outcome.out.splitlines()
    written = Scenario.load(tmp_path / "scenario.yaml")
    assert written.modalities == ("acc", "gyro")
    assert (written.data.partition.kind, written.data.without_modality) == ("subject", "leave-out")


@pytest.mark.parametrize(
    ("folder", "keys"),
    [
        ("data/", {"split_names": {"validation": "train"}}),
        ("", {"split_column": "file_split", "split_names": {"validation": "train"}}),
    ],
)
def test_names_of_files_and_splits_are_taken_for_what_they_mean(
    folder: str, keys: dict[str, Any], command: Command, tmp_path: Path
) -> None:
    draw = np.random.default_rng(0)
    (tmp_path / "own" / folder).mkdir(parents=True)
    for split, count in {"train": 30, "validation": 6, "test": 9}.items():
        table = pa.table({"acc": draw.normal(size=count), "label": np.arange(count) % 3})
        pq.write_table(table, tmp_path / "own" / folder / f"{split}-00000-of-00001.parquet")
    outcome = command("init", "--dataset", "table", "--path", "own")
    assert (outcome.exit_code, outcome.err) == (0, "")
    assert "split 'validation': read as train (data.split_names)" in outcome.out.splitlines()
    data = Scenario.load(tmp_path / "scenario.yaml").data
    assert {
        key: value for key, value in data.model_dump().items() if key in ("split_names", "split_column") and value
    } == keys
    dataset = data.open(("acc",), 0, "classification").load()
    assert (dataset.num_samples, dataset.held_out.num_samples) == (36, 9)


COLOURS = {"blood": (200, 30, 30), "grass": (30, 200, 30), "ocean": (30, 30, 200)}


def drawn(number: int) -> tuple[str, bytes, bytes, str]:
    """A class, and a picture, a sound and a sentence that tell it."""
    draw, label = np.random.default_rng(number), [*COLOURS][number % 3]
    picture, sound = io.BytesIO(), io.BytesIO()
    pixels = draw.integers(0, 120, (int(draw.integers(16, 24)), 20, 3)) + np.array(COLOURS[label]) // 2
    Image.fromarray(pixels.astype(np.uint8)).save(picture, "PNG")
    tone = np.sin(np.arange(int(draw.integers(1000, 2000))) * (number % 3 + 1) / 4) + draw.normal(size=1) / 9
    soundfile.write(sound, tone / 2, 4000, format="FLAC")
    words = draw.permutation(["a", "thing", "seen", "by", "me", f"like {label}"])
    return label, picture.getvalue(), sound.getvalue(), " ".join(words)


def test_pictures_sounds_and_texts_of_a_table_are_found_and_learned(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BLOSSOM_RAY_CACHE", str(tmp_path / "cache"))
    labels, pictures, sounds, texts = zip(*map(drawn, range(90)), strict=True)
    columns = {
        "photo": [{"bytes": content, "path": f"{number}.png"} for number, content in enumerate(pictures)],
        "voice": sounds,
        "said": texts,
        "temperature": np.random.default_rng(0).normal(size=90),
        "name": [f"sample {number}" for number in range(90)],
        "label": labels,
    }
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    outcome = command("init", *TABLE)
    assert (outcome.exit_code, outcome.err) == (0, "")
    assert outcome.out.splitlines()[2:-1] == [
        "photo: pictures, 20 wide and 16 to 23 high (kind: image, size: [20, 20])",
        "voice: sounds of 0.25 to 0.5 s, 4,000 samples per second "
        "(kind: audio, rate: 4000, seconds: 0.5, window: 256, hop: 32, channels: 1, bands: 40, "
        "scale: standard, over: all)",
        "said: texts, 7 words and signs (kind: text, max_length: 7, buckets: 256)",
        "no modality: rows.parquet, column 'name' has type string",
    ]
    written = Scenario.load(tmp_path / "scenario.yaml")
    assert {name: encoder.kind for name, encoder in written.model.encoders.items()} == {
        "photo": "conv2d", "voice": "conv2d", "said": "embedding", "temperature": "mlp"
    }  # fmt: skip
    # What is no picture, sound or text is scaled as it always was; and how many tokens there are stays with the data.
    assert written.data.scaling("temperature").over == "all"
    assert "vocabulary" not in (tmp_path / "scenario.yaml").read_text(encoding="utf-8")
    run = simulate(written.override(TINY | {"rounds": 4, "data.test_fraction": 0.4}))
    assert run.scenario.model.encoders["said"].vocabulary == 257
    for names in ("photo", "voice", "said"):
        assert run.final[f"accuracy/{names}"] > 0.6, (names, run.final)  # chance is 1/3


def test_a_folder_of_pictures_with_texts_takes_two_commands(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BLOSSOM_RAY_CACHE", str(tmp_path / "cache"))
    for number in range(60):
        label, picture, _, text = drawn(number)
        folder = tmp_path / "own" / ("test" if number > 44 else "train") / label
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.png").write_bytes(picture)
        (folder / f"{number}.txt").write_text(text)
    assert command("init", "--dataset", "table", "--path", "own").exit_code == 0
    outcome = command("simulate", "scenario.yaml", "--set", "execution.runtime=local", "--set", "rounds=5", "--json")
    assert (outcome.exit_code, outcome.err) == (0, "")


def test_a_table_with_paths_says_where_files_are_missing(command: Command, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(20):
        (tmp_path / "photos" / f"{number}.png").write_bytes(drawn(number)[1])
    lines = [f"photos/{number}.png,old photos of mine/{number}.PNG,{'ab'[number % 2]}" for number in range(20)]
    (tmp_path / "rows.csv").write_text("\n".join(["photo,lost,label", *lines]))
    outcome = command("init", "--dataset", "table", "--path", "rows.csv")
    assert (outcome.exit_code, outcome.err) == (0, "")
    assert outcome.out.splitlines()[2:-1] == [
        "photo: pictures, 20 wide and 17 to 23 high (kind: image, size: [21, 21])",
        "no modality: rows.csv, column 'lost' has paths of files that are not below the table's folder, "
        "such as 'old photos of mine/0.PNG'",
    ]
