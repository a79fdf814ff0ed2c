"""Choosing on validation, of hand-made runs whose test scores would choose otherwise; the best round, chosen alike."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pytest
from rich.console import Console

from blossom_ray import Run, Scenario, compare
from blossom_ray.blocks import BlockInstance, Scope
from blossom_ray.comparison import formats
from blossom_ray.comparison.comparing import Comparison
from blossom_ray.records import BlockRound, ClientEvaluation, RoundRecord

ALL = "all clients"
LR = "training.optimizer.lr"
FEDERATION = {"data": {"fingerprint": "f", "partition": "p"}}
Make = Callable[..., Run]


@pytest.fixture
def make(small_scenario: Scenario) -> Make:
    """A run in memory with a test and a validation score for each round from 1 on, None where there was none.

    Modality set `acc` has half of each; `clients` are the validation scores of the five clients.
    """

    def build(
        test: Sequence[float | None],
        validation: Sequence[float | None],
        *,
        metric: str = "accuracy",
        tuned: Mapping[int, float] | None = None,
        clients: Sequence[float] | None = None,
        manifest: Mapping[str, Any] = FEDERATION,
        lr: float = 0.05,
        **changes: Any,
    ) -> Run:
        scenario = small_scenario.override({"rounds": len(test), LR: lr, **changes})
        records = []
        untrained = None if set(validation) == {None} else 0.0
        for index, (score, validated) in enumerate(zip([0.0, *test], [untrained, *validation], strict=True)):
            metrics = {}
            for name, value in ((metric, score), (f"validation/{metric}", validated)):
                if value is not None:
                    metrics |= {name: value, f"{name}/acc": value / 2}
            if index in (tuned or {}):
                metrics[f"fine_tuned/{metric}"] = tuned[index]  # type: ignore[index]
            evaluation = tuple(
                ClientEvaluation(
                    client, 10, 0.0, {"accuracy": score, "validation/accuracy": validated}, bytes_down=0, seconds=0.0
                )
                for client, validated in enumerate(clients or ())
            )
            block = BlockRound(BlockInstance("head", Scope.SHARED), 5, 50, 100, 10, 0.0, 0.0)
            records.append(RoundRecord(index, 0.1, (), (), evaluation, metrics, (block,), {"total": 1.0}))
        return Run.from_records(records, scenario, tuple(scenario.profiles()), manifest)

    return build


def the_row(frame: Iterable[Mapping[str, Any]], **wanted: Any) -> Mapping[str, Any]:
    rows = [row for row in frame if all(row[key] == value for key, value in wanted.items())]
    assert len(rows) == 1, rows
    return rows[0]


def scored(found: Comparison, **setting: Any) -> Mapping[str, Any]:
    """The row of scores over all clients."""
    return the_row(found.table.to_dicts(), **{"modalities": ALL, **setting})


def printed(found: Comparison, gain_of: Any = "last5", width: int = 80) -> list[str]:
    console = Console(file=io.StringIO(), width=width, no_color=True)
    console.print(formats.terminal(found, gain_of, width))
    return [line.rstrip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]


# --- the best round -------------------------------------------------------------------------------------------------


def test_the_best_round_is_the_best_on_validation_and_its_test_score_counts(make: Make) -> None:
    found = compare(
        make([0.5, 0.9, 0.4], [0.2, 0.3, 0.8], sharing="full-model"),
        make([0.6, 0.2, 0.9], [0.8, 0.3, 0.1], sharing="local"),
    )
    full, local = (scored(found, sharing=name) for name in ("full-model", "local"))
    assert (full["best"], local["best"]) == (0.4, 0.6)
    assert local["points_best"] == pytest.approx(20.0)
    runs = {row["sharing"]: row["best_round"] for row in found.runs.to_dicts() if row["modalities"] == ALL}
    assert runs == {"full-model": 3, "local": 1}
    # The models of a modality set's clients are those of the same round.
    assert the_row(found.table.to_dicts(), sharing="local", modalities="acc")["best"] == 0.3
    assert "note: best is the test score of the round with the best validation score" in printed(found, "best")
    assert not any("optimistic" in note for note in found.notes)


def test_the_smallest_validation_loss_has_the_best_round(make: Make) -> None:
    found = compare(make([0.5, 0.1, 0.4], [2.0, 3.0, 1.0], metric="loss"), metric="loss")
    assert scored(found)["best"] == 0.4


def test_fine_tuned_scores_have_the_best_of_the_rounds_that_they_were_taken_in(make: Make) -> None:
    run = make([0.1, 0.2, 0.3, 0.4], [0.1, 0.9, 0.3, 0.4], tuned={3: 0.8, 4: 0.7})
    found = compare(run)
    assert scored(found, scoring="plain")["best"] == 0.2
    assert scored(found, scoring="fine-tuned")["best"] == 0.7


def test_best_on_validation_and_best_on_test_are_not_set_against_each_other(make: Make) -> None:
    found = compare(make([0.5, 0.9], [0.2, 0.1], sharing="full-model"), make([0.5, 0.9], [None, None], sharing="local"))
    row = scored(found, sharing="local")
    assert (row["best"], row["points_best"], row["gain_best"], row["points_best_low"]) == (0.9, None, None, None)
    assert row["points_final"] == pytest.approx(0.0)
    notes = [line for line in printed(found, "best", width=200) if line.startswith("note: best")]
    assert [note.partition(":")[2].strip().split(" ")[2] for note in notes] == ["the", "optimistic:", "compared"]
    assert [note.endswith("(1 run)") for note in notes] == [True, True, False]
    assert not any("best is" in line for line in printed(found, "last5"))


def test_validation_scores_are_compared_as_any_metric(make: Make) -> None:
    found = compare(
        make([0.5, 0.9], [0.2, 0.4], sharing="full-model"), make([0.5, 0.9], [0.7, 0.6], sharing="local"),
        metric="validation/accuracy",
    )  # fmt: skip
    assert found.is_share
    row = scored(found, sharing="local")
    assert (row["final"], row["best"], row["points_final"]) == (0.6, 0.7, pytest.approx(20.0))
    assert the_row(found.table.to_dicts(), sharing="local", modalities="acc")["final"] == 0.3
    assert any("chosen on the validation scores that it then reports" in note for note in found.notes)
    assert compare(make([0.5], [0.2], metric="loss"), metric="validation/loss").lower_is_better
