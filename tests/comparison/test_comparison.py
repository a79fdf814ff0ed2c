"""Comparisons of hand-made runs: gains, intervals, pairs, what a score cost, what is not used."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from rich.console import Console
from scipy import stats

from blossom_ray import Run, Scenario, compare, personalization_gain, simulate
from blossom_ray.core.blocks import BlockInstance, Scope
from blossom_ray.core.evaluations import ClientEvaluation
from blossom_ray.core.records import BlockRound, RoundRecord
from blossom_ray.errors import InputError, RunFolderError
from blossom_ray.reading.writer import scenario_yaml
from blossom_ray.runs.writer import RunWriter
from blossom_ray.studies.comparison import formats, panels
from blossom_ray.studies.comparison.comparing import Comparison, Question, compare_entries
from blossom_ray.studies.comparison.entries import collect

ALL = "all clients"
FEDERATION = {"data": {"fingerprint": "f", "partition": "p"}}
Make = Callable[..., Run]


@pytest.fixture
def make(small_scenario: Scenario) -> Make:
    """A run in memory whose clients all have the same score in a round, but for what `clients` says of the last one.

    `tuned` are scores after fine-tuning by round.

    The five clients have 10 test samples each; a round brings 100 bytes down and 10 up, round 0 down alone.
    """

    def build(
        scores: Sequence[float | None],
        *,
        metric: str = "accuracy",
        tuned: Mapping[int, float] | None = None,
        clients: Sequence[float] | None = None,
        manifest: Mapping[str, Any] = FEDERATION,
        **changes: Any,
    ) -> Run:
        scenario = small_scenario.override({"rounds": len(scores), **changes})
        profiles = tuple(scenario.profiles())
        records = []
        for index, score in enumerate([0.0, *scores]):
            per_client = [score] * 5
            if clients is not None and index == len(scores):
                per_client = list(clients)
            evaluation = () if score is None else tuple(evaluated(k, s, metric) for k, s in enumerate(per_client))
            metrics = {} if score is None else {metric: score, f"{metric}/acc": score, f"{metric}/acc+gyro": score / 2}
            if index in (tuned or {}):
                metrics[f"fine_tuned/{metric}"] = tuned[index]
            block = BlockRound(BlockInstance("head", Scope.SHARED), 5, 50, 100, 10 * (index > 0), 0.0, 0.0)
            records.append(RoundRecord(index, 0.1, (), (), evaluation, metrics, (block,), {"total": 1.0}))
        return Run.from_records(records, scenario, profiles, manifest)

    return build


def evaluated(client: int, score: float | None, metric: str) -> ClientEvaluation:
    names = ("accuracy", "balanced_accuracy", "macro_f1_present", "macro_f1_all")
    loss = score if metric == "loss" else 0.0
    return ClientEvaluation(client, 10, loss or 0.0, dict.fromkeys(names, score), bytes_down=0, seconds=0.0)


def the_row(comparison: Comparison, frame: str = "table", **wanted: Any) -> dict[str, Any]:
    wanted = {"modalities": ALL, **wanted}
    rows = [
        row for row in getattr(comparison, frame).to_dicts() if all(row[key] == value for key, value in wanted.items())
    ]
    assert len(rows) == 1, rows
    return rows[0]


# --- scores ---------------------------------------------------------------------------------------------------------


def test_final_best_and_last_five_leave_out_round_0_and_rounds_without_scores(make: Make) -> None:
    row = the_row(compare(make([0.9, 0.1, None, 0.2, 0.3, 0.4, 0.5])))
    assert (row["final"], row["best"]) == (0.5, 0.9)
    assert row["last5"] == pytest.approx((0.1 + 0.2 + 0.3 + 0.4 + 0.5) / 5)
    assert the_row(compare(make([0.2, 0.4])))["last5"] == pytest.approx(0.3)


def test_modality_sets_have_rows_of_their_own(make: Make) -> None:
    found = compare(make([0.2, 0.6]))
    assert [row["modalities"] for row in found.table.to_dicts()] == [ALL, "acc", "acc+gyro"]
    assert the_row(found, modalities="acc+gyro")["final"] == 0.3


def test_lower_is_better(make: Make) -> None:
    found = compare(
        make([0.5, 0.25, 1.0], metric="loss", sharing="full-model"),
        make([0.5, 0.75, 0.5], metric="loss", sharing="local"),
        metric="loss", target=0.4,
    )  # fmt: skip
    full, local = (the_row(found, sharing=name) for name in ("full-model", "local"))
    assert (full["best"], full["rounds_to_target"], local["rounds_to_target"]) == (0.25, 2, None)
    # Half the loss is a gain of 50 percent.
    assert local["gain_final"] == pytest.approx(50.0)
    assert "lower scores are better here; positive points and gains are lower scores" in found.notes


def test_rounds_and_bytes_to_a_target(make: Make) -> None:
    runs = [make(scores, seed=seed) for seed, scores in enumerate(([0.2, 0.7, 0.3], [0.2, 0.3, 0.8], [0.1, 0.1, 0.1]))]
    found = compare(*runs, target=0.7)
    first = the_row(found, "runs", seed=0)
    # Round 0 sends the untrained model, and its bytes count.
    assert (first["rounds_to_target"], first["bytes_down_to_target"], first["bytes_up_to_target"]) == (2, 300, 20)
    row = the_row(found)
    assert (row["rounds_to_target"], row["bytes_down_to_target"], row["num_reached"]) == (3, 400, 2)
    assert the_row(compare(runs[0], runs[2], target=0.7))["rounds_to_target"] is None


def test_up_to_a_round_the_rest_does_not_count(make: Make) -> None:
    runs = [make([0.2, 0.4, 0.9], sharing="full-model"), make([0.3, 0.5, 0.6], sharing="local")]
    found = compare(*runs, up_to=2, target=0.8)
    local = the_row(found, sharing="local")
    assert (local["final"], local["best"], local["rounds_to_target"]) == (0.5, 0.5, None)
    assert local["last5"] == pytest.approx(0.4)
    assert local["gain_final"] == pytest.approx(25.0)
    assert panels.comparison_title(found, "final").endswith("up to round 2")
    assert compare(*runs, up_to=3).table.equals(compare(*runs).table)


def test_up_to_a_round_before_the_first_is_refused(make: Make) -> None:
    with pytest.raises(InputError, match="up_to is 0; expected a round from 1 on"):
        compare(make([0.2]), up_to=0)


# --- gains and intervals --------------------------------------------------------------------------------------------


def test_gains_are_paired_by_seed(make: Make) -> None:
    """Per seed +50, +10 and +30 percent: mean 30, s = 20, half = 4.3027 * 20 / sqrt(3) = 49.683."""
    pairs = ((0.4, 0.6), (0.5, 0.55), (0.6, 0.78))
    runs = [make([score], seed=seed, sharing=name) for seed, pair in enumerate(pairs)
            for name, score in zip(("full-model", "private-head"), pair, strict=True)]  # fmt: skip
    found = compare(*runs)
    assert (found.keys, found.baseline) == (("sharing",), {"sharing": "full-model"})
    row = the_row(found, sharing="private-head")
    assert (row["num_seeds"], row["num_pairs"], row["interval"]) == (3, 3, "seeds")
    assert row["gain_final"] == pytest.approx(30.0)
    assert (row["gain_final_low"], row["gain_final_high"]) == pytest.approx((30 - 49.683, 30 + 49.683), abs=1e-3)
    assert row["final"] == pytest.approx((0.6 + 0.55 + 0.78) / 3)
    assert the_row(found, "runs", sharing="private-head", seed=1)["gain_final"] == pytest.approx(10.0)
    assert the_row(found, sharing="full-model")["gain_final"] is None


def test_the_gain_is_that_of_the_design(make: Make) -> None:
    found = compare(make([0.31], sharing="full-model"), make([0.47], sharing="local"))
    assert the_row(found, sharing="local")["gain_final"] == pytest.approx(personalization_gain(0.47, 0.31))


def test_one_seed_has_an_interval_over_clients_that_pairs_them(make: Make) -> None:
    # Every client gains 20 percent, so every resample does, however far the clients are apart.
    base = [0.1, 0.3, 0.5, 0.7, 0.4]
    better = [1.2 * score for score in base]
    found = compare(make([0.4], sharing="full-model", clients=base), make([0.48], sharing="local", clients=better))
    row = the_row(found, sharing="local")
    assert row["interval"] == "clients"
    assert (row["gain_final"], row["gain_final_low"], row["gain_final_high"]) == pytest.approx((20.0, 20.0, 20.0))
    assert row["final_low"] < 0.48 < row["final_high"]
    assert any("one seed" in note for note in found.notes)
    # The clients of one modality set alone: two of `acc`, scored 0.12 and 0.36.
    acc = the_row(found, sharing="local", modalities="acc")
    assert (acc["final_low"], acc["final_high"]) == pytest.approx((0.12, 0.36))


def test_a_baseline_of_zero_has_no_gain(make: Make) -> None:
    found = compare(make([0.0], sharing="full-model"), make([0.5], sharing="local"))
    row = the_row(found, sharing="local")
    assert (row["gain_final"], row["num_pairs"], row["final"]) == (None, 1, 0.5)
    assert row["points_final"] == pytest.approx(50.0)
    assert "the baseline scores 0 or less, so there is no gain in percent" in found.notes


def test_other_keys_stay_as_they_are_in_a_pair(make: Make) -> None:
    runs = [
        make([score], **{"sharing": sharing, "model.fusion": {"kind": fusion, "dim": 8}})
        for (sharing, fusion), score in {
            ("full-model", "attention"): 0.4, ("full-model", "concat"): 0.5,
            ("local", "attention"): 0.6, ("local", "concat"): 0.6,
        }.items()
    ]  # fmt: skip
    found = compare(*runs)
    assert found.keys == ("model.fusion.kind", "sharing")
    gains = {row["model.fusion.kind"]: row["gain_final"] for row in found.table.to_dicts()
             if row["sharing"] == "local" and row["modalities"] == ALL}  # fmt: skip
    assert gains == pytest.approx({"attention": 50.0, "concat": 20.0})
    averaged = the_row(compare(*runs, by=["sharing"]), sharing="local")
    assert averaged["gain_final"] == pytest.approx(35.0)
    fusions = compare(*runs, baseline={"model.fusion.kind": "concat"})
    assert the_row(fusions, **{"sharing": "full-model", "model.fusion.kind": "attention"})["gain_final"] == (
        pytest.approx(-20.0)
    )


@pytest.mark.parametrize(
    ("manifest", "note"),
    [
        ({"data": {"fingerprint": "g", "partition": "p"}}, "had another data, so they are not paired"),
        ({"data": {"fingerprint": "f", "partition": "q"}}, "had another partition, so they are not paired"),
        (
            {"data": {"fingerprint": "f", "partition": "p", "observation": "o"}},
            "had another pattern of observed rows, so they are not paired",
        ),
        ({}, "a run does not say which federation it had, so it is not paired"),
    ],
)
def test_runs_on_other_federations_are_not_paired(manifest: dict[str, Any], note: str, make: Make) -> None:
    found = compare(make([0.4], sharing="full-model"), make([0.5], sharing="local", manifest=manifest))
    assert the_row(found, sharing="local")["gain_final"] is None
    assert note in str(the_row(found, "runs", sharing="local")["note"])
    assert any(note in each for each in found.notes)


def test_runs_that_are_to_differ_in_what_is_observed_are_paired(make: Make) -> None:
    data = {"fingerprint": "f", "partition": "p"}
    whole = make([0.4], **{"data.observed": {"acc": 1.0}}, manifest={"data": data})
    half = make([0.3], **{"data.observed": {"acc": 0.5}}, manifest={"data": {**data, "observation": "o"}})
    found = compare(whole, half, baseline={"data.observed.acc": 1.0})
    assert the_row(found, **{"data.observed.acc": "0.5"})["gain_final"] == pytest.approx(-25.0)


def test_where_parts_of_rows_vary_the_baseline_is_that_all_are_observed_in_testing(make: Make) -> None:
    shares = {(1.0, 1.0): 0.8, (1.0, 0.5): 0.6, (0.5, 1.0): 0.5, (0.5, 0.5): 0.45}
    runs = [
        make([score], **{"data.observed": {"acc": {"train": train, "test": test}}})
        for (train, test), score in shares.items()
    ]
    found = compare(*runs)
    assert found.baseline == {"data.observed.acc.test": "1.0"}
    gains = [the_row(found, **{"data.observed.acc.train": train, "data.observed.acc.test": "0.5"}) for train in
             ("1.0", "0.5")]  # fmt: skip
    assert [row["gain_final"] for row in gains] == pytest.approx([-25.0, -10.0])
    assert compare(runs[1], runs[3]).baseline == {"data.observed.acc.train": "1.0"}


def test_parts_of_rows_of_one_of_several_data_sets_vary_as_those_of_the_only_one(make: Make) -> None:
    data = {name: {"dataset": "synthetic", "modalities": {"acc": {"shape": (8, 2)}}} for name in ("one", "two")}
    tasks = {"shape": {"data": "one", "labels": "class"}, "form": {"data": "two", "labels": "class"}}
    several: dict[str, Any] = {
        "data": None, "datasets": data, "tasks": tasks, "model.encoders": {"acc": {"kind": "mlp"}},
        **{f"clients.{place}": {"count": 2, "modalities": ["acc"], "task": task}
           for place, task in enumerate(("shape", "shape", "form"))},
    }  # fmt: skip
    runs = []
    for share, score in ((1.0, 0.8), (0.5, 0.6)):
        changes = {**several, "datasets.one.observed": {"acc": {"train": 1.0, "test": share}}}
        manifest = {"data": {**FEDERATION["data"], "observation": str(share)}}
        runs.append(make([score], metric="shape/accuracy", manifest=manifest, **changes))
    entries = [  # As cells of a sweep over the shares.
        replace(entry, given={"datasets.one.observed.acc.test": share})
        for entry, share in zip(collect(runs), (1.0, 0.5), strict=True)
    ]
    found = compare_entries(entries, Question(metric="shape/accuracy"))
    assert found.baseline == {"datasets.one.observed.acc.test": "1.0"}
    assert the_row(found, **{"datasets.one.observed.acc.test": "0.5"})["gain_final"] == pytest.approx(-25.0)


def test_a_seed_without_its_baseline_is_no_pair(make: Make) -> None:
    found = compare(
        make([0.4], sharing="full-model"), make([0.5], sharing="local"), make([0.9], sharing="local", seed=1)
    )
    row = the_row(found, sharing="local")
    assert (row["num_seeds"], row["num_pairs"], row["gain_final"]) == (2, 1, pytest.approx(25.0))
    assert any("seed 1: there is no finished run of the baseline" in note for note in found.notes)


def test_scores_after_fine_tuning_are_measured_against_the_plain_baseline(small_scenario: Scenario) -> None:
    tuned = small_scenario.override({"evaluation.fine_tune": {"every": 2}})
    found = compare(*(simulate(tuned.override({"sharing": name})) for name in ("full-model", "local")))
    assert found.keys == ("sharing", "scoring")
    plain = the_row(found, sharing="full-model", scoring="plain")
    fine = the_row(found, sharing="full-model", scoring="fine-tuned")
    assert plain["gain_final"] is None
    assert fine["points_final"] == pytest.approx(100 * (fine["final"] - plain["final"]))
    assert the_row(found, sharing="local", scoring="plain")["points_final"] is not None


RISING = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]


@pytest.mark.parametrize(
    ("tuned", "gains", "rounds"),
    [
        pytest.param({8: 0.9}, (12.5, 12.5, 12.5), (None, "8", None), id="the last round alone"),
        # Over rounds 3, 6 and 8 the plain scores have the mean 17/30, the fine-tuned ones 22/30.
        pytest.param(
            {3: 0.5, 6: 0.8, 8: 0.9}, (12.5, 100 * 5 / 17, 12.5), (None, "3, 6, 8", None), id="every third round"
        ),
        # The best of two rounds is set against the best of the same two.
        pytest.param({2: 0.8, 4: 0.6}, (50.0, 100 * 4 / 3, 100.0), ("4", "2, 4", "2, 4"), id="none in the end"),
        pytest.param(dict(enumerate(RISING, 1)), (0.0, 0.0, 0.0), (None, None, None), id="every round"),
    ],
)
def test_a_gain_is_over_the_rounds_that_both_were_scored_in(
    tuned: dict[int, float],
    gains: tuple[float, ...],
    rounds: tuple[str | None, ...],
    make: Make,
) -> None:
    found = compare(make(RISING, sharing="full-model", tuned=tuned), make(RISING, sharing="local", tuned=tuned))
    for frame in ("runs", "table"):
        for sharing in ("full-model", "local"):
            row = the_row(found, frame, sharing=sharing, scoring="fine-tuned")
            assert [row[f"gain_{name}"] for name in ("final", "last5", "best")] == pytest.approx(gains)
            assert tuple(row[f"gain_{name}_rounds"] for name in ("final", "last5", "best")) == rounds
        assert the_row(found, frame, sharing="local", scoring="plain")["gain_last5"] == pytest.approx(0.0)
    marked = any(note.startswith("* gain over the rounds alone that both") for note in found.notes)
    assert marked == any(rounds)
    for text in ("\n".join(printed(found)), formats.markdown(found, "last5"), formats.latex(found, "last5")):
        assert f"{gains[1]:+.1f} *" in text.replace("\\*", "*") or rounds[1] is None


def test_the_interval_over_clients_is_of_the_rounds_that_both_were_scored_in(make: Make) -> None:
    # In round 3 alone the gain is 50 %, whichever clients are drawn.
    found = compare(make([0.2, 0.9, 0.4], sharing="full-model"), make([None, None, 0.6], sharing="local"))
    row = the_row(found, sharing="local")
    assert [row[f"gain_last5{end}"] for end in ("", "_low", "_high")] == pytest.approx([50.0] * 3)
    assert (row["last5_rounds"], row["gain_last5_rounds"]) == ("3", "3")


def test_without_common_rounds_there_is_no_gain(make: Make) -> None:
    found = compare(make([0.2, None], sharing="full-model"), make([None, 0.6], sharing="local"))
    row = the_row(found, sharing="local")
    assert (row["final"], row["gain_final"], row["num_pairs"]) == (0.6, None, 0)
    assert any("have no scored rounds in common" in note for note in found.notes)


def test_a_baseline_of_fewer_rounds_is_compared_by_where_it_ended(make: Make) -> None:
    runs = [make(RISING[:4]), make(RISING)]
    row = the_row(compare(*runs, baseline={"rounds": 4}), rounds="8")
    assert (row["gain_final"], row["gain_final_rounds"]) == (pytest.approx(100.0), None)


def test_plain_and_fine_tuned_scores_are_never_averaged(make: Make) -> None:
    runs = [
        make([0.4, 0.4], sharing=sharing, tuned={2: score}, **{"training.local_epochs": epochs})
        for sharing, score in (("full-model", 0.6), ("local", 0.8)) for epochs in (1, 2)
    ]  # fmt: skip
    for by in (["sharing"], ["sharing", "scoring"], ["scoring", "sharing"]):
        found = compare(*runs, by=by)
        assert set(found.keys) == {"sharing", "scoring"}
        plain, tuned = (the_row(found, sharing="full-model", scoring=name) for name in ("plain", "fine-tuned"))
        assert (plain["final"], plain["gain_last5"]) == (pytest.approx(0.4), None)
        assert (tuned["final"], tuned["gain_last5"]) == (pytest.approx(0.6), pytest.approx(50.0))
    assert compare(*runs, by=["training.local_epochs"]).keys == ("training.local_epochs", "scoring")


# --- points, p and percent ------------------------------------------------------------------------------------------

CLASSES = {"data": {**FEDERATION["data"], "task": "classification", "num_classes": 10}}


def test_points_are_paired_by_seed_and_p_is_adjusted_for_all_comparisons(make: Make) -> None:
    base = [0.40, 0.50, 0.60, 0.45]
    schemes = {"private-head": [0.5, 0.65, 0.68, 0.6], "local": [0.42, 0.5, 0.7, 0.4]}
    runs = [make([score], sharing="full-model", seed=seed) for seed, score in enumerate(base)]
    runs += [make([score], sharing=name, seed=seed) for name, scores in schemes.items()
             for seed, score in enumerate(scores)]  # fmt: skip
    found = compare(*runs)
    p_values = []
    for name, scores in schemes.items():
        for modalities, factor in ((ALL, 100), ("acc", 100), ("acc+gyro", 50)):
            row = the_row(found, sharing=name, modalities=modalities)
            judge = stats.ttest_rel(scores, base)
            low, high = judge.confidence_interval(0.95)
            limits = [row[f"points_final{end}"] for end in ("", "_low", "_high")]
            assert limits == pytest.approx([factor * x for x in (np.mean(np.subtract(scores, base)), low, high)])
            assert row["p_final"] == pytest.approx(judge.pvalue)
            p_values.append(judge.pvalue)
    shown = found.table.filter(pl.col("p_final").is_not_null())["p_holm_final"].to_list()
    # Three rows of each scheme have one p, so the factors are 6 and, of what is left, 3.
    assert shown == pytest.approx([min(1, 6 * p_values[0])] * 3 + [min(1, 3 * p_values[3])] * 3)
    assert any(note.endswith("adjusted for the 6 comparisons of this table") for note in found.notes)


@pytest.mark.parametrize(
    ("base", "has_gain"), [([0.1, 0.6], False), ([0.185, 0.6], False), ([0.05, 0.6], False), ([0.195, 0.6], True)]
)
def test_no_percent_of_a_baseline_near_chance(base: list[float], has_gain: bool, make: Make) -> None:
    """Of ten classes, one tenth of the way from 10 % to 100 % is 19 %. One such pair leaves none in the mean."""
    found = compare(*(make([score], sharing=name, seed=seed, manifest=CLASSES) for seed, score in enumerate(base)
                      for name, score in (("full-model", score), ("local", score + 0.1))))  # fmt: skip
    row = the_row(found, sharing="local")
    assert row["points_final"] == pytest.approx(10.0)
    assert (row["gain_final"] is not None) == has_gain
    assert the_row(found, "runs", sharing="local", seed=1)["gain_final"] == pytest.approx(100 / 6)
    note = "a baseline is near chance (10.0 %) or below, so there is no gain in percent"
    assert (the_row(found, "runs", sharing="local", seed=0)["note"] == note) != has_gain


def test_no_percent_of_a_score_that_can_be_negative(make: Make) -> None:
    runs = [make([score], metric="r2", sharing=name) for name, score in (("full-model", -0.1), ("local", 0.3))]
    found = compare(*runs, metric="r2")
    row = the_row(found, sharing="local")
    assert (row["points_final"], row["gain_final"]) == (pytest.approx(0.4), None)
    assert "r2 can be below 0, so there is no gain in percent" in found.notes
    assert "difference" in printed(found)[2]


def test_intervals_of_shares_stay_within_0_and_100(make: Make) -> None:
    found = compare(make([0.9]), make([0.5], seed=1))
    row = the_row(found)
    assert (row["final"], row["final_low"], row["final_high"]) == (pytest.approx(0.7), 0.0, 1.0)
    assert any("70.0 [0, 100]" in line for line in printed(found))
    assert "70.0 [0.0, 100.0]" in formats.markdown(found, "final")


def test_the_mean_over_clients_counts_each_once(make: Make) -> None:
    run = make([0.0, 0.3], clients=[0.1, 0.3, 0.5, 0.7, 0.7])
    row = the_row(compare(run))
    assert row["unweighted_final"] == pytest.approx(0.46)
    assert row["unweighted_last5"] == pytest.approx(0.23)
    assert the_row(compare(run), modalities="acc")["unweighted_final"] == pytest.approx(0.2)


def test_the_best_score_is_shown_where_it_is_asked_for(make: Make) -> None:
    found = compare(make([0.9, 0.5], sharing="full-model"), make([0.8, 0.6], sharing="local"))
    for text, asked in ((formats.markdown(found, "last5"), False), (formats.markdown(found, "best"), True)):
        assert ("chosen on the test scores" in text) == asked
        assert ("| best |" in text) == asked


def test_few_seeds_with_the_same_sign_are_no_evidence(make: Make) -> None:
    def pairs(number: int) -> Comparison:
        return compare(*(make([score + 0.01 * seed * (score > 0.5)], sharing=name, seed=seed) for seed in range(number)
                         for name, score in (("full-model", 0.5), ("local", 0.6))))  # fmt: skip

    assert any("3 seeds: that a difference has the same sign in each is no evidence" in n for n in pairs(3).notes)
    assert not any("same sign" in note for note in pairs(4).notes)


# --- which runs -----------------------------------------------------------------------------------------------------


def test_runs_that_have_not_finished_are_shown_and_not_used(make: Make) -> None:
    failed = {**FEDERATION, "status": "failed", "error": {"message": "client 3, round 2: no luck\nhint: more of it"}}
    found = compare(
        make([0.4], sharing="full-model"), make([0.5], sharing="local"),
        make([0.9], sharing="private-head", manifest=failed),
        make([0.9], sharing="local", seed=1, manifest={"status": "interrupted"}),
    )  # fmt: skip
    assert [status for _, status in found.unused] == ["failed: client 3, round 2: no luck", "interrupted"]
    assert {row["sharing"] for row in found.table.to_dicts()} == {"full-model", "local"}
    assert the_row(found, sharing="local")["num_seeds"] == 1
    assert the_row(found, "runs", sharing="private-head")["note"] == "not used: failed: client 3, round 2: no luck"


def test_no_finished_run_at_all(make: Make) -> None:
    found = compare(
        *(make([0.4], sharing=name, manifest={"status": "interrupted"}) for name in ("full-model", "local"))
    )
    assert (found.table.height, found.runs.height) == (0, 2)
    assert {"sharing", "final", "gain_best_high", "num_reached"} <= set(found.table.columns)
    assert any("no run has finished" in line for line in printed(found))
    for text in (formats.markdown(found, "final"), formats.latex(found, "final"), formats.csv(found)):
        assert "sharing" in text


def test_the_same_simulation_twice_counts_once_and_the_finished_one_is_used(make: Make) -> None:
    found = compare(make([0.9], manifest={"status": "running"}), make([0.4]), make([0.4]))
    assert the_row(found)["num_seeds"] == 1
    assert found.unused == ()


def test_runs_are_told_apart_by_what_differs_in_their_scenarios(make: Make) -> None:
    found = compare(
        make([0.4], **{"data.partition": {"kind": "dirichlet", "alpha": 5.0}}),
        make([0.5], **{"data.partition": {"kind": "dirichlet", "alpha": 9.0}}),
        make([0.6], **{"data.partition": {"kind": "iid"}, "training.batch_size": 8}),
    )
    # With one kind twice, the kind alone would not do.
    assert set(found.keys) == {"data.partition", "training.batch_size"}
    assert found.baseline == {}
    assert the_row(found, **{"training.batch_size": "8"})["final"] == 0.6


def test_scenarios_with_other_names_are_told_apart_by_name(make: Make) -> None:
    found = compare(make([0.4]), make([0.5, 0.5], name="other"))
    assert found.keys == ("name",)
    assert found.labels == {"name": "scenario"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"metric": "acuracy"},
            r"the metric is 'acuracy'; expected one of accuracy or another of the 12 .*; did you mean 'accuracy'\?$",
        ),
        ({"baseline": {"sharing": "locl"}}, r"the baseline's sharing is 'locl'; expected one of full-model, local"),
        ({"baseline": {"rounds": 3}}, r"rounds is the same in all runs; expected a key in which they differ: sharing"),
        ({"by": ["rounds"]}, r"by is 'rounds'; expected keys in which the runs differ: sharing"),
    ],
)
def test_what_cannot_be_compared(options: dict[str, Any], message: str, make: Make) -> None:
    with pytest.raises(InputError, match=message):
        compare(make([0.4], sharing="full-model"), make([0.5], sharing="local"), **options)


def test_any_column_is_a_metric(make: Make) -> None:
    """One of a modality set is that set's row alone; one of costs is a number, of which less is better."""
    runs = [make([0.4, 0.5], sharing="full-model"), make([0.5, 0.7], sharing="local")]
    for column in runs[0].rounds.columns:
        if column == "round":
            continue
        found = compare(runs, metric=column)
        shown = {row["modalities"] for row in found.table.to_dicts() if row["final"] is not None}
        modalities = column.partition("/")[2]
        assert not modalities or shown == {modalities}, column
        assert printed(found)
    one = compare(runs, metric="accuracy/acc+gyro")
    whole = compare(runs, metric="accuracy")
    assert one.table.equals(whole.table.filter(pl.col("modalities") == "acc+gyro"))
    cost = compare(runs, metric="bytes_down")
    assert (cost.lower_is_better, cost.is_share) == (True, False)
    with pytest.raises(InputError, match="the metric is 'round'; expected one of accuracy"):
        compare(runs, metric="round")


def test_a_loss_of_one_modality_set_is_better_when_lower(make: Make) -> None:
    runs = [make([0.4], metric="loss", sharing="full-model"), make([0.3], metric="loss", sharing="local")]
    found = compare(runs, metric="loss/acc")
    assert found.lower_is_better
    assert the_row(found, sharing="local", modalities="acc")["gain_final"] == pytest.approx(25)


def test_an_unknown_metric_among_many_is_answered_in_one_short_line(make: Make) -> None:
    with pytest.raises(InputError) as caught:
        compare(make([0.4]), metric="x" * 1000)
    assert len(str(caught.value)) < 300


def test_runs_come_one_by_one_or_in_any_collection(make: Make, small_scenario: Scenario, tmp_path: Path) -> None:
    for seed in (0, 1):
        RunWriter(tmp_path / str(seed), scenario_yaml(small_scenario.override({"seed": seed})), {}).close("interrupted")
    folders = [tmp_path / "0", tmp_path / "1"]
    expected = compare(*folders)
    assert len(expected.unused) == 2
    assert any("goes on with: blossom-ray resume RUN" in note for note in expected.notes)
    opened = [Run.open(folder) for folder in folders]
    collections: list[Any] = [
        folders, tuple(folders), iter(folders), (folder for folder in folders), [str(folder) for folder in folders],
        opened, dict(enumerate(opened)), [folders[:1], opened[1:]], dict.fromkeys(map(str, folders)).keys(),
    ]  # fmt: skip
    for sources in collections:
        assert compare(sources).unused == expected.unused
    for empty in ([], (), {}, iter(())):
        with pytest.raises(InputError, match="there are no runs to compare; expected folders of runs or sweeps"):
            compare(empty)
    for wrong in (3, None, b"runs", [None], [[3.5]]):
        with pytest.raises(InputError, match=r"a source of runs is .* \(\w+\); expected the folder of a run or of a"):
            compare(wrong)
    for nowhere in ("x" * 5000, "a\0b", ["x" * 300]):
        with pytest.raises(InputError, match="expected a path on this machine"):
            compare(nowhere)


def test_folders_that_are_no_runs(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there are no runs to compare"):
        compare()
    with pytest.raises(RunFolderError, match=r"nowhere: is no folder; expected the folder of a run or of a sweep"):
        compare(tmp_path / "nowhere")
    with pytest.raises(RunFolderError, match=r"has neither manifest\.json nor sweep\.json; expected the folder"):
        compare(tmp_path)


def test_a_score_that_is_not_finite_is_not_used(make: Make) -> None:
    found = compare(make([0.5, math.inf], metric="loss"), metric="loss")
    assert found.table.height == 0
    assert any("ends with no finite loss" in note for note in found.notes)


# --- notes of runs --------------------------------------------------------------------------------------------------


def test_notes_of_runs_stand_beside_their_rows_each_text_once(make: Make) -> None:
    def noting(*notes: str) -> dict[str, Any]:
        return {**FEDERATION, "notes": list(notes)}

    found = compare(
        make([0.4], sharing="full-model", tuned={1: 0.5}, manifest=noting("averaged", "averaged", "5 rows lost")),
        make([0.4], sharing="full-model", tuned={1: 0.5}, seed=1, manifest=noting("averaged")),
        make([0.5], sharing="private-head", tuned={1: 0.5}, manifest=noting("5 rows lost")),
        make([0.5], sharing="private-head", tuned={1: 0.5}, seed=1, manifest=noting()),
        make([0.5], sharing="local", tuned={1: 0.5}, manifest=noting()),
        make([0.5], sharing="local", tuned={1: 0.5}, seed=1, manifest=noting()),
        make([0.9], sharing="local", seed=2, manifest={"status": "failed", "notes": ["not of a result"]}),
    )
    assert [str(note) for note in found.run_notes] == [
        "full-model (2 of 2 runs): averaged",
        "full-model (1 of 2 runs), private-head (1 of 2 runs): 5 rows lost",
    ]
    for scoring in ("plain", "fine-tuned"):
        rows = {name: the_row(found, sharing=name, scoring=scoring) for name in ("full-model", "private-head", "local")}
        assert [found.notes_of(row) for row in rows.values()] == [[1, 2], [2], []]
        assert [row["run_notes"] for row in rows.values()] == ["averaged; 5 rows lost", "5 rows lost", None]
    assert the_row(found, "runs", sharing="full-model", seed=1, scoring="plain")["run_notes"] == "averaged"
    terminal = printed(found, width=100)
    assert [line.split("  ")[0].strip() for line in terminal if "[" in line and not line.startswith("[")] == [
        "full-model [1] [2]", "full-model, fine-tuned [1] [2]", "private-head [2]", "private-head, fine-tuned [2]",
    ]  # fmt: skip
    for text in ("\n".join(terminal), formats.markdown(found, "last5"), formats.latex(found, "last5")):
        assert text.count("averaged") == 1
        assert "[1] full-model (2 of 2 runs): averaged" in text
    tree = json.loads(formats.json_text(found))
    assert tree["run_notes"][1] == {"note": "5 rows lost", "runs": {"full-model": [1, 2], "private-head": [1, 2]}}
    assert "averaged; 5 rows lost" in formats.csv(found)
    assert [str(note) for note in compare(make([0.4], manifest=noting("averaged"))).run_notes] == [
        "1 of 1 run: averaged"
    ]


# --- formats --------------------------------------------------------------------------------------------------------


@pytest.fixture
def paired(make: Make) -> Comparison:
    pairs = ((0.4, 0.6), (0.5, 0.55))
    runs = [make([score, score], seed=seed, sharing=name) for seed, pair in enumerate(pairs)
            for name, score in zip(("full-model", "private-head-fusion"), pair, strict=True)]  # fmt: skip
    return compare(*runs, target=0.55)


def printed(comparison: Comparison, width: int = 80) -> list[str]:
    console = Console(file=io.StringIO(), width=width, no_color=True)
    console.print(panels.terminal(comparison, "last5", width))
    text = console.file.getvalue()
    return [line.rstrip() for line in text.splitlines()]


def test_the_terminal_of_80_columns(paired: Comparison) -> None:
    lines = printed(paired)
    assert all(len(line) <= 80 for line in lines)
    assert lines[0] == "accuracy in %; points and gain in % of last 5 over sharing full-model; 2 seeds"
    # Scores 60 and 55: s = 3.5355, half = 12.706 * 3.5355 / sqrt(2) = 31.8. Gains +50 and +10: half 254.1.
    words = [" ".join(line.split()) for line in lines]
    # Points +20 and +5: half = 12.706 * 7.5 = 95.3; t = 12.5 / 7.5, so p = 1 - 2 atan(t) / pi = 0.344.
    assert "private-head-fusion 57.5 ± 31.8 +12.5 ± 95.3 .344 1.000 +30.0" in words
    assert "acc+gyro 28.7 ± 15.9 +6.2 ± 47.6 .344 1.000 +30.0" in words
    assert "private-head-fusion 1 200 B 10 B 2/2" in words
    assert any(line.startswith("note: ") for line in lines)
    words = [" ".join(line.split()) for line in printed(paired, width=100)]
    assert "private-head-fusion 57.5 57.5 ± 31.8 57.5 +12.5 ± 95.3 .344 1.000 +30.0" in words
    assert all(len(line) <= 100 for line in printed(paired, width=100) if not line.startswith("note"))


def test_one_seed_on_the_terminal(make: Make) -> None:
    base, better = [0.1, 0.3, 0.5, 0.7, 0.4], [0.2, 0.3, 0.6, 0.7, 0.6]
    found = compare(make([0.4], sharing="full-model", clients=base), make([0.48], sharing="local", clients=better))
    lines = printed(found)
    assert all(len(line) <= 80 for line in lines)
    line, _ = (line for line in lines if line.startswith(" local "))
    score, points = r"48\.0 \[\d+\.\d, \d+\.\d\]", r"\+8\.0 \[\+\d+\.\d, \+\d+\.\d\]"
    assert re.fullmatch(rf" local +{score} +{points} +\+20\.0", line)


def test_csv_and_json_read_back(paired: Comparison) -> None:
    rows = list(csv.DictReader(io.StringIO(formats.csv(paired))))
    expected = paired.table.to_dicts()
    assert [float(row["final"]) for row in rows] == [row["final"] for row in expected]
    assert [row["sharing"] for row in rows] == [row["sharing"] for row in expected]
    tree = json.loads(formats.json_text(paired))
    assert tree["table"] == expected
    assert tree["runs"] == paired.runs.to_dicts()
    assert (tree["metric"], tree["baseline"], tree["target"]) == ("accuracy", {"sharing": "full-model"}, 0.55)


def test_markdown_reads_back(paired: Comparison) -> None:
    lines = [line for line in formats.markdown(paired, "final").splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert {len(row) for row in cells} == {len(cells[0])}
    assert cells[0] == [
        "sharing", "modalities", "seeds", "final", "last 5", "unweighted", "points", "p", "Holm", "gain %",
        "samples", "steps", "down", "up", "rounds to 55.0", "down to it", "up to it", "reached",
    ]  # fmt: skip
    row = next(row for row in cells if row[:2] == ["private-head-fusion", ALL])
    assert row[2:6] == ["2", "57.5 ± 31.8", "57.5 ± 31.8", "57.5"]
    assert row[6:10] == ["+12.5 ± 95.3", ".344", "1.000", "+30.0 ± 254.1"]


def test_latex_reads_back(paired: Comparison) -> None:
    text = formats.latex(paired, "final")
    assert text.count(r"\begin{tabular}{llrrrrrrrrrrrrrrrr}") == text.count(r"\end{tabular}") == 1
    body = text.split(r"\midrule")[1].split(r"\bottomrule")[0]
    rows = [line.removesuffix(r" \\").split(" & ") for line in body.strip().splitlines()]
    assert {len(row) for row in rows} == {18}
    assert next(row for row in rows if row[0] == "private-head-fusion")[3] == r"57.5 $\pm$ 31.8"
    assert all(line.startswith("%") for line in text.split(r"\begin")[0].splitlines())


def test_words_of_settings_are_escaped(make: Make) -> None:
    runs = [make([0.4], **{"model.head": {"kind": "custom", "factory": f"my_mod:{name}"}}) for name in ("a_b", "c")]
    text = formats.latex(compare(*runs), "final")
    assert r"custom-my\_mod-a\_b" in text or r"my\_mod-a\_b" in text


def test_a_difference_that_there_is_not_has_no_mark(make: Make) -> None:
    schemes = {scheme: {"sharing": scheme} for scheme in ("full-model", "private-head")}
    found = compare([make([0.5, 0.6], **schemes["full-model"]), make([0.5, None, 0.7], **schemes["private-head"])])
    nothing = pl.lit(None, pl.Float64).alias("points_last5")
    table = found.table.with_columns(nothing, gain_last5_rounds=pl.lit("1, 2"))
    shown = panels.flat_table(replace(found, table=table), "last5")
    assert {row[shown.columns.index("points")] for row in shown.rows} == {"-"}
