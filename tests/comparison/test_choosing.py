"""Choosing on validation, of hand-made runs whose test scores would choose otherwise; the best round, chosen alike."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from blossom_ray import Run, Scenario, compare
from blossom_ray.core.blocks import BlockInstance, Scope
from blossom_ray.core.evaluations import ClientEvaluation
from blossom_ray.core.records import BlockRound, RoundRecord
from blossom_ray.errors import InputError
from blossom_ray.studies.comparison import formats, panels
from blossom_ray.studies.comparison.choosing import check_choice
from blossom_ray.studies.comparison.comparing import Comparison
from blossom_ray.studies.sweeps.grid import Axis, expand

ALL = "all clients"
LR = "training.optimizer.lr"
FEDERATION = {"data": {"fingerprint": "f", "partition": "p"}}
Make = Callable[..., Run]


@pytest.fixture
def make(small_scenario: Scenario) -> Make:
    """A run in memory with a test and a validation score for each round from 1 on, None where there was none.

    Modality set `acc` has half of each; `clients` are the validation scores of the five clients, `losses` the losses on
    validation by round.
    """

    def build(
        test: Sequence[float | None],
        validation: Sequence[float | None],
        *,
        metric: str = "accuracy",
        tuned: Mapping[int, float] | None = None,
        losses: Sequence[float] = (),
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
            if 0 < index <= len(losses):
                metrics["validation/loss"] = losses[index - 1]
            if index in (tuned or {}):
                metrics[f"fine_tuned/{metric}"] = tuned[index]
            validations = tuple(
                ClientEvaluation(client, 10, 0.0, {"accuracy": score}, bytes_down=0, seconds=0.0)
                for client, score in enumerate(clients or ())
            )
            block = BlockRound(BlockInstance("head", Scope.SHARED), 5, 50, 100, 10, 0.0, 0.0)
            record = RoundRecord(index, 0.1, (), (), (), metrics, (block,), {"total": 1.0}, validation=validations)
            records.append(record)
        return Run.from_records(records, scenario, tuple(scenario.profiles()), manifest)

    return build


# Scheme and rate: test and validation scores of three seeds. On test, each scheme would choose the other rate.
TEST = {
    ("full-model", 0.01): (0.41, 0.42, 0.46), ("full-model", 0.05): (0.81, 0.82, 0.83),
    ("local", 0.01): (0.71, 0.72, 0.73), ("local", 0.05): (0.52, 0.57, 0.53),
}  # fmt: skip
VALIDATED = {
    ("full-model", 0.01): (0.60, 0.63, 0.66), ("full-model", 0.05): (0.50, 0.70, 0.50),
    ("local", 0.01): (0.20, 0.24, 0.25), ("local", 0.05): (0.31, 0.36, 0.32),
}  # fmt: skip


@pytest.fixture
def grid(make: Make) -> list[Run]:
    return [
        make([test], [validated], sharing=sharing, lr=lr, seed=seed)
        for (sharing, lr), scores in TEST.items()
        for seed, (test, validated) in enumerate(zip(scores, VALIDATED[sharing, lr], strict=True))
    ]


def the_row(frame: Iterable[Mapping[str, Any]], **wanted: Any) -> Mapping[str, Any]:
    rows = [row for row in frame if all(row[key] == value for key, value in wanted.items())]
    assert len(rows) == 1, rows
    return rows[0]


def chosen(found: Comparison, **setting: Any) -> Mapping[str, Any]:
    """The row of what was chosen."""
    assert found.choice is not None
    return the_row(found.choice.table.to_dicts(), **setting)


def scored(found: Comparison, **setting: Any) -> Mapping[str, Any]:
    """The row of scores over all clients."""
    return the_row(found.table.to_dicts(), **{"modalities": ALL, **setting})


def notes_on(found: Comparison) -> str:
    assert found.choice is not None
    return "\n".join(found.choice.notes)


def printed(found: Comparison, gain_of: Any = "last5", width: int = 80) -> list[str]:
    console = Console(file=io.StringIO(), width=width, no_color=True)
    console.print(panels.terminal(found, gain_of, width))
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


# --- what is chosen -------------------------------------------------------------------------------------------------


def test_values_are_chosen_on_validation_and_reported_on_test(grid: list[Run]) -> None:
    found = compare(grid, choose="accuracy", tune=[LR])
    assert found.keys == ("sharing",)
    for sharing, lr in (("full-model", 0.01), ("local", 0.05)):
        row = chosen(found, sharing=sharing)
        mean, error = np.mean(VALIDATED[sharing, lr]), stats.sem(VALIDATED[sharing, lr])
        assert (row[LR], row["num_seeds"], row["interval"]) == (str(lr), 3, "seeds")
        limits = stats.t.interval(0.95, 2, mean, error)
        assert [row[f"validation{end}"] for end in ("", "_low", "_high")] == pytest.approx([mean, *limits])
        assert (row["num_values"], row["num_runs"], row["num_rounds"]) == (2, 6, 6)
        assert scored(found, sharing=sharing)["final"] == pytest.approx(np.mean(TEST[sharing, lr]))
    judge = stats.ttest_rel(TEST["local", 0.05], TEST["full-model", 0.01])
    low, high = judge.confidence_interval(0.95)
    row = scored(found, sharing="local")
    points = [100 * x for x in (np.mean(TEST["local", 0.05]) - np.mean(TEST["full-model", 0.01]), low, high)]
    assert [row[f"points_final{end}"] for end in ("", "_low", "_high")] == pytest.approx(points)
    assert row["p_final"] == pytest.approx(judge.pvalue)
    assert row["num_pairs"] == 3


def test_no_test_score_of_what_was_not_chosen_is_shown(grid: list[Run]) -> None:
    found = compare(grid, choose="accuracy", tune=[LR])
    assert found.choice is not None
    runs = [row for row in found.runs.to_dicts() if row["modalities"] == ALL]
    assert {row["final"] for row in runs} == {*TEST["full-model", 0.01], *TEST["local", 0.05]}
    rejected = {*TEST["full-model", 0.05], *TEST["local", 0.01], 0.82, 0.72}
    shown = json.loads(formats.json_text(found))
    for frame in (shown["table"], shown["runs"], shown["choice"]["table"], shown["choice"]["tried"]):
        numbers = [value for row in frame for value in row.values() if isinstance(value, float)]
        assert numbers
        assert not any(math.isclose(number, score) for number in numbers for score in rejected)
    for text in ("\n".join(printed(found)), formats.markdown(found, "final"), formats.latex(found, "final")):
        assert "55.5" not in text  # nor is a mean over what was tried
        assert "82.0" not in text
        assert "72.0" not in text


def test_the_smallest_loss_is_the_best(make: Make) -> None:
    runs = [make([0.5], [loss], metric="loss", lr=lr) for lr, loss in ((0.01, 2.0), (0.05, 1.5), (0.1, 3.0))]
    found = compare(runs, metric="loss", choose="loss", tune=[LR])
    assert (chosen(found)[LR], chosen(found)["validation"]) == ("0.05", 1.5)
    assert found.keys == ()
    assert found.choice is not None
    assert not found.choice.notes


def test_several_keys_are_chosen_together_and_named_by_path_or_label(make: Make) -> None:
    runs = [
        make([0.5], [score], lr=lr, **{"training.local_epochs": epochs})
        for (lr, epochs), score in {(0.01, 1): 0.4, (0.01, 2): 0.9, (0.05, 1): 0.8, (0.05, 2): 0.3}.items()
    ]
    for tune in (["lr", "local_epochs"], ["training.local_epochs", LR]):
        row = chosen(compare(runs, choose="accuracy", tune=tune))
        assert (row[LR], row["training.local_epochs"], row["num_values"]) == ("0.01", "2", 4)
    by_epochs = compare(runs, choose="accuracy", tune="lr")
    assert chosen(by_epochs, **{"training.local_epochs": "1"})[LR] == "0.05"
    assert chosen(by_epochs, **{"training.local_epochs": "2"})[LR] == "0.01"


@pytest.mark.parametrize(("summary", "lr"), [("final", "0.01"), ("last5", "0.05"), ("best", "0.1")])
def test_what_counts_is_the_last_the_mean_of_five_or_the_best(summary: Any, lr: str, make: Make) -> None:
    curves = {
        0.01: [0.0, 0.0, 0.0, 0.0, 0.0, 0.8], 0.05: [0.0, 0.7, 0.7, 0.7, 0.7, 0.7], 0.1: [0.0, 0.9, 0.0, 0.0, 0.0, 0.0]
    }  # fmt: skip
    runs = [make([0.5] * 6, curve, lr=rate) for rate, curve in curves.items()]
    found = compare(runs, choose="accuracy", tune=[LR], choose_by=summary)
    assert chosen(found)[LR] == lr
    # Up to round 2 the last is the best of both.
    assert chosen(compare(runs, choose="accuracy", tune=[LR], choose_by=summary, up_to=2))[LR] == "0.1"


def test_one_seed_has_an_interval_over_its_clients(make: Make) -> None:
    values = [0.1, 0.3, 0.5, 0.7, 0.4]
    runs = [make([0.5], [score], lr=lr, clients=values) for lr, score in ((0.01, 0.4), (0.05, 0.3))]
    row = chosen(compare(runs, choose="accuracy", tune=[LR]))
    assert (row["num_seeds"], row[LR], row["interval"]) == (1, "0.01", "clients")
    draws = np.random.default_rng(0).choice(values, (10_000, 5)).mean(axis=1)
    # Other draws: the means of five such scores are 0.02 apart.
    assert [row["validation_low"], row["validation_high"]] == pytest.approx(
        np.percentile(draws, [2.5, 97.5]), abs=0.021
    )


def test_a_modality_set_alone_may_choose(make: Make) -> None:
    found = compare(
        [make([0.5], [0.4], lr=0.01), make([0.5], [0.6], lr=0.05)], choose="validation/accuracy/acc", tune=[LR]
    )
    assert (chosen(found)[LR], chosen(found)["validation"]) == ("0.05", 0.3)
    assert found.choice is not None
    assert found.choice.metric == "validation/accuracy/acc"


def test_rounds_may_be_chosen_and_each_run_then_counts_by_its_own_end(make: Make) -> None:
    runs = [
        make(test[:rounds], validation[:rounds], sharing=sharing)
        for sharing, test, validation in (
            ("full-model", [0.2, 0.3, 0.4, 0.5], [0.9, 0.8, 0.7, 0.6]),
            ("local", [0.2, 0.4, 0.6, 0.8], [0.1, 0.2, 0.3, 0.4]),
        )
        for rounds in (2, 4)
    ]  # fmt: skip
    found = compare(runs, choose="accuracy", tune=["rounds"], choose_by="final")
    assert [chosen(found, sharing=name)["rounds"] for name in ("full-model", "local")] == ["2", "4"]
    assert chosen(found, sharing="local")["num_rounds"] == 6
    assert scored(found, sharing="local")["points_final"] == pytest.approx(100 * (0.8 - 0.3))


# --- what is said ---------------------------------------------------------------------------------------------------


def test_equal_values_the_first_of_the_grid_is_taken(make: Make) -> None:
    # The means of 0.1, 0.2, 0.6 and of 0.3, 0.3, 0.3 differ by rounding.
    scores = {0.05: (0.1, 0.2, 0.6), 0.01: (0.3, 0.3, 0.3), 0.1: (0.2, 0.2, 0.2)}
    runs = [make([0.5], [score], lr=lr, seed=seed) for lr, each in scores.items() for seed, score in enumerate(each)]
    found = compare(runs, choose="accuracy", tune=[LR])
    assert chosen(found)[LR] == "0.05"
    assert "lr 0.05 and lr 0.01 are equal on validation; the first is taken" in notes_on(found)
    assert chosen(compare(reversed(runs), choose="accuracy", tune=[LR]))[LR] == "0.01"


def test_a_value_at_the_edge_of_the_grid_is_said(grid: list[Run], make: Make) -> None:
    notes = notes_on(compare(grid, choose="accuracy", tune=[LR]))
    beyond = "of the 2 tried, so a better one may lie beyond"
    assert f"lr 0.01 is the smallest {beyond} (for full-model)" in notes
    assert f"lr 0.05 is the largest {beyond} (for local)" in notes
    words = [
        make([0.5], [score], **{"model.fusion": {"kind": kind, "dim": 8}})
        for kind, score in (("attention", 0.2), ("concat", 0.4))
    ]
    assert notes_on(compare(words, choose="accuracy", tune=["fusion"])) == ""


FAILED = {**FEDERATION, "status": "failed", "error": {"message": "client 3, round 1: no luck"}}


def test_values_of_which_a_run_failed_are_not_chosen_from(make: Make) -> None:
    runs = [make([0.5], [0.3], lr=0.01, seed=seed) for seed in (0, 1)]
    runs += [make([0.5], [0.9], lr=0.05), make([0.5], [0.9], lr=0.05, seed=1, manifest=FAILED)]
    runs += [make([0.5], [math.inf], lr=0.1), make([0.5], [0.8], lr=0.1, seed=1)]
    found = compare(runs, choose="accuracy", tune=[LR])
    row = chosen(found)
    assert (row[LR], row["num_values"], row["num_runs"], row["num_rounds"]) == ("0.01", 3, 6, 6)
    notes = notes_on(found)
    assert "lr 0.05 is not chosen from: seed 1: failed: client 3, round 1: no luck" in notes
    assert "lr 0.1 is not chosen from: seed 0: a run in memory ends with no finite validation/accuracy" in notes
    assert found.choice is not None
    tried = found.choice.tried.to_dicts()
    assert [row["is_chosen"] for row in tried] == [True, False, False]
    assert [row["note"] is None for row in tried] == [True, False, False]
    assert [status for _, status in found.unused] == ["failed: client 3, round 1: no luck"]


def test_a_setting_without_a_choice_is_said_and_not_compared(make: Make) -> None:
    runs = [make([0.4], [0.3], sharing="full-model", lr=lr) for lr in (0.01, 0.05)]
    runs += [make([0.5], [0.3], sharing="local", lr=lr, manifest=FAILED) for lr in (0.01, 0.05)]
    found = compare(runs, choose="accuracy", tune=[LR])
    assert chosen(found, sharing="local")[LR] is None
    assert "local: nothing is chosen, since no values have a score for every seed" in notes_on(found)
    assert set(found.table["sharing"]) == {"full-model"}
    assert any("local" in line and "- " in line for line in printed(found))
    with pytest.raises(InputError, match="seed 0: failed: client 3, round 1: no luck; local: nothing is chosen"):
        compare([*runs[2:], make([0.4], [0.3], sharing="full-model", manifest=FAILED)], choose="accuracy", tune=[LR])


def test_uneven_budgets_are_said(grid: list[Run], make: Make) -> None:
    more = [*grid, *(make([0.5], [0.1], sharing="local", lr=0.1, seed=seed) for seed in range(3))]
    found = compare(more, choose="accuracy", tune=[LR])
    notes = notes_on(found)
    assert (
        "budgets differ: full-model had 2 values in 6 runs of 6 rounds, local had 3 values in 9 runs of 9 rounds"
    ) in notes
    assert "not every setting was tuned over the same values" in notes
    even = notes_on(compare(grid, choose="accuracy", tune=[LR]))
    assert "budgets" not in even
    assert "same values" not in even
    other = [run for run in grid if (run.scenario.sharing, run.scenario.training.optimizer.lr) != ("local", 0.01)]
    other += [make([0.5], [0.1], sharing="local", lr=0.1, seed=seed) for seed in range(3)]
    notes = notes_on(compare(other, choose="accuracy", tune=[LR]))
    assert "budgets" not in notes
    assert "same values" in notes


# --- formats --------------------------------------------------------------------------------------------------------


def test_the_terminal_shows_the_choice_then_the_comparison(grid: list[Run]) -> None:
    lines = printed(compare(grid, choose="accuracy", tune=[LR]))
    assert all(len(line) <= 80 for line in lines if not line.startswith("note"))
    words = [" ".join(line.split()) for line in lines]
    assert words[0] == "chosen by validation/accuracy in %, last 5, mean over seeds"
    assert words[2] == "sharing lr validation values runs rounds"
    # s = 3, half = 4.3027 * 3 / sqrt(3) = 7.5; s = 2.6458, half = 6.6.
    assert words[4] == "full-model 0.01 63.0 ± 7.5 2 6 6"
    assert words[5] == "local 0.05 33.0 ± 6.6 2 6 6"
    title = words.index("accuracy in %; points and gain in % of last 5 over sharing full-model; 3 seeds")
    assert title > 6
    assert any(line.startswith("full-model 43.0 ±") for line in words[title:])
    assert any(line.startswith("local 54.0 ±") for line in words[title:])


def test_markdown_and_latex_have_two_tables(grid: list[Run]) -> None:
    found = compare(grid, choose="accuracy", tune=[LR])
    lines = [line for line in formats.markdown(found, "last5").splitlines() if line.startswith("|")]
    assert lines[0] == "| sharing | lr | validation | values | runs | rounds |"
    assert lines[2] == "| full-model | 0.01 | 63.0 ± 7.5 | 2 | 6 | 6 |"
    assert lines[4].startswith("| sharing | modalities | seeds |")
    text = formats.latex(found, "last5")
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 2
    assert r"\begin{tabular}{lrrrrr}" in text
    assert r"local & 0.05 & 33.0 $\pm$ 6.6 & 2 & 6 & 6 \\" in text


def test_csv_and_json_have_values_and_budget(grid: list[Run]) -> None:
    found = compare(grid, choose="accuracy", tune=[LR])
    rows = list(csv.DictReader(io.StringIO(formats.csv(found))))
    row = the_row(rows, sharing="local", modalities=ALL)
    assert (row[LR], row["num_values"], row["num_runs"], row["num_rounds"]) == ("0.05", "2", "6", "6")
    assert float(row["validation"]) == pytest.approx(0.33)
    assert float(row["final"]) == pytest.approx(0.54)
    choice = json.loads(formats.json_text(found))["choice"]
    assert (choice["metric"], choice["summary"], choice["keys"]) == ("validation/accuracy", "last5", [LR])
    assert [row["is_chosen"] for row in choice["tried"]] == [True, False, False, True]
    assert [row[LR] for row in choice["table"]] == ["0.01", "0.05"]
    assert "choice" not in json.loads(formats.json_text(compare(grid)))


def test_over_other_keys_choices_are_named_and_budgets_added(grid: list[Run], make: Make) -> None:
    more = [
        make([0.5], [0.9 if lr == 0.05 else 0.1], sharing=sharing, lr=lr, seed=seed, **{"training.local_epochs": 2})
        for sharing in ("full-model", "local") for lr in (0.01, 0.05) for seed in range(3)
    ]  # fmt: skip
    found = compare(grid, more, choose="accuracy", tune=[LR], by=["sharing"])
    row = scored(found, sharing="full-model")
    assert (row[LR], row["num_values"], row["num_runs"], row["num_rounds"]) == ("0.01; 0.05", 4, 12, 12)
    assert (row["validation"], row["validation_low"]) == (pytest.approx((0.63 + 0.9) / 2), None)
    assert row["final"] == pytest.approx((0.43 + 0.5) / 2)


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"choose": "acuracy"}, r"choose is 'acuracy'; expected a score on validation: accuracy; did you mean "),
        ({"choose": "held_out/accuracy"}, "choose is 'held_out/accuracy'; expected a score on validation: accuracy"),
        ({"choose": "bytes_up"}, "choose is 'bytes_up'; expected a score on validation: accuracy"),
        ({"choose": "loss"}, "choose is 'loss'; expected a score on validation: accuracy"),
        ({"tune": []}, f"tune names no key to choose values of; expected some in which the runs differ: sharing, {LR}"),
        ({"tune": ["seed"]}, "tune is 'seed'; expected keys in which the runs differ"),
        ({"tune": "training.local_epochs"}, "tune is 'training.local_epochs'; expected keys in which the runs differ"),
        ({"choose": None}, "tune is given without choose; expected the score on validation data to choose by, too"),
        ({"metric": "validation/accuracy"}, "the metric is 'validation/accuracy', which values are chosen on; "),
    ],
)  # fmt: skip
def test_what_cannot_be_chosen(options: dict[str, Any], message: str, grid: list[Run]) -> None:
    with pytest.raises(InputError, match=message):
        compare(grid, **{"choose": "accuracy", "tune": [LR], **options})


def test_runs_without_validation_rows_are_refused(grid: list[Run], make: Make) -> None:
    without = make([0.5], [None], sharing="local", lr=0.1)
    with pytest.raises(
        InputError, match=r"has no scores on validation rows; expected runs with data\.validation_fraction"
    ):
        compare([*grid, without], choose="accuracy", tune=[LR])


@pytest.mark.parametrize(
    ("asked", "column"),
    [
        ("accuracy", "validation/accuracy"),
        ("validation/loss", "validation/loss"),
        ("macro_f1_all_pooled", "validation/macro_f1_all_pooled"),
        ("accuracy/acc+gyro", "validation/accuracy/acc+gyro"),
        ("fine_tuned/accuracy", "validation/fine_tuned/accuracy"),
        ("accuracy/acc+video", None),
        ("held_out/accuracy", None),
        ("train_loss", None),
        ("rmse", None),
    ],
)
def test_what_a_sweep_can_be_chosen_by_is_known_before_it_runs(
    asked: str, column: str | None, small_scenario: Scenario
) -> None:
    changes = {"data.validation_fraction": 0.2, "evaluation.fine_tune": {"every": 1}}
    cells = expand([small_scenario.override(changes)], [Axis(LR, (0.01, 0.05))])
    if column is not None:
        assert check_choice(cells, asked, ["lr"]) == column
        return
    with pytest.raises(InputError, match="expected a score on validation: accuracy, balanced_accuracy"):
        check_choice(cells, asked, ["lr"])


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


# --- test splits that are scored once, and early stopping -----------------------------------------------------------

ONCE = {"data.validation_fraction": 0.2, "evaluation.split": "validation"}
STOP = {"data.validation_fraction": 0.2, "rounds": 8, "stop": {"patience": 2}}


def test_a_test_split_that_was_scored_once_has_that_score_as_final_and_no_other(make: Make) -> None:
    found = compare(
        make([None, None, 0.5], [0.6, 0.9, 0.8], sharing="full-model", **ONCE),
        make([None, None, 0.7], [0.4, 0.2, 0.3], sharing="local", **ONCE),
        target=0.1,
    )  # fmt: skip
    row = scored(found, sharing="local")
    assert (row["final"], row["points_final"]) == (0.7, pytest.approx(20.0))
    for name in ("last5", "best"):
        columns = [row[f"{start}{name}{end}"] for start in ("", "points_", "gain_") for end in ("", "_low", "_high")]
        assert [*columns, row[f"unweighted_{name}"], row[f"p_{name}"]] == [None] * 11
    assert (row["last5_rounds"], row["rounds_to_target"], row["num_reached"]) == (None, None, 0)
    assert found.summary == "final"
    assert any("has that score as final, and no last 5, best or rounds to a target" in note for note in found.notes)
    assert not any(note.startswith(("*", "best")) for note in found.notes)
    assert any(" ".join(line.split()).startswith("local 70.0 - ") for line in printed(found, "final", width=120))
    assert printed(found, "last5")
    assert '"best_round": null' in formats.json_text(found)
    whole = compare(make([0.5, 0.6], [0.1, 0.2], **{"data.validation_fraction": 0.2}))
    assert (whole.summary, scored(whole)["last5"]) == ("last5", pytest.approx(0.55))


def test_validation_scores_of_such_runs_are_compared_as_ever(make: Make) -> None:
    found = compare(make([None, 0.5], [0.6, 0.9], **ONCE), metric="validation/accuracy", target=0.8)
    row = scored(found)
    assert (row["last5"], row["best"], row["rounds_to_target"]) == (pytest.approx(0.75), 0.9, 2)


def test_values_are_chosen_where_the_test_split_was_scored_once(make: Make) -> None:
    runs = [make([None, test], [0.1, score], lr=lr, **ONCE) for lr, test, score in ((0.01, 0.4, 0.9), (0.05, 0.9, 0.5))]
    found = compare(runs, choose="accuracy", tune=[LR])
    assert (chosen(found)[LR], chosen(found)["validation"], scored(found)["final"]) == ("0.01", pytest.approx(0.5), 0.4)


def test_runs_that_stop_early_count_by_their_own_best_rounds(make: Make) -> None:
    """The best round of one is 2 of 4, of the other 1 of 3; test splits were scored with its blocks alone."""
    once = {**STOP, "evaluation.split": "validation"}
    found = compare(
        make([None, 0.5, None, None], [0.6, 0.9, 0.8, 0.7], sharing="full-model", tuned={2: 0.6}, **once),
        make([0.7, None, None], [0.4, 0.2, 0.3], sharing="local", tuned={1: 0.8}, **once),
    )
    assert scored(found, sharing="local", scoring="plain")["points_final"] == pytest.approx(20.0)
    assert scored(found, sharing="local", scoring="fine-tuned")["points_final"] == pytest.approx(30.0)
    assert scored(found, sharing="full-model", scoring="fine-tuned")["points_final"] == pytest.approx(10.0)
    assert (found.keys, found.summary) == (("sharing", "scoring"), "final")
    assert any(note.startswith("runs that stop early (stop) count by their own") for note in found.notes)


def test_the_best_round_of_a_run_that_stopped_is_the_one_by_which_it_did(make: Make) -> None:
    watching = {**STOP, "stop": {"metric": "loss", "patience": 1}}
    found = compare(
        make([0.3, 0.5, 0.4], [0.9, 0.5, 0.5], losses=[2.0, 1.0, 3.0], sharing="full-model", **watching),
        make([0.3, 0.4, 0.6, 0.1], [0.9, 0.5, 0.5, 0.5], losses=[3.0, 2.0, 1.0, 4.0], sharing="local", **watching),
    )
    full, local = (scored(found, sharing=name) for name in ("full-model", "local"))
    assert (full["best"], local["best"], local["points_best"]) == (0.5, 0.6, pytest.approx(10.0))
    assert (full["final"], local["final"], local["points_final"]) == (0.4, 0.1, pytest.approx(-30.0))
    assert found.summary == "best"
    assert local["gain_best_rounds"] is None


def test_runs_that_stop_early_are_chosen_by_their_best_rounds(make: Make) -> None:
    runs = [
        make([0.3, 0.4, 0.5], [0.9, 0.1, 0.1], lr=0.01, **STOP),
        make([0.6, 0.7, 0.8], [0.5, 0.8, 0.8], lr=0.05, **STOP),
    ]
    found = compare(runs, choose="accuracy", tune=[LR])
    assert found.choice is not None
    assert found.choice.summary == "best"
    assert (chosen(found)[LR], chosen(found)["num_rounds"], scored(found)["best"]) == ("0.01", 6, 0.3)
