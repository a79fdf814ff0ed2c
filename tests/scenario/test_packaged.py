"""Scenarios that come with the package, found by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from blossom_ray import Scenario
from blossom_ray.reading.packaged import packaged_scenarios, scenario_path, shows

REPOSITORY = Path(__file__).parents[2]


def test_the_names_are_those_of_the_files_in_the_repository() -> None:
    names = list(packaged_scenarios())
    assert {"quickstart", "baselines/fedprox", "paper/meld_iid_3-3-4"} <= set(names)
    assert names.index("quickstart") < names.index("baselines/central") < names.index("paper/av-mnist_iid_0-0-10")
    assert len(names) == len(list((REPOSITORY / "scenarios").rglob("*.yaml")))
    assert packaged_scenarios()["quickstart"] == REPOSITORY / "scenarios" / "quickstart.yaml"


def test_every_one_says_what_it_shows() -> None:
    said = {name: shows(path.read_text(encoding="utf-8")) for name, path in packaged_scenarios().items()}
    assert said["quickstart"] == (
        "A first federation, on generated data: ten clients, three of which own an accelerometer, three a gyroscope "
        "and four both."
    )
    # "et al." ends no sentence.
    assert said["baselines/fedprox"].endswith("local training is held near the values received.")
    assert [name for name, text in said.items() if not text.endswith((".", "varied by a sweep:"))] == []


def test_a_text_without_a_comment_shows_nothing() -> None:
    assert shows("rounds: 1\n# A comment below.\n") == ""


@pytest.mark.parametrize("name", ["quickstart", "quickstart.yaml"])
def test_a_scenario_is_loaded_by_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Scenario.load(name) == Scenario.load(REPOSITORY / "scenarios" / "quickstart.yaml")


def test_what_lies_at_the_path_goes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = (tmp_path / "quickstart.yaml").write_text("rounds: 0\n", encoding="utf-8")
    assert own
    assert scenario_path(Path("quickstart.yaml")) == Path("quickstart.yaml")
    assert scenario_path(Path("quickstart")) == packaged_scenarios()["quickstart"]
    assert scenario_path(Path("no/such")) == Path("no/such")
