"""`blossom-ray data`: what it prints, and what it refuses."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY
from downloads import DOWNLOADS

from blossom_ray import from_arrays, write_table
from blossom_ray.cli import main
from blossom_ray.cli.options import load_scenario
from blossom_ray.data.options import DATASETS
from blossom_ray.runtime.preparation import prepare


@dataclass(frozen=True)
class Outcome:
    exit_code: int
    out: str
    err: str

    def json(self) -> list[dict]:
        return [json.loads(line) for line in self.out.splitlines()]


Command = Callable[..., Outcome]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs `blossom-ray data` in an empty folder with a cache of its own, off a terminal."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("BLOSSOM_RAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FORCE_COLOR", raising=False)

    def run(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["blossom-ray", "data", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        assert "Traceback" not in captured.out
        return Outcome(int(ended.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture
def windows(tmp_path: Path) -> str:
    """A small KU-HAR."""
    return str(DOWNLOADS["ku-har"](tmp_path))


def test_list_says_what_one_needs_to_know(data: Command) -> None:
    outcome = data("list")
    assert (outcome.exit_code, outcome.err) == (0, "")
    assert [line.split(":")[0] for line in outcome.out.splitlines() if line[:1].strip()] == list(DATASETS)
    (section,) = (part for part in outcome.out.split("\n\n") if part.startswith("ptb-xl:"))
    for text in (
        "i_to_avf (1000, 6)",
        "5 diagnostic",
        "10.13026/kfzx-aw45",
        "CC BY 4.0",
        'pip install "blossom-ray[ecg]"',
    ):
        assert text in section
    assert "found" not in section
    # A line is as long as it is, so that it can be searched for.
    assert any(len(line) > 100 for line in outcome.out.splitlines())


def test_list_finds_what_was_downloaded(data: Command, windows: str) -> None:
    outcome = data("list", "--path", windows, "--json")
    found = {line["name"]: line for line in outcome.json()}
    assert list(found) == list(DATASETS)
    assert found["ku-har"]["found"] == windows
    assert found["uci-har"]["found"] is None
    assert found["ku-har"]["shapes"] == {"acc": [300, 3], "gyro": [300, 3]}
    assert f"found      {windows}" in data("list", "--path", windows).out


def test_inspect_a_named_data_set(data: Command, windows: str) -> None:
    options = ("--path", windows, "--set", "data.classes=paper", "--set", "data.zscore=true", "--modality", "acc")
    outcome = data("inspect", "ku-har", *options)
    assert (outcome.exit_code, outcome.err) == (0, "")
    assert re.search(r"0 Stand +30\b", outcome.out)
    assert re.search(r"all samples +240\b", outcome.out)
    assert re.search(r"acc +\(300, 3\)", outcome.out)
    assert "gyro" not in outcome.out
    assert re.search(r"fingerprint [0-9a-f]{64}", outcome.out)
    assert "clients" not in outcome.out
    (values,) = data("inspect", "ku-har", *options, "--json").json()
    assert (values["samples"], values["subjects"], values["held_out"]) == (240, None, None)
    assert values["labels"]["Stair-down"] == 30
    assert values["modalities"]["acc"]["deviation"] == pytest.approx(1, abs=1e-4)
    assert values["memory_bytes"] == 240 * (300 * 3 * 4 + 8)
    assert values["fingerprint"] in outcome.out
    assert "clients" not in values


def test_inspect_follows_the_task_that_an_option_asks_for(data: Command, tmp_path: Path) -> None:
    path = str(DOWNLOADS["ptb-xl"](tmp_path))
    (values,) = data("inspect", "ptb-xl", "--path", path, "--set", "data.labels=multi", "--json").json()
    assert values["task"] == "multilabel"
    assert (values["samples"], values["held_out"]["samples"]) == (180, 30)


TABLE_OF_NUMBERS = """
rounds: 1
task: regression
data: {dataset: table, path: rows.arrow, partition: {kind: given}}
clients: from-data
model: {encoders: {acc: {kind: mlp}}}
execution: {runtime: local}
"""


@pytest.mark.parametrize("case", ["multilabel", "regression", "a table of numbers"])
def test_inspect_and_prepare_show_the_data_set_that_a_run_has(case: str, data: Command, tmp_path: Path) -> None:
    """Before, the task of the scenario was dropped, and that of classification was shown or refused."""
    words = [str(REPOSITORY / "scenarios" / "multilabel.yaml"), "--set", "data.samples=200"]
    if case == "regression":
        words = [str(REPOSITORY / "scenarios/quickstart.yaml"), "--set", "task=regression", "--set", "data.targets=6"]
    if case == "a table of numbers":
        rows = {"acc": np.eye(12, dtype=np.float32)}
        write_table(from_arrays(rows, np.arange(12) / 7, task="regression", clients=np.arange(12) // 6), "rows.arrow")
        Path("numbers.yaml").write_text(TABLE_OF_NUMBERS)
        words = ["numbers.yaml"]
    outcome = data("inspect", *words, "--json")
    assert (outcome.exit_code, outcome.err) == (0, "")
    (values,) = outcome.json()
    scenario = load_scenario(Path(words[0]), words[2::2], None)
    prepared = prepare(scenario, tmp_path / "shards")
    assert (values["task"], values["fingerprint"]) == (scenario.task, prepared.fingerprint)
    assert [client["train"] for client in values["clients"]] == prepared.shards.num_train.tolist()
    (ready,) = data("prepare", *words, "--json").json()
    assert ready["samples"] == values["samples"]


def test_inspect_a_scenario_shows_its_clients(data: Command, windows: str) -> None:
    scenario = str(REPOSITORY / "scenarios" / "ku-har.yaml")
    options = ("--path", windows, "--set", "data.partition.alpha=10", "--seed", "4")
    (values,) = data("inspect", scenario, *options, "--json").json()
    clients = values["clients"]
    assert [client["client"] for client in clients] == list(range(10))
    assert clients[0]["modalities"] == ["acc"]
    assert sum(client["train"] + client["test"] for client in clients) == 240
    assert sum(client["labels"]["Sit"] for client in clients) == 30
    outcome = data("inspect", scenario, *options)
    rows = [line.split() for line in outcome.out.split("clients, with their samples by class")[1].splitlines()]
    rows = [row for row in rows if row and row[0].isdigit()]
    expected = [
        [client["client"], *client["modalities"], client["train"], client["test"], *client["labels"].values()]
        for client in clients
    ]
    assert rows == [[str(cell) for cell in row] for row in expected]


def test_many_clients_and_classes_fit(data: Command) -> None:
    scenario = str(REPOSITORY / "scenarios" / "quickstart.yaml")
    settings = ("data.classes=30", "data.samples=2000", "clients.0.count=60", "data.partition.kind=iid")
    outcome = data("inspect", scenario, *(word for setting in settings for word in ("--set", setting)))
    assert (outcome.exit_code, outcome.err) == (0, "")
    assert "…" not in outcome.out
    assert "more clients; --json has them all" in outcome.out


def test_prepare_fills_the_cache_once(data: Command, windows: str, tmp_path: Path) -> None:
    outcome = data("prepare", "ku-har", "--path", windows)
    assert (outcome.exit_code, outcome.err) == (0, "")
    assert re.match(r"ku-har: 240 samples ready after .*; 1.7 MB of it in ", outcome.out)
    (entry,) = (path for path in (tmp_path / "cache").iterdir() if path.name.startswith("ku-har-"))
    (values,) = data("prepare", str(REPOSITORY / "scenarios/ku-har.yaml"), "--path", windows, "--set",
                     "data.partition.alpha=10", "--json").json()  # fmt: skip
    assert values["cached_bytes"] == sum(file.stat().st_size for file in entry.iterdir())
    assert values["cache"] == str(tmp_path / "cache")
    assert len([path for path in (tmp_path / "cache").iterdir() if path.name.startswith("ku-har-")]) == 1


def test_prepare_says_where_there_is_nothing_to_do(data: Command, tmp_path: Path) -> None:
    outcome = data("prepare", "synthetic", "--set", "data.samples=50")
    assert outcome.out == "synthetic: 50 samples; nothing to prepare, they are read or made anew for each run\n"
    assert not (tmp_path / "cache").exists()


REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "no such thing": (("inspect", "kuhar"), r"error: 'kuhar' is neither a data set nor a scenario file; expected one"),
    "no scenario": (("inspect", "no.yaml"), r"no.yaml: does not exist; expected a scenario file"),
    "no path": (("inspect", "ku-har"), r"data ku-har: data.path is null; expected the official .*; get it from Mend"),
    "nothing there": (("prepare", "ku-har", "--path", "x"), r"--path: data.path is 'x', which does not exist; expec"),
    "another thing there": (
        ("inspect", "ku-har", "--path", "."),
        r"error: . holds no KU-HAR_time.*\nku-har: give the official .*; get it from Mendeley Data \(doi:10.17632",
    ),
    "an option": (
        ("inspect", "ku-har", "--path", ".", "--set", "data.rate_hz=25"),
        r"--set data.rate_hz: data.rate_hz is 25; expected one of 100, 50",
    ),
    "a setting": (("inspect", "ku-har", "--set", "x"), r"--set x: has no '='; expected KEY=VALUE"),
    "a modality": (
        ("inspect", "ku-har", "--modality", "mag"),
        r"error: --modality is 'mag'; expected one of acc, gyro",
    ),
    "a modality of a scenario": (
        ("inspect", str(REPOSITORY / "scenarios/quickstart.yaml"), "--modality", "acc"),
        r"error: --modality is for a named data set",
    ),
    "own data": (("inspect", "custom"), r"error: custom has the modalities that your data have; expected them by --m"),
    "a seed": (("inspect", "synthetic", "--seed", "-1"), r"--seed: seed is -1; expected an integer of at least 0"),
    "no folder": (("list", "--path", "x"), r"error: --path is 'x', which does not exist; expected a folder or an"),
    "another task": (("inspect", "synthetic", "--set", "task=sing"), r"--set task: task is 'sing'; expected one of"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_one_clear_error(case: str, data: Command) -> None:
    arguments, message = REFUSED[case]
    outcome = data(*arguments)
    assert (outcome.exit_code, outcome.out) == (2, "")
    assert re.match(message, outcome.err), outcome.err


LEFT_OUT = "left out: utterances of train_sent_emo.csv of other emotions (data.classes: paper): 36, such as dia0_utt4, "


def meld_scenario(folder: Path, runtime: str) -> str:
    path = DOWNLOADS["meld"](folder)
    (folder / "meld.yaml").write_text(
        f"""
rounds: 1
data: {{dataset: meld, path: {path}, classes: paper, text: {{tokens: 3, dim: 4}}}}
clients: [{{count: 2, modalities: [text]}}]
model: {{encoders: {{text: {{kind: mlp}}}}}}
execution: {{runtime: {runtime}}}
""",
        encoding="utf-8",
    )
    return str(folder / "meld.yaml")


@pytest.mark.parametrize("runtime", ["local", pytest.param("ray", marks=pytest.mark.ray)])
def test_what_is_left_out_is_in_the_manifest_and_on_the_screen(runtime: str, command: Command, tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    outcome = command("simulate", meld_scenario(tmp_path / "files", runtime), "--out", "run")
    assert outcome.exit_code == 0, outcome.err
    (manifest,) = (json.loads(path.read_text()) for path in tmp_path.glob("run/**/manifest.json"))
    entries = {entry["what"]: entry for entry in manifest["data"]["left_out"]}
    what = "utterances of train_sent_emo.csv of other emotions (data.classes: paper)"
    assert entries[what] == {"what": what, "count": 36, "examples": ["dia0_utt4", "dia0_utt5", "dia0_utt6"]}
    assert any(note.startswith(LEFT_OUT) for note in manifest["notes"])
    assert f"note: {LEFT_OUT}" in " ".join(outcome.out.split())


def test_inspect_and_prepare_tell_what_is_left_out(command: Command, tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    scenario = meld_scenario(tmp_path / "files", "local")
    for name in ("inspect", "prepare"):
        assert LEFT_OUT in " ".join(command("data", name, scenario).out.split())
        found = json.loads(command("data", name, scenario, "--json").out)
        assert {entry["count"] for entry in found["left_out"]} >= {36, 9989 - 96}


def test_inspect_tells_what_a_run_notes_of_its_data(data: Command) -> None:
    write_table(from_arrays({"acc": np.eye(12)}, np.arange(12) % 2, clients=np.arange(12) // 6), "rows.arrow")
    Path("own.yaml").write_text(
        "rounds: 1\ndata: {dataset: table, path: rows.arrow, partition: {kind: iid}}\n"
        "clients: [{count: 2, modalities: [acc]}]\nmodel: {encoders: {acc: {kind: mlp}}}\n"
    )
    note = "column 'client' is not used, since data.partition.kind is 'iid'"
    assert note in " ".join(data("inspect", "own.yaml").out.split())
    (told,) = data("inspect", "own.yaml", "--json").json()
    assert any(each.startswith(note) for each in told["notes"])


def test_labels_that_are_null_are_counted(command: Command) -> None:
    draw = np.random.default_rng(0)
    labels = [[int(draw.random() < 0.5) if draw.random() < 0.6 else None for _ in range(2)] for _ in range(60)]
    dataset = from_arrays({"acc": draw.standard_normal((60, 3))}, labels, task="multilabel")
    assert dataset.known is not None
    write_table(dataset, "rows.arrow")
    Path("own.yaml").write_text(
        "rounds: 1\ntask: multilabel\ndata: {dataset: table, path: rows.arrow}\n"
        "clients: [{count: 2, modalities: [acc]}]\nmodel: {encoders: {acc: {kind: mlp}}}\n"
    )
    told = json.loads(command("data", "inspect", "own.yaml", "--json").out)
    counts = {note.split()[2]: int(note.rpartition(" ")[2]) for note in told["notes"][:2]}
    assert sum(counts.values()) == int((~dataset.known.any(axis=1)).sum())
    assert sum(client["train"] + client["test"] for client in told["clients"]) == 60 - sum(counts.values())
    known = [int(part.split()[0]) for part in told["notes"][2].split(", ")]
    assert sum(known) == int(dataset.known.sum())
    assert told["notes"][2] in command("data", "inspect", "own.yaml").out.replace("\n", " ")
