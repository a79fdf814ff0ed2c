import json
import re
from datetime import datetime
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import REPOSITORY
from polars.testing import assert_frame_equal

from blossom_ray import simulate
from blossom_ray.core.blocks import BlockInstance, ClientProfile, Scope
from blossom_ray.core.evaluations import ClientEvaluation
from blossom_ray.core.records import BlockRound, ClientTraining, RoundRecord
from blossom_ray.errors import RunFolderError, ScenarioError
from blossom_ray.reading.scenario import Scenario
from blossom_ray.runs.folder import Run
from blossom_ray.runs.table_files import read_table
from blossom_ray.runs.writer import RunWriter, new_run_folder

PROFILES = (
    ClientProfile(0, ("acc",)),
    ClientProfile(1, ("acc", "gyro"), "site-b"),
    ClientProfile(2, ("gyro",)),
)
SCENARIO_YAML = """\
name: quick
rounds: 2
data: {dataset: synthetic}
clients: [{count: 3, modalities: [acc]}]
model: {encoders: {acc: {kind: mlp}}, fusion: {kind: mean}, head: {kind: linear}}
"""


def make_scenario():
    return Scenario.model_validate(
        {
            "name": "quick",
            "rounds": 2,
            "data": {"dataset": "synthetic"},
            "clients": [{"count": 3, "modalities": ["acc"]}],
            "model": {
                "encoders": {"acc": {"kind": "mlp"}},
                "fusion": {"kind": "mean"},
                "head": {"kind": "linear"},
            },
        }
    )


def make_training(client, num_examples):
    return ClientTraining(
        client, num_examples, float(num_examples), 3, 0.5, {"head": 0.1}, bytes_down=100, bytes_up=60, seconds=0.2,
        rounds_trained=1,
    )  # fmt: skip


def make_evaluation(client, accuracy):
    scores = {"accuracy": accuracy, "balanced_accuracy": 0.4, "macro_f1_present": 0.3, "macro_f1_all": 0.2}
    return ClientEvaluation(client, 7, 1.5, scores, bytes_down=10, seconds=0.1, rounds_trained=2)


def make_records():
    """Round 0: clients 0 and 2 are scored. Round 1: client 1 trains. Round 2: 0 trains, 0 and 1 are scored."""
    head = BlockInstance("head", Scope.SHARED)
    encoder = BlockInstance("encoder/acc", Scope.SAME_MODALITIES, "acc+gyro")
    return (
        RoundRecord(
            0, None, (), (), (make_evaluation(0, 0.25), make_evaluation(2, 0.5)), {"loss": 1.5, "accuracy": 0.375},
            (BlockRound(head, 0, 0, 20, 0, 0.0, None),), {"train": 0.0, "evaluate": 0.2, "total": 0.2},
        ),
        RoundRecord(
            1, 0.1, (1,), (make_training(1, 20),), (), {"train_loss": 0.5},
            (BlockRound(head, 1, 20, 60, 40, 0.7, 0.8), BlockRound(encoder, 1, 20, 40, 20, 0.1, 0.2)),
            {"train": 0.3, "evaluate": 0.0, "total": 0.3},
        ),
        RoundRecord(
            2, 0.1, (0,), (make_training(0, 30),), (make_evaluation(0, 0.75), make_evaluation(1, 1.0)),
            {"train_loss": 0.5, "loss": 1.25, "accuracy": 0.875, "held_out/accuracy/acc": 0.6},
            (BlockRound(head, 1, 30, 120, 60, 0.7, 0.8),), {"train": 0.3, "evaluate": 0.1, "total": 0.4},
        ),
    )  # fmt: skip


def write_run(folder, records=None, status=None):
    writer = RunWriter(folder, SCENARIO_YAML, {"versions": {"torch": "2.6"}})
    for record in make_records() if records is None else records:
        writer.write(record, PROFILES)
    if status is not None:
        writer.close(status)
    return writer


def test_rounds_by_hand(tmp_path):
    write_run(tmp_path, status="finished")
    rounds = Run.open(tmp_path).rounds
    expected = {
        "round": [0, 1, 2],
        "learning_rate": [None, 0.1, 0.1],
        "num_clients": [0, 1, 1],
        "num_evaluated": [2, 0, 2],
        "num_examples": [0, 20, 30],
        "seconds": [0.2, 0.3, 0.4],
        "seconds_train": [0.0, 0.3, 0.3],
        "seconds_evaluate": [0.2, 0.0, 0.1],
        "bytes_down": [20, 100, 120],
        "bytes_up": [0, 60, 60],
        "loss": [1.5, None, 1.25],
        "accuracy": [0.375, None, 0.875],
        "train_loss": [None, 0.5, 0.5],
        "held_out/accuracy/acc": [None, None, 0.6],
    }
    assert rounds.to_dict(as_series=False) == expected
    assert rounds.schema["round"] == pl.Int32
    assert rounds.schema["bytes_up"] == pl.Int64
    assert rounds.schema["held_out/accuracy/acc"] == pl.Float64


def test_clients_by_hand(tmp_path):
    write_run(tmp_path, status="finished")
    clients = Run.open(tmp_path).clients
    assert clients.select("round", "client", "modalities", "group").rows() == [
        (0, 0, "acc", ""),
        (0, 2, "gyro", ""),
        (1, 1, "acc+gyro", "site-b"),
        (2, 0, "acc", ""),
        (2, 1, "acc+gyro", "site-b"),
    ]
    trained_and_scored, scored = clients.rows(named=True)[3:]
    assert trained_and_scored == {
        "round": 2, "client": 0, "modalities": "acc", "group": "",
        "num_train_examples": 30, "weight": 30.0, "num_steps": 3, "train_loss": 0.5, "bytes_down": 100, "bytes_up": 60,
        "train_seconds": 0.2, "num_test_examples": 7, "loss": 1.5, "accuracy": 0.75, "balanced_accuracy": 0.4,
        "macro_f1_present": 0.3, "macro_f1_all": 0.2, "evaluate_bytes_down": 10, "evaluate_seconds": 0.1,
        "rounds_trained": 2,
    }  # fmt: skip
    nulls = {"num_train_examples", "weight", "num_steps", "train_loss", "bytes_down", "bytes_up", "train_seconds"}
    assert {name for name, value in scored.items() if value is None} == nulls
    nulls = {
        "num_test_examples", "loss", "accuracy", "balanced_accuracy", "macro_f1_present", "macro_f1_all",
        "evaluate_bytes_down", "evaluate_seconds",
    }  # fmt: skip
    assert {name for name, value in clients.row(2, named=True).items() if value is None} == nulls


def test_blocks_by_hand(tmp_path):
    write_run(tmp_path, status="finished")
    assert Run.open(tmp_path).blocks.rows() == [
        (0, "head", "shared", "", 0, 0, 20, 0, 0.0, None),
        (1, "head", "shared", "", 1, 20, 60, 40, 0.7, 0.8),
        (1, "encoder/acc", "same-modalities", "acc+gyro", 1, 20, 40, 20, 0.1, 0.2),
        (2, "head", "shared", "", 1, 30, 120, 60, 0.7, 0.8),
    ]


def test_memory_and_folder_give_the_same_frames(tmp_path):
    write_run(tmp_path, status="finished")
    stored = Run.open(tmp_path)
    in_memory = Run.from_records(make_records(), make_scenario(), PROFILES, {})
    for name in ("rounds", "clients", "blocks"):
        assert_frame_equal(getattr(in_memory, name), getattr(stored, name))
    assert in_memory.final == stored.final
    assert (in_memory.path, in_memory.status) == (None, "finished")
    assert repr(in_memory) == "Run(in memory, finished, 3 rows in rounds)"


def test_final_is_the_last_evaluated_round(tmp_path):
    records = make_records()
    write_run(tmp_path / "all")
    assert Run.open(tmp_path / "all").final == dict(records[2].metrics)
    write_run(tmp_path / "two", records[:2])
    assert Run.open(tmp_path / "two").final == {"loss": 1.5, "accuracy": 0.375}
    write_run(tmp_path / "none", ())
    assert Run.open(tmp_path / "none").final == {}


def test_a_running_run_shows_each_round_as_it_is_written(tmp_path):
    writer = RunWriter(tmp_path, SCENARIO_YAML, {})
    run = Run.open(tmp_path)
    assert run.rounds.height == run.clients.height == run.blocks.height == 0
    for num_rounds, record in enumerate(make_records(), start=1):
        writer.write(record, PROFILES)
        assert run.rounds.height == num_rounds
    assert run.status == "running"
    assert run.rounds is not run.rounds
    before = run.clients
    writer.close("interrupted")
    assert run.status == "interrupted"
    assert_frame_equal(run.clients, before)
    assert run.clients is run.clients


def test_closing_leaves_one_parquet_file_per_table(tmp_path):
    write_run(tmp_path, status="failed")
    assert {path.name for path in tmp_path.iterdir()} == {
        "scenario.yaml", "manifest.json", "rounds.parquet", "clients.parquet", "blocks.parquet",
        "failures.parquet", "classes.parquet", "confusion.parquet",
    }  # fmt: skip
    assert pq.ParquetFile(tmp_path / "rounds.parquet").metadata.num_row_groups == 1


def test_manifest(tmp_path):
    writer = write_run(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["status"] == "running"
    assert manifest["ended_at"] is None
    assert manifest["versions"] == {"torch": "2.6"}
    writer.update(engines={"acc": "sequential"})
    writer.close("finished")
    manifest = Run.open(tmp_path).manifest
    assert manifest["engines"] == {"acc": "sequential"}
    started, ended = (datetime.fromisoformat(manifest[key]) for key in ("started_at", "ended_at"))
    assert started <= ended
    assert started.utcoffset().total_seconds() == 0


def test_scenario_is_read_back(tmp_path):
    write_run(tmp_path, status="finished")
    assert (tmp_path / "scenario.yaml").read_text() == SCENARIO_YAML
    assert Run.open(tmp_path).scenario == make_scenario()


def test_a_stream_cut_off_anywhere_gives_the_rounds_before(tmp_path):
    writer = RunWriter(tmp_path, SCENARIO_YAML, {})
    stream, sizes = tmp_path / "rounds.arrows", []
    record = make_records()[0]
    sizes.append(stream.stat().st_size)
    for _ in range(2):
        writer.write(record, PROFILES)
        sizes.append(stream.stat().st_size)
    whole = stream.read_bytes()
    assert sizes[-1] == len(whole)
    # The first round made the stream anew with the metric columns, so start where its batch is whole.
    for size in range(sizes[1], len(whole) + 1):
        stream.write_bytes(whole[:size])
        assert Run.open(tmp_path).rounds.height == (2 if size == len(whole) else 1)


def test_rows_of_a_round_that_was_not_completed_are_left_out(tmp_path):
    writer = write_run(tmp_path)
    run = Run.open(tmp_path)
    before = (tmp_path / "rounds.arrows").read_bytes()
    clients, blocks = run.clients, run.blocks
    writer.write(make_records()[2].__class__(**{**vars(make_records()[2]), "round_index": 3}), PROFILES)
    (tmp_path / "rounds.arrows").write_bytes(before)
    assert_frame_equal(run.clients, clients)
    assert_frame_equal(run.blocks, blocks)


def test_stream_is_plain_arrow_for_other_readers(tmp_path):
    write_run(tmp_path)
    with pa.OSFile(str(tmp_path / "blocks.arrows")) as file:
        assert pa.ipc.open_stream(file).read_all().num_rows == 4


def test_new_run_folders_are_never_shared(tmp_path):
    folders = [new_run_folder(tmp_path / "out", "quick") for _ in range(20)]
    assert len(set(folders)) == 20
    assert all(folder.is_dir() and folder.parent == tmp_path / "out" / "quick" for folder in folders)
    assert re.fullmatch(r"\d{8}T\d{6}Z-[0-9a-f]{4}", folders[0].name)


def test_new_run_folder_goes_to_runs_by_default(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert new_run_folder(None, "quick").resolve().parent == (tmp_path / "runs" / "quick").resolve()


@pytest.mark.parametrize("way", ["out", "out/quick"])
def test_new_run_folder_names_the_file_in_the_way(tmp_path, way):
    blocking = tmp_path / way
    blocking.parent.mkdir(exist_ok=True)
    blocking.write_text("")
    with pytest.raises(RunFolderError, match=r"out/quick: .*; expected a folder that can be written"):
        new_run_folder(tmp_path / "out", "quick")


def test_a_folder_that_holds_a_run_is_not_written_over(tmp_path):
    write_run(tmp_path, status="finished")
    with pytest.raises(RunFolderError, match="holds a run already; expected a new folder"):
        RunWriter(tmp_path, SCENARIO_YAML, {})


def test_an_error_on_writing_names_the_file(tmp_path):
    writer = write_run(tmp_path)
    (tmp_path / "rounds.parquet").mkdir()
    with pytest.raises(RunFolderError, match=r"rounds\.parquet.*: .*; expected a folder that can be written"):
        writer.close("finished")


def test_a_failed_write_leaves_the_old_manifest(tmp_path):
    writer = write_run(tmp_path)
    before = (tmp_path / "manifest.json").read_text()
    with pytest.raises(TypeError, match="not JSON serializable"):
        writer.update(folder=tmp_path)
    assert (tmp_path / "manifest.json").read_text() == before


def damage(folder, name, text):
    write_run(folder, status="finished")
    (folder / name).write_text(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"manifest\.json: cannot be read: Expecting property name"),
        ("[]", r"manifest\.json: is an empty list; expected a mapping"),
        ("{}", r"manifest\.json: status is missing; expected one of running, finished, failed, interrupted"),
        ('{"status": "finishd"}', r"manifest\.json: status is 'finishd'; expected one of .*; did you mean 'finished'"),
        ('{"status": "running", "of": [{"\\ud800": 1}]}', r"manifest\.json: has text with half a character"),
        ('{"status": "running", "started_at": "\\udc41"}', r"manifest\.json: has text with half a character"),
        ('{"status": "running", "deep": ' + "[" * 500 + "]" * 500 + "}", r"manifest\.json: is nested too deeply"),
    ],
)
def test_a_damaged_manifest_is_named(tmp_path, text, message):
    damage(tmp_path, "manifest.json", text)
    with pytest.raises(RunFolderError, match=message):
        Run.open(tmp_path)


ODD_VALUES = [0, -1, 1.5, 1e999, True, "x", [], [[]], [None], {}, {"message": 3}, {"x": [1]}]


@pytest.mark.parametrize(
    ("key", "good"),
    [
        ("status", []),
        ("started_at", ["x"]),
        ("ended_at", ["x"]),
        ("notes", [[]]),
        ("versions", [{}]),
        ("data", [{}, {"message": 3}, {"x": [1]}]),
        ("error", [{}, {"x": [1]}]),
        ("stopped", []),
        ("late_scores", []),
    ],
)
def test_entries_of_the_manifest_are_what_a_run_writes(tmp_path, key, good):
    write_run(tmp_path, status="finished")
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    for value in ODD_VALUES:
        (tmp_path / "manifest.json").write_text(json.dumps({**manifest, key: value, "of another version": {"x": 1}}))
        if value in good and not isinstance(value, bool):
            Run.open(tmp_path)
        elif key == "versions" and value == {"message": 3}:
            with pytest.raises(RunFolderError, match=r"manifest\.json: versions\.message is 3; expected text"):
                Run.open(tmp_path)
        else:
            with pytest.raises(RunFolderError, match=rf"manifest\.json: {key}(\.\w+)* is .*; expected"):
                Run.open(tmp_path)


@pytest.mark.parametrize(
    ("table", "column", "value", "message"),
    [
        ("blocks", "scope", "xyz", "its column 'scope' has 'xyz'; expected one of shared, same-modalities"),
        ("blocks", "scope", None, "its column 'scope' has nulls"),
        ("blocks", "block", None, "its column 'block' has nulls"),
        ("blocks", "bytes_down", -1, "its column 'bytes_down' has -1; expected int64 values of at least 0"),
        ("clients", "client", None, "its column 'client' has nulls"),
        ("clients", "client", -1, "its column 'client' has -1"),
        ("clients", "weight", None, "'num_train_examples' and 'weight' are null in other rows; expected the same"),
        ("clients", "loss", None, "'num_test_examples' and 'loss' are null in other rows; expected the same"),
        ("rounds", "num_evaluated", None, "its column 'num_evaluated' has nulls"),
    ],
)
@pytest.mark.parametrize("status", ["finished", None])
def test_values_that_no_run_writes_are_refused(tmp_path, table, column, value, message, status):
    write_run(tmp_path, status=status)
    found = read_table(tmp_path, table)
    values = found[column].to_pylist()
    values[next(row for row, before in enumerate(values) if before is not None)] = value
    changed = pa.array(values, found.schema.field(column).type)
    found = found.set_column(found.schema.get_field_index(column), column, changed)
    # Beside the file, which is mapped.
    if status is None:
        with pa.OSFile(str(tmp_path / "new"), "wb") as file, pa.ipc.new_stream(file, found.schema) as stream:
            stream.write_table(found)
    else:
        pq.write_table(found, tmp_path / "new")
    (tmp_path / "new").replace(tmp_path / f"{table}.{'arrows' if status is None else 'parquet'}")
    with pytest.raises(RunFolderError, match=rf"{table}\..*{message}"):
        getattr(Run.open(tmp_path), table)


def test_open_refuses_what_is_no_run_folder(tmp_path):
    with pytest.raises(RunFolderError, match="nowhere: does not exist; expected a run folder"):
        Run.open(tmp_path / "nowhere")
    with pytest.raises(RunFolderError, match=r"has no manifest\.json; expected a run folder"):
        Run.open(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="file: is a file; expected a run folder"):
        Run.open(tmp_path / "file")


def test_a_damaged_or_missing_table_is_named(tmp_path):
    damage(tmp_path, "rounds.parquet", "not a table")
    run = Run.open(tmp_path)
    with pytest.raises(RunFolderError, match=r"rounds\.parquet: the table cannot be read"):
        _ = run.rounds
    (tmp_path / "blocks.parquet").unlink()
    with pytest.raises(RunFolderError, match=r"'blocks' is missing; expected blocks\.parquet or blocks\.arrows"):
        _ = run.blocks


@pytest.mark.parametrize("content", [b"", b"garbage that is no Arrow stream"])
def test_a_stream_that_never_was_one_is_damaged(tmp_path, content):
    write_run(tmp_path)
    (tmp_path / "rounds.arrows").write_bytes(content)
    with pytest.raises(RunFolderError, match=r"rounds\.arrows: the table cannot be read"):
        _ = Run.open(tmp_path).rounds


def other_table(content):
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, content.schema) as writer:
        writer.write_table(content)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.rename_columns(["rounb", *table.schema.names[1:]]), "has the columns"),
        (lambda table: table.drop_columns(["num_evaluated"]), "has the columns"),
        (lambda table: table.append_column("name", pa.array(["x"] * table.num_rows)), "has the columns"),
        (lambda table: table.set_column(0, "round", table["round"].cast("int64")), "has the columns"),
        (lambda table: table.set_column(0, "round", pa.nulls(table.num_rows, "int32")), "rounds are not in order"),
        (lambda table: table.take([1, 0]), "rounds are not in order"),
    ],
)
def test_a_whole_table_that_is_none_of_ours_is_refused(tmp_path, change, message):
    write_run(tmp_path)
    table = pa.ipc.open_stream((tmp_path / "rounds.arrows").read_bytes()).read_all()
    (tmp_path / "rounds.arrows").write_bytes(other_table(change(table)))
    with pytest.raises(RunFolderError, match=rf"rounds\.arrows: .*{message}"):
        Run.open(tmp_path).final  # noqa: B018  # reading it is what raises


def test_text_that_points_out_of_its_table_is_damage(tmp_path):
    write_run(tmp_path)
    table = pa.ipc.open_stream((tmp_path / "blocks.arrows").read_bytes()).read_all()
    # Arrow looks at the first and the last offset alone, unless it is asked to look at all.
    offsets = [0, *[10**6] * (table.num_rows - 1), 8]
    buffers = [None, pa.py_buffer(b"".join(n.to_bytes(4, "little") for n in offsets)), pa.py_buffer(b"x" * 8)]
    wild = pa.Array.from_buffers(pa.string(), table.num_rows, buffers)
    changed = table.set_column(table.schema.get_field_index("block"), "block", wild)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, changed.schema) as writer:
        writer.write_table(changed)
    (tmp_path / "blocks.arrows").write_bytes(sink.getvalue().to_pybytes())
    with pytest.raises(RunFolderError, match=r"blocks\.arrows: the table cannot be read"):
        Run.open(tmp_path).blocks  # noqa: B018  # reading it is what raises


def test_a_changed_byte_in_a_finished_table_is_noticed(tmp_path):
    write_run(tmp_path, status="finished")
    path = tmp_path / "rounds.parquet"
    content = bytearray(path.read_bytes())
    page = pq.ParquetFile(path).metadata.row_group(0).column(1)
    content[page.data_page_offset + page.total_compressed_size - 1] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunFolderError, match=r"rounds\.parquet: the table cannot be read"):
        Run.open(tmp_path).rounds  # noqa: B018  # reading it is what raises


def test_a_run_that_could_not_be_reopened_is_not_locked(tmp_path):
    write_run(tmp_path, status="interrupted")
    path = tmp_path / "rounds.parquet"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    for _ in range(2):
        with pytest.raises(RunFolderError, match="the table cannot be read"):
            RunWriter.reopen(tmp_path)
    path.write_bytes(content)
    writer = RunWriter.reopen(tmp_path)
    assert writer.last_round == 2
    writer.close("interrupted")


def test_a_manifest_nested_too_deeply(tmp_path):
    write_run(tmp_path, status="finished")
    (tmp_path / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(RunFolderError, match="cannot be read"):
        Run.open(tmp_path)


def test_a_run_is_read_where_its_data_are_not(small_uci_har: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.zip"
    data.write_bytes(small_uci_har.read_bytes())
    path = REPOSITORY / "scenarios" / "paper" / "uci-har_iid_5-5-0.yaml"
    scenario = Scenario.load(path, {"data.path": str(data), "rounds": 1, "execution.runtime": "local"})
    folder = tmp_path / "run"
    simulate(scenario, out=folder)
    data.unlink()
    (run,) = [Run.open(place.parent) for place in folder.rglob("manifest.json")]
    assert run.scenario == scenario
    with pytest.raises(ScenarioError, match=r"data\.path is .*, which does not exist"):
        run.scenario.override({"rounds": 2})
