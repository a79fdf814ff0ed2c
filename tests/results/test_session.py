"""A session: what closing it does, and what follows a driver that is lost."""

from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from blossom_ray import Run, Scenario
from blossom_ray.errors import DriverLostError
from blossom_ray.runs.loop import Begun, Event, Outcome, Setup
from blossom_ray.runs.session import events, record_run


def test_closing_it_ends_what_computes_and_then_the_folder(
    small_scenario: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    when_it_ended = []

    def watched(*arguments: Any) -> Iterator[Event]:
        try:
            yield from events(*arguments)
        finally:
            when_it_ended.append(Run.open(tmp_path).status)

    monkeypatch.setattr("blossom_ray.runs.session.events", watched)
    with closing(record_run(small_scenario, tmp_path)) as records:
        next(records)
        assert when_it_ended == []
    assert when_it_ended == ["running"]
    assert Run.open(tmp_path).status == "interrupted"


def test_another_driver_keeps_the_engines_that_were_chosen(
    small_scenario: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the first driver had died right after it had chosen."""
    given: list[Mapping[str, str] | None] = []

    def lossy(*arguments: Any) -> Iterator[Event]:
        given.append(arguments[-1])
        for event in events(*arguments):
            yield event
            if isinstance(event, Setup) and len(given) == 1:
                raise DriverLostError("the driver actor died")

    monkeypatch.setattr("blossom_ray.runs.session.events", lossy)
    records = [*record_run(small_scenario.override({"training.engine": "auto"}), tmp_path)]
    run = Run.open(tmp_path)
    assert given == [None, run.manifest["engines"]]
    assert run.scenario.training.engine == run.manifest["engines"]
    assert [loss["after_round"] for loss in run.manifest["driver_losses"]] == [None]
    assert [record.round_index for record in records] == run.rounds["round"].to_list() == [0, 1, 2]


def test_the_facts_of_a_run_are_values_with_fields(small_scenario: Scenario) -> None:
    data, clients, first, *_, last = events(small_scenario)
    assert (data, clients) == (Begun("preparing data"), Begun("starting clients"))
    assert isinstance(first, Setup)
    assert isinstance(last, Outcome)
    assert first.first_round == 0
    assert first.engines == dict.fromkeys(("acc", "acc+gyro", "gyro"), "sequential")
    assert first.runtime == last.runtime == {"runtime": "local", "actors": 0}
    assert [part["processes"] for part in last.kernels] == [1]
    assert set(last.digest) == {"shared", "private"}
    assert last.stopped is None
    assert "stopped" not in last.entries
