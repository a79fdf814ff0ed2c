"""The baselines that ship: each runs, and all of them meet the same federation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY

from blossom_ray import Scenario, simulate
from blossom_ray.api import check_runnable
from blossom_ray.blocks import SCHEME_NAMES

FOLDER = REPOSITORY / "scenarios" / "baselines"
FILES = sorted(FOLDER.glob("*.yaml"))
PAGE = (REPOSITORY / "docs" / "baselines.md").read_text(encoding="utf-8")
TINY: dict[str, Any] = {"rounds": 1, "data.samples": 240, "data.held_out_samples": 30}
# What a baseline may change. The rest is the same in all files, so that their runs are paired.
SWITCHES = ("name", "sharing", "evaluation", "server")
TRAINING_SWITCHES = ("alternate", "proximal_mu", "modality_dropout")
MODEL_SWITCHES = ("missing", "norm_statistics")


def federation(path: Path) -> dict[str, Any]:
    """A baseline's scenario without its switches."""
    tree = Scenario.load(path).model_dump(exclude=set(SWITCHES))
    for section, keys in (("training", TRAINING_SWITCHES), ("model", MODEL_SWITCHES)):
        for key in keys:
            del tree[section][key]
    del tree["model"]["head"]["norm"]  # statistics of batch normalisation need a head that has one
    return tree


def ids(path: Path) -> str:
    return path.stem


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
    run = simulate(Scenario.load(path, TINY))
    assert run.status == "finished"
    assert run.rounds["loss"].is_finite().all()


def test_all_meet_the_same_federation() -> None:
    first = federation(FILES[0])
    for path in FILES:
        assert federation(path) == first, path.name


def test_no_two_are_the_same_algorithm() -> None:
    algorithms = [Scenario.load(path).model_dump_json(exclude={"name"}) for path in FILES]
    assert len(set(algorithms)) == len(FILES)


def test_the_page_names_every_file_and_no_other() -> None:
    named = {word.split(")")[0] for word in PAGE.split("../scenarios/baselines/")[1:]}
    assert named == {path.name for path in FILES}


def test_every_named_scheme_has_a_baseline() -> None:
    assert {str(Scenario.load(path).sharing) for path in FILES} >= set(SCHEME_NAMES)
