"""Scores that are made at the end of a run for an earlier round, by hand: in the rows of that round, and out again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from blossom_ray.core.blocks import ClientProfile
from blossom_ray.core.evaluations import ClientEvaluation
from blossom_ray.core.records import ClassScores, ClientTraining, RoundRecord
from blossom_ray.errors import RunFolderError
from blossom_ray.runs.folder import Run
from blossom_ray.runs.late_scores import describe_late_scores, with_late_scores, without_late_scores
from blossom_ray.runs.table_files import in_memory_tables, read_table
from blossom_ray.runs.table_sums import lost_rows, sums_by_round
from blossom_ray.runs.writer import RunWriter

PROFILES = tuple(ClientProfile(index, ("acc",)) for index in range(4))


def scored(client: int, num_examples: int, loss: float, accuracy: float) -> ClientEvaluation:
    return ClientEvaluation(client, num_examples, loss, {"accuracy": accuracy}, bytes_down=10, seconds=0.5)


def trained(client: int) -> ClientTraining:
    return ClientTraining(client, 20, 20.0, 2, 0.7, {}, bytes_down=0, bytes_up=40, seconds=0.25)


def record(number: int, *validation: ClientEvaluation, train: tuple[int, ...] = ()) -> RoundRecord:
    metrics = {"train_loss": 0.7} if train else {}
    if validation:
        metrics |= {"validation/loss": 0.5 + number, "validation/accuracy": 0.25 * number}
    return RoundRecord(
        number, 0.1, train, tuple(trained(client) for client in train), (), metrics, (), validation=validation
    )


# Client 2 has no validation split and did not train in round 1, client 3 has none and did.
RECORDS = [
    record(0, scored(0, 4, 1.0, 0.5), scored(1, 2, 2.0, 0.0)),
    record(1, scored(0, 4, 1.5, 0.25), scored(1, 2, 2.5, 0.5), train=(0, 3)),
    record(2, train=(1,)),
]
LATE = RoundRecord(
    1, None, (), (),
    (scored(0, 8, 0.1, 0.75), scored(2, 6, 0.2, 0.5), scored(3, 7, 0.3, 1.0)),
    {"loss": 0.2, "accuracy": 0.8, "held_out/accuracy/acc": 0.6},
    (),
    classes=(ClassScores("test", "acc", 0, "walking", 4, 3, 2, 0.5, 2 / 3, 4 / 7, None, {0: 2, 1: 2}),),
)  # fmt: skip


def rows(table: pa.Table, number: int, *columns: str) -> list[tuple[object, ...]]:
    return [tuple(row.get(name) for name in columns) for row in table.to_pylist() if row["round"] == number]


def test_scores_stand_in_the_rows_of_their_round() -> None:
    tables = in_memory_tables(RECORDS, PROFILES)
    found = with_late_scores(tables, LATE, PROFILES)
    columns = ("train_loss", "num_evaluated", "loss", "accuracy", "held_out/accuracy/acc", "validation/accuracy")
    assert rows(found["rounds"], 0, *columns) == [(None, 2, None, None, None, 0.0)]
    assert rows(found["rounds"], 1, *columns) == [(0.7, 4, 0.2, 0.8, 0.6, 0.25)]
    assert rows(found["rounds"], 2, *columns) == [(0.7, 0, None, None, None, None)]
    columns = ("client", "num_train_examples", "num_test_examples", "loss", "accuracy", "num_validation_examples")
    assert rows(found["clients"], 1, *columns) == [
        (0, 20, 8, 0.1, 0.75, 4),
        (1, None, None, None, None, 2),
        (2, None, 6, 0.2, 0.5, None),
        (3, 20, 7, 0.3, 1.0, None),
    ]
    assert rows(found["classes"], 1, "scoring", "name", "num_correct") == [("test", "walking", 2)]
    assert rows(found["confusion"], 1, "predicted", "count") == [(0, 2), (1, 2)]
    # What had been sent and how long it took is what it was.
    columns = ("client", "evaluate_bytes_down", "evaluate_seconds")
    assert rows(found["clients"], 1, *columns)[:2] == [(0, 10, 0.5), (1, 10, 0.5)]
    for number in (0, 2):
        names = tables["clients"].schema.names
        assert rows(found["clients"], number, *names) == rows(tables["clients"], number, *names)
    assert lost_rows(found) is None


def test_taken_out_again_the_rows_have_their_checksums() -> None:
    tables = in_memory_tables(RECORDS, PROFILES)
    entry = describe_late_scores(LATE)
    assert entry == {"round": 1, "prefixes": ["", "held_out/"], "classes": ["test"]}
    late = with_late_scores(tables, LATE, PROFILES)
    assert sums_by_round(late) != sums_by_round(tables)
    assert sums_by_round(without_late_scores(late, entry)) == sums_by_round(tables)
    # A process may have died when half of it was written.
    half = {**tables, "clients": late["clients"]}
    assert sums_by_round(without_late_scores(half, entry)) == sums_by_round(tables)
    assert sums_by_round(without_late_scores(tables, entry)) == sums_by_round(tables)


def test_a_run_folder_has_them_until_the_run_goes_on(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path, "", {})
    for one in RECORDS:
        writer.write(one, PROFILES)
    before = list(writer.sums)
    writer.write_late(LATE, PROFILES)
    stopped = {"round": 2, "best_round": 1, "metric": "validation/accuracy", "value": 0.25, "reason": "patience"}
    writer.update(stopped=stopped)
    writer.close("finished")
    run = Run.open(tmp_path)
    in_memory = Run.from_records(RECORDS, run, PROFILES, {"stopped": stopped}, LATE)
    for name in ("rounds", "clients", "classes", "confusion"):
        assert getattr(run, name).equals(getattr(in_memory, name))
    assert run.final == in_memory.final
    assert (run.final["accuracy"], run.final["validation/accuracy"]) == (0.8, 0.25)
    late = run.late_scores
    assert late is not None
    assert (late.round_index, late.metrics) == (1, dict(LATE.metrics))
    again = RunWriter.reopen(tmp_path)
    assert again.sums == before
    assert not {"stopped", "late_scores", "tables"} & again.recorded.keys()
    assert rows(read_table(tmp_path, "rounds"), 1, "num_evaluated", "accuracy") == [(2, None)]
    assert [client for (client,) in rows(read_table(tmp_path, "clients"), 1, "client")] == [0, 1, 3]
    again.close("interrupted")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("drop", "has some of the columns num_validation_examples, validation/loss; expected all of them"),
        ("null", "'num_validation_examples' and 'validation/loss' are null in other rows; expected the same"),
        ("negative", "its column 'num_validation_examples' has -1; expected int64 values of at least 0"),
        ("float", "has the columns .*; expected those of the table 'clients'"),
    ],
)
def test_validation_columns_that_no_run_writes_are_refused(tmp_path: Path, change: str, message: str) -> None:
    writer = RunWriter(tmp_path, "", {})
    writer.write(RECORDS[0], PROFILES)
    writer.close("finished")
    table = read_table(tmp_path, "clients")
    place = table.schema.get_field_index("num_validation_examples")
    match change:
        case "drop":
            table = table.drop_columns(["validation/loss"])
        case "null":
            table = table.set_column(place, "num_validation_examples", pa.array([None, 2], pa.int64()))
        case "negative":
            table = table.set_column(place, "num_validation_examples", pa.array([-1, 2], pa.int64()))
        case _:
            table = table.set_column(place, "num_validation_examples", pa.array([1.0, 2.0]))
    pq.write_table(table, tmp_path / "clients.parquet")
    with pytest.raises(RunFolderError, match=message):
        read_table(tmp_path, "clients")


def test_scores_of_clients_that_never_train_come_and_go_with_their_rows() -> None:
    """One was scored in its round before fine-tuning, and is scored after it at the end; the other then alone."""
    profiles = (*PROFILES, ClientProfile(4, ("acc",), is_unseen=True), ClientProfile(5, ("acc",), is_unseen=True))
    begun = [RECORDS[0], replace(RECORDS[1], unseen=(scored(4, 9, 0.6, 0.5),)), RECORDS[2]]
    late = replace(
        LATE,
        unseen=(),
        fine_tuned_unseen=(scored(4, 9, 0.4, 0.75), scored(5, 3, 0.5, 1.0)),
        metrics={**LATE.metrics, "unseen/fine_tuned/accuracy": 0.8},
    )
    tables = in_memory_tables(begun, profiles)
    found = with_late_scores(tables, late, profiles)
    columns = ("client", "role", "num_test_examples", "num_unseen_examples", "unseen/loss", "unseen/fine_tuned/loss")
    assert rows(found["clients"], 1, *columns)[-2:] == [
        (4, "unseen", None, 9, 0.6, 0.4),
        (5, "unseen", None, 3, None, 0.5),
    ]
    assert rows(found["rounds"], 1, "num_evaluated") == [(4,)]
    assert lost_rows(found) is None
    before = without_late_scores(found, describe_late_scores(late))
    assert rows(before["clients"], 1, *columns)[-1] == (4, "unseen", None, 9, 0.6, None)
    assert sums_by_round(before) == sums_by_round(tables)
