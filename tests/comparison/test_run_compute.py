"""What runs took to compute, by hand: samples, steps, bytes; and the notes where runs were not computed alike."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from rich.console import Console

from blossom_ray import Run, Scenario, compare, simulate
from blossom_ray.core.blocks import BlockInstance, Scope
from blossom_ray.core.evaluations import ClientEvaluation
from blossom_ray.core.records import BlockRound, ClientTraining, RoundRecord
from blossom_ray.studies.comparison import formats, panels
from blossom_ray.studies.comparison.comparing import Comparison
from blossom_ray.studies.comparison.scores import Compute, run_compute

Make = Callable[..., Run]
STEPS = (1, 2, 3, 4, 5)
"""Of the five clients, each of which sees 10 samples in a step."""


@pytest.fixture
def make(small_scenario: Scenario) -> Make:
    """A run in memory. In each of its rounds the clients of its cohort take `STEPS` each, 100 bytes go down, 10 up."""

    def build(
        cohorts: Sequence[Sequence[int]] = ((0, 1, 2, 3, 4),) * 2,
        *,
        tuned: Mapping[int, Sequence[int]] | None = None,
        kernels: Sequence[Mapping[str, Any]] | None = None,
        versions: Mapping[str, str] | None = None,
        epochs: int = 1,
        **changes: Any,
    ) -> Run:
        fine_tune = {"evaluation.fine_tune": {"epochs": 3}} if tuned else {}
        scenario = small_scenario.override(
            {"rounds": len(cohorts), "training.batch_size": 10, "training.local_epochs": epochs, **fine_tune, **changes}
        )
        records = []
        for index, cohort in enumerate([(), *cohorts]):
            training = tuple(
                ClientTraining(
                    client=client, num_examples=10 * STEPS[client] * epochs, weight=1.0,
                    num_steps=STEPS[client] * epochs, loss=0.0, drift={}, bytes_down=0, bytes_up=0, seconds=0.0,
                )
                for client in cohort
            )  # fmt: skip
            scored = [ClientEvaluation(client, 10, 0.0, {"accuracy": 0.5}, 0, 0.0) for client in range(5)]
            again = tuple(scored[client] for client in (tuned or {}).get(index, ()))
            metrics = {"accuracy": 0.5, "accuracy/acc": 0.5} | ({"fine_tuned/accuracy": 0.6} if again else {})
            block = BlockRound(BlockInstance("head", Scope.SHARED), 5, 50, 100, 10 * (index > 0), 0.0, 0.0)
            records.append(
                RoundRecord(index, 0.1, (), training, tuple(scored), metrics, (block,), {}, fine_tuned=again)
            )
        manifest: dict[str, Any] = {"data": {"fingerprint": "f", "partition": f"p{scenario.seed}"}}
        manifest |= {} if kernels is None else {"kernels": list(kernels)}
        return Run.from_records(
            records, scenario, tuple(scenario.profiles()), manifest | {"versions": dict(versions or {})}
        )

    return build


def the_row(found: Comparison, frame: str = "table", **wanted: Any) -> dict[str, Any]:
    (row,) = (
        row
        for row in getattr(found, frame).to_dicts()
        if all(row[key] == value for key, value in {"modalities": "all clients", **wanted}.items())
    )
    return dict(row)


def unequal(found: Comparison) -> list[str]:
    return [note for note in found.notes if note.startswith("unequal compute")]


# --- counting -------------------------------------------------------------------------------------------------------


def test_samples_add_up_over_clients_and_steps_are_those_of_a_model(make: Make) -> None:
    """Round 1: 150 samples, (1 + 2 + 3 + 4 + 5) / 5 = 3 steps a client; round 2: 60 samples, (2 + 4) / 2 = 3."""
    run = make([(0, 1, 2, 3, 4), (1, 3)])
    assert run_compute(run) == Compute(210, 6.0, 300, 20)
    assert run_compute(run, up_to=1) == Compute(150, 3.0, 200, 10)


def test_after_fine_tuning_the_epochs_of_the_last_one_count(make: Make) -> None:
    """Three epochs of clients 0 and 4, that is of 10 and 50 samples, 1 and 5 steps; the tuning of round 1 is gone."""
    run = make(tuned={1: (0, 1, 2, 3, 4), 2: (0, 4)}, epochs=2)
    assert run_compute(run) == Compute(600, 12.0, 300, 20)
    assert run_compute(run, is_tuned=True) == Compute(600 + 3 * 60, 12.0 + 3 * 3, 300, 20)
    assert run_compute(run, is_tuned=True, up_to=1) == Compute(300 + 3 * 150, 6.0 + 3 * 3, 200, 10)


def test_of_a_client_that_never_trained_no_row_says_how_much_its_tuning_took(make: Make) -> None:
    found = run_compute(make([(1, 2)], tuned={1: (0,)}), is_tuned=True)
    assert (found.num_examples, found.num_steps, found.bytes_up) == (None, None, 10)


def test_before_the_first_fine_tuning_nothing_says_what_it_took(make: Make) -> None:
    runs = [make(sharing=name, tuned={2: (0, 1, 2, 3, 4)}) for name in ("full-model", "local")]
    assert run_compute(runs[0], is_tuned=True, up_to=1).num_examples is None
    found = compare(*runs, up_to=1)
    assert the_row(found, sharing="local", scoring="plain")["num_examples"] == 150


def test_the_counts_are_those_of_a_run(small_scenario: Scenario) -> None:
    """Against the plan: ceil(n / batch) steps of each client in each round, twice as many in two epochs."""
    scenario = small_scenario.override({"rounds": 3, "evaluation.fine_tune": {"epochs": 2}})
    run = simulate(scenario)
    sizes = run.clients.filter(run.clients["round"] == 1)["num_train_examples"].to_list()
    steps = [-(-size // scenario.training.batch_size) for size in sizes]
    plain, tuned = run_compute(run), run_compute(run, is_tuned=True)
    assert (plain.num_examples, plain.num_steps) == (3 * sum(sizes), pytest.approx(3 * sum(steps) / 5))
    assert (tuned.num_examples, tuned.num_steps) == (5 * sum(sizes), pytest.approx(5 * sum(steps) / 5))
    twice = run_compute(simulate(scenario.override({"training.local_epochs": 2, "evaluation.fine_tune": None})))
    assert (twice.num_examples, twice.num_steps) == (6 * sum(sizes), pytest.approx(6 * sum(steps) / 5))


# --- in a comparison ------------------------------------------------------------------------------------------------


def test_rows_say_what_they_took_in_the_mean_over_seeds(make: Make) -> None:
    runs = [make(sharing="full-model", seed=0), make([(0, 1, 2, 3, 4), (1, 3)], sharing="full-model", seed=1)]
    found = compare(*runs)
    row = the_row(found)
    assert [row[name] for name in ("num_examples", "num_steps", "bytes_down", "bytes_up")] == [255, 6, 300, 20]
    assert the_row(found, modalities="acc")["num_examples"] == 255, "of the whole run"
    assert the_row(found, "runs", seed=1)["num_examples"] == 210
    assert the_row(compare(*runs, up_to=1))["num_examples"] == 150
    assert unequal(found) == []


def test_unequal_compute_is_said_of_the_pairs(make: Make) -> None:
    runs = [
        make(name=name, seed=seed, epochs=epochs, sharing=sharing)
        for name, epochs, sharing in (
            ("base", 1, "full-model"),
            ("fedrep", 2, "private-head"),
            ("twice", 2, "full-model"),
            ("alike", 1, "local"),
        )
        for seed in (0, 1)
    ]
    found = compare(*runs, baseline={"name": "base"})
    assert found.keys == ("name",)
    assert unequal(found) == ["unequal compute: fedrep; twice: 2 x the samples and steps of base"]


def test_samples_may_be_equal_and_steps_not(make: Make, small_scenario: Scenario) -> None:
    changes = {"rounds": 1, "training.local_epochs": 1}
    runs = [
        simulate(small_scenario.override({**changes, "sharing": name})) for name in ("full-model", "central", "local")
    ]
    (note,) = unequal(compare(*runs))
    central, federated = (run_compute(runs[place]) for place in (1, 0))
    assert central.num_examples == federated.num_examples
    assert central.num_steps
    assert federated.num_steps
    assert note == f"unequal compute: central: {central.num_steps / federated.num_steps:.3g} x the steps of full-model"


def test_fine_tuned_rows_took_more_than_plain_ones(make: Make) -> None:
    """Of full-model, 3 epochs more than 2: 2.5 x; so in local, which is measured against plain full-model."""
    runs = [make(sharing=name, tuned={2: (0, 1, 2, 3, 4)}) for name in ("full-model", "local")]
    assert unequal(compare(*runs)) == [
        "unequal compute: full-model, fine-tuned; local, fine-tuned: 2.5 x the samples and steps of full-model"
    ]


def test_without_a_baseline_rows_are_set_against_the_one_that_took_least(make: Make) -> None:
    found = compare(make(epochs=2), make(epochs=1))
    assert found.baseline == {}
    assert unequal(found) == ["unequal compute: 2: 2 x the samples and steps of 1"]
    other = make(epochs=1, seed=1)
    assert unequal(compare(make(epochs=2), other)) == [], "another federation"


def test_every_format_has_the_columns(make: Make) -> None:
    runs = [make([(0, 1, 2, 3, 4)] * 100, sharing=name) for name in ("full-model", "local")]
    found = compare(*runs)
    console = Console(file=io.StringIO(), width=80, no_color=True)
    console.print(panels.terminal(found, "last5", 80))
    lines = [" ".join(line.split()) for line in console.file.getvalue().splitlines()]
    assert "sharing samples steps down up" in lines
    assert lines.count("full-model 15.0 k 300 10.1 kB 1.0 kB") == 1, "once, not by modality set"
    (row,) = (row for row in formats.markdown(found, "last5").splitlines() if row.startswith("| local | all"))
    assert row.endswith("| 15.0 k | 300 | 10.1 kB | 1.0 kB |")
    assert r"15.0 k & 300 & 10.1 kB & 1.0 kB \\" in formats.latex(found, "last5")
    (first, *_) = csv.DictReader(io.StringIO(formats.csv(found)))
    assert [float(first[name]) for name in ("num_examples", "num_steps", "bytes_up")] == [15000, 300, 1000]
    assert json.loads(formats.json_text(found))["table"][0]["bytes_down"] == 10100


# --- kernels --------------------------------------------------------------------------------------------------------

AVX2: dict[str, Any] = {
    "processes": 1, "processor": "Old", "cpu_capability": "AVX2", "libraries": {"mkl": "2024.2"}, "variables": {},
}  # fmt: skip


def kernel_notes(found: Comparison) -> list[str]:
    return [note for note in found.notes if "kernels" in note]


def test_the_same_kernels_make_no_note(make: Make) -> None:
    several = [{**AVX2, "processes": 7}]
    assert kernel_notes(compare(make(kernels=[AVX2]), make(kernels=several, sharing="local"))) == []


def test_runs_that_do_not_say_by_which_kernels_make_no_note(make: Make) -> None:
    old = make(sharing="local", versions={"torch": "2.0"})
    assert kernel_notes(compare(make(kernels=[AVX2], versions={"torch": "2.13"}), old)) == []


def test_a_note_says_in_what_and_in_which_runs_kernels_differ(make: Make) -> None:
    compatible = {**AVX2, "variables": {"MKL_CBWR": "COMPATIBLE"}}
    runs = [make(kernels=[AVX2], sharing="full-model", seed=seed) for seed in (0, 1)]
    runs += [make(kernels=[AVX2], sharing="local", seed=0), make(kernels=[compatible], sharing="local", seed=1)]
    found = compare(*runs)
    assert kernel_notes(found) == [
        "runs were computed by other kernels, which moves scores as noise does: MKL_CBWR not set in "
        "full-model (2 of 2 runs), local (1 of 2 runs); COMPATIBLE in local (1 of 2 runs)"
    ]
    assert kernel_notes(found)[0] in panels.remarks(found, "last5"), "so the report has it, too"


def test_processes_of_one_run_may_differ_and_versions_count(make: Make) -> None:
    mixed = [AVX2, {**AVX2, "processor": "New", "cpu_capability": "AVX512"}]
    runs = [
        make(kernels=[AVX2], versions={"torch": "2.12", "numpy": "2.4"}, sharing="full-model"),
        make(kernels=mixed, versions={"torch": "2.13", "numpy": "2.4"}, sharing="local"),
    ]
    assert [note.partition("does: ")[2] for note in kernel_notes(compare(*runs))] == [
        "torch 2.12 in full-model (1 of 1 run); 2.13 in local (1 of 1 run)",
        "processor Old in full-model (1 of 1 run); New and Old in local (1 of 1 run)",
        "cpu_capability AVX2 in full-model (1 of 1 run); AVX2 and AVX512 in local (1 of 1 run)",
    ]
