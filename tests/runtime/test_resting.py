"""Client actors that are stopped between two calls, and work a few at a time."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from blossom_ray import Scenario
from blossom_ray.runtime import actors, resting
from blossom_ray.runtime.actors import ActorRuntime
from blossom_ray.runtime.resting import Caller, Turns
from tests.runtime.test_recovery import numbers, run_here

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are named by descriptors on Linux alone")


class Handle:
    """As Ray's: whatever is called has been begun when it returns."""

    def __init__(self, log: list[str], name: str) -> None:
        self.log, self.name = log, name

    def __getattr__(self, _: str) -> "Handle":
        return self

    def options(self, **_: int) -> "Handle":
        return self

    def remote(self) -> str:
        self.log.append(self.name)
        return f"{self.name} {len(self.log)}"


class Actor(Caller):
    """Says in `log` when it is stopped."""

    def rest(self) -> None:
        self.handle.log.append(f"{self.handle.name} rests")


def until(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.01)


def in_turns(turns: Turns, log: list[str]) -> list[Actor]:
    callers = [Actor(Handle(log, name)) for name in "abcd"]
    for caller in callers:
        caller.turns = turns
    return callers


def test_an_actor_waits_until_one_of_those_that_work_is_done_and_that_one_rests() -> None:
    log: list[str] = []
    waits: list[list[str]] = []

    def last(refs: list[str]) -> list[str]:
        waits.append(refs)
        return refs[-1:]

    a, b, c, d = in_turns(Turns(2, last), log)
    for caller in (a, b, a, c, a, d):
        caller.call("train")
    assert log == ["a", "b", "a", "b rests", "c", "a", "c rests", "d"]
    # One that works may be called again: what counts is the last call of each.
    assert waits == [["a 3", "b 2"], ["a 6", "c 5"]]


def test_actors_that_hang_do_not_keep_others_from_their_turn() -> None:
    log: list[str] = []
    waits: list[list[str]] = []

    def none(refs: list[str]) -> list[str]:
        waits.append(refs)
        return []

    for caller in in_turns(Turns(2, none), log):
        caller.call("train")
    assert log == ["a", "b", "c", "d"]
    assert waits == [["a 1", "b 2"]]


@pytest.fixture
def child() -> Iterator[psutil.Process]:
    with subprocess.Popen(["sleep", "600"]) as process:
        yield psutil.Process(process.pid)
        process.kill()


@pytest.fixture
def sibling(child: psutil.Process, monkeypatch: pytest.MonkeyPatch) -> psutil.Process:
    """A process whose parent is what this one takes for its own."""
    monkeypatch.setattr(os, "getppid", os.getpid)
    return child


def is_stopped(process: psutil.Process) -> bool:
    return bool(process.status() == psutil.STATUS_STOPPED)


def test_an_actor_is_stopped_until_the_next_call(sibling: psutil.Process) -> None:
    log: list[str] = []
    caller = Caller(Handle(log, "a"))
    caller.rest()  # not known yet
    caller.runs_in(sibling.pid)
    assert not is_stopped(sibling)
    for _ in range(2):
        caller.rest()
        until(partial(is_stopped, sibling))
        caller.call("train")
        until(lambda: not is_stopped(sibling))
    caller.rest()
    until(partial(is_stopped, sibling))
    caller.close()
    until(lambda: not is_stopped(sibling))
    caller.rest()
    assert not is_stopped(sibling)
    assert len(log) == 2


def test_an_actor_that_is_to_end_is_waited_for_while_it_ends(sibling: psutil.Process) -> None:
    waited: list[float] = []
    assert Caller(Handle([], "a")).close(60.0), "of one whose process is not known there is nothing to wait for"
    for patience_s in (0.2, 60.0):
        caller = Caller(Handle([], "a"))
        caller.runs_in(sibling.pid)
        caller.rest()
        until(partial(is_stopped, sibling))
        if waited:
            sibling.terminate()  # which waits until it is continued
        before, is_told = time.monotonic(), bool(waited)
        assert caller.close(patience_s) is is_told
        waited.append(time.monotonic() - before)
    assert waited[0] >= 0.2
    assert waited[1] < 60
    until(lambda: not sibling.is_running() or sibling.status() == psutil.STATUS_ZOMBIE)


def test_another_processs_child_is_not_stopped(child: psutil.Process) -> None:
    caller = Caller(Handle([], "a"))
    caller.runs_in(child.pid)
    caller.rest()
    assert not is_stopped(child)


def test_an_actor_is_not_left_stopped_whose_parent_has_ended(
    sibling: psutil.Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    caller = Caller(Handle([], "a"))
    caller.runs_in(sibling.pid)
    monkeypatch.setattr(os, "getppid", lambda: 1)
    caller.rest()
    until(lambda: not is_stopped(sibling))


def test_an_actor_that_has_died_is_left_to_ray(sibling: psutil.Process) -> None:
    log: list[str] = []
    caller = Caller(Handle(log, "a"))
    caller.runs_in(sibling.pid)
    sibling.kill()
    sibling.wait()
    caller.rest()
    caller.call("train")
    caller.close()
    assert log == ["a"]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_resting_changes_no_bit_and_an_actor_that_is_killed_over_it_is_replaced(
    small_scenario: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario = small_scenario.override({"execution.runtime": "ray", "execution.clients_per_actor": 3})
    awake, facts = run_here(scenario)
    monkeypatch.setattr(actors, "_WAITING_PER_CORE", 0)
    # A run's driver is its actors' sibling; here the driver is this process.
    siblings = SimpleNamespace(Process=lambda _: SimpleNamespace(ppid=os.getppid), Error=psutil.Error)
    monkeypatch.setattr(resting, "psutil", siblings)
    monkeypatch.setattr(actors, "Turns", lambda _, some_done: Turns(1, some_done))
    rested: list[list[psutil.Process]] = []
    original = ActorRuntime.take_round

    def killed_over_its_rest(runtime: Any) -> Any:
        until(lambda: len(resting_actors()) == len(runtime._slots) - 1)
        rested.append(resting_actors())
        if len(rested) == 2:
            rested[0][0].kill()
        return original(runtime)

    monkeypatch.setattr(ActorRuntime, "take_round", killed_over_its_rest)
    records, own_facts = run_here(scenario)
    assert len(rested) >= 3
    assert numbers(records) == numbers(awake)
    assert sum(len(record.failures) for record in records) == 1
    assert own_facts["digest"] == facts["digest"]


def resting_actors() -> list[psutil.Process]:
    everyone = psutil.process_iter(["cmdline", "status"])
    return [
        each
        for each in everyone
        if each.info["status"] == psutil.STATUS_STOPPED and "ray::ClientActor" in " ".join(each.info["cmdline"] or [])
    ]
