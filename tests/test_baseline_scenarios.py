"""The baselines that ship: each runs, and all of them meet the same federation."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY

from blossom_ray import Run, Scenario, simulate
from blossom_ray.core.blocks import SCHEME_NAMES
from blossom_ray.runs.session import check_runnable
from blossom_ray.studies.comparison.scores import run_compute

FOLDER = REPOSITORY / "scenarios" / "baselines"
FILES = sorted(FOLDER.glob("*.yaml"))
PAGE = (REPOSITORY / "docs" / "baselines.md").read_text(encoding="utf-8")
TINY: dict[str, Any] = {"rounds": 1, "data.samples": 240, "data.held_out_samples": 30}
TIMES = {"fedrep": 2}
"""Samples and steps of a round in those of the full model, as docs/baselines.md says; 1 in all other files."""
RATES = {"central": 0.01}
"""The learning rate, where it is not 0.05: one model that takes all clients' steps needs one of its own."""
# What a baseline may change. The rest is the same in all files, so that their runs are paired.
SWITCHES = ("name", "sharing", "evaluation", "server")
TRAINING_SWITCHES = ("alternate", "proximal_mu", "modality_dropout")
MODEL_SWITCHES = ("missing", "norm_statistics")


def federation(path: Path) -> dict[str, Any]:
    """A baseline's scenario without its switches."""
    tree = Scenario.load(path).model_dump(exclude=set(SWITCHES))
    assert tree["training"]["optimizer"].pop("lr") == RATES.get(path.stem, 0.05)
    for section, keys in (("training", TRAINING_SWITCHES), ("model", MODEL_SWITCHES)):
        for key in keys:
            del tree[section][key]
    del tree["model"]["head"]["norm"]  # statistics of batch normalisation need a head that has one
    return tree


def ids(path: Path) -> str:
    return path.stem


@cache
def tiny_run(path: Path) -> Run:
    return simulate(Scenario.load(path, TINY))


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_a_file_says_what_it_is_and_how_to_run_it(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    comment = text[: text.index("\nname:")]
    assert all(line.startswith("#") for line in comment.splitlines())
    assert f"blossom-ray simulate scenarios/baselines/{path.name}" in comment
    assert "two cores" in comment
    assert f"\nname: {path.stem}\n" in text


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_a_baseline_runs_a_tiny_round(path: Path) -> None:
    check_runnable(Scenario.load(path))
    run = tiny_run(path)
    assert run.status == "finished"
    assert run.rounds["loss"].is_finite().all()


def test_all_meet_the_same_federation() -> None:
    first = federation(FILES[0])
    for path in FILES:
        assert federation(path) == first, path.name


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_a_round_takes_the_same_samples_and_steps_as_one_of_the_full_model(path: Path) -> None:
    base = run_compute(tiny_run(FOLDER / "full-model.yaml"))
    found = run_compute(tiny_run(path))
    times = TIMES.get(path.stem, 1)
    assert base.num_steps
    assert (found.num_examples or 0) / (base.num_examples or 1) == times
    if path.stem == "central":
        # All clients' steps one after the other; a batch may hold samples of several of them.
        clients = tiny_run(FOLDER / "full-model.yaml").clients["num_steps"].drop_nulls()
        assert 5 * base.num_steps < (found.num_steps or 0) <= clients.sum()
    else:
        assert (found.num_steps or 0) / base.num_steps == times
    if Scenario.load(path).evaluation.fine_tune is not None:
        tuned = run_compute(tiny_run(path), is_tuned=True)
        assert (tuned.num_examples, tuned.num_steps) == (2 * (base.num_examples or 0), 2 * base.num_steps)


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_a_file_of_unequal_compute_says_so(path: Path) -> None:
    comment = path.read_text(encoding="utf-8").partition("\nname:")[0]
    section = PAGE.partition("## What each takes")[2].partition("\n## ")[0]
    title = {"fedrep": "| FedRep |", "full-model-fine-tuned": "| FM and local fine-tuning", "central": "| Central |"}
    assert ("samples" in comment) == (path.stem in title)
    assert path.stem not in title or title[path.stem] in section


def test_the_central_model_learns_with_its_rate() -> None:
    scenario = Scenario.load(FOLDER / "central.yaml", {"rounds": 12, "evaluation.every": 12})
    chance = 1 / 6
    assert simulate(scenario).final["accuracy"] > 3 * chance


def test_no_two_are_the_same_algorithm() -> None:
    algorithms = [Scenario.load(path).model_dump_json(exclude={"name"}) for path in FILES]
    assert len(set(algorithms)) == len(FILES)


def test_the_page_names_every_file_and_no_other() -> None:
    named = {word.split(")")[0] for word in PAGE.split("../scenarios/baselines/")[1:]}
    assert named == {path.name for path in FILES}


def test_every_named_scheme_has_a_baseline() -> None:
    with_tasks = {"central-per-task"}  # no other scheme without several tasks than `central`
    assert {str(Scenario.load(path).sharing) for path in FILES} >= set(SCHEME_NAMES) - with_tasks
