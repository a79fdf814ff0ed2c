"""Client actors that sleep between two calls."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from blossom_ray import Scenario
from blossom_ray.runtime.actors import ActorRuntime
from blossom_ray.runtime.resting import Bell, Caller, Turns, new_name
from tests.runtime.test_recovery import numbers, run_here

pytestmark = pytest.mark.skipif(not new_name(), reason="sockets that go with their process are Linux's")


class Handle:
    """As Ray's: calls are begun at once, and done one after the other."""

    def __init__(self, name: str) -> None:
        self.bell = Bell(name)
        self.done: list[str] = []
        self.begun: list[str] = []
        self._last: threading.Thread | None = None

    def close(self) -> None:
        if self._last is not None:
            self._last.join(60)
        self.bell._listener.close()
        if self.bell._driver is not None:
            self.bell._driver.close()

    def __getattr__(self, method: str) -> Any:
        handle = self

        class Method:
            def options(self, **_: int) -> "Method":
                return self

            def remote(self) -> threading.Thread:
                return handle.begin(method)

        return Method()

    def begin(self, method: str) -> threading.Thread:
        before = self._last

        def run() -> None:
            if before is not None:
                before.join()
            self.begun.append(method)
            if method == "rest":
                self.bell.wait()
            self.done.append(method)

        self._last = threading.Thread(target=run, daemon=True)
        self._last.start()
        return self._last


@pytest.fixture
def resting() -> Iterator[tuple[Handle, Caller]]:
    name = new_name()
    handle = Handle(name)
    caller = Caller(handle, name)
    yield handle, caller
    caller.close()
    handle.close()


def until(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.01)


def test_an_actor_rests_after_a_call_and_wakes_for_the_next(resting: tuple[Handle, Caller]) -> None:
    handle, caller = resting
    for number in range(1, 4):
        caller.call("train").join(60)
        until(lambda number=number: handle.begun.count("rest") == number)  # type: ignore[misc]
        assert handle.done.count("rest") == number - 1


def test_calls_that_follow_each_other_at_once_are_all_done(resting: tuple[Handle, Caller]) -> None:
    handle, caller = resting
    calls = [caller.call("train") for _ in range(500)]
    calls[-1].join(60)
    assert handle.done.count("train") == 500
    assert handle.done.count("rest") == 499


def test_an_actor_that_is_told_to_rest_twice_rests_once(resting: tuple[Handle, Caller]) -> None:
    handle, caller = resting
    caller.rest()
    caller.rest()
    caller.call("train").join(60)
    assert handle.done == ["rest", "train"]


def test_an_actor_whose_driver_is_gone_wakes(resting: tuple[Handle, Caller]) -> None:
    handle, caller = resting
    caller.rest()
    until(lambda: handle.begun == ["rest"])
    caller.close()
    until(lambda: handle.done == ["rest"])


@pytest.mark.parametrize("name", ["", new_name()], ids=["not to rest", "not up"])
def test_an_actor_that_is_not_up_or_not_here_or_is_not_to_rest_does_not(name: str) -> None:
    handle = Handle(new_name())
    caller = Caller(handle, name)
    caller.call("train").join(60)
    caller.call("evaluate").join(60)
    assert handle.done == ["train", "evaluate"]
    handle.close()


def test_a_call_of_an_actor_that_died_over_its_rest_is_left_to_ray(resting: tuple[Handle, Caller]) -> None:
    handle, caller = resting
    caller.rest()
    until(lambda: handle.bell._driver is not None)
    assert handle.bell._driver is not None
    handle.bell._driver.shutdown(socket.SHUT_RDWR)
    caller.call("train")
    caller.call("evaluate")  # the pipe is broken by now


def test_an_actor_that_hangs_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blossom_ray.runtime.resting._PATIENCE_S", 0.05)
    name = new_name()

    class Deaf:
        def __getattr__(self, _: str) -> "Deaf":
            return self

        def options(self, **_: int) -> "Deaf":
            return self

        def remote(self) -> None:
            calls.append(1)

    calls: list[int] = []
    bell = Bell(name)
    caller = Caller(Deaf(), name)
    for _ in range(2000):
        caller.call("train")
    assert caller._bell is None
    num_calls = len(calls)
    caller.call("train")
    assert len(calls) == num_calls + 1  # and no rest
    bell._listener.close()


class Begun:
    """As Ray's handles: whatever is called has been begun when it returns."""

    def __init__(self, log: list[str], name: str) -> None:
        self.log, self.name = log, name

    def __getattr__(self, _: str) -> "Begun":
        return self

    def options(self, **_: int) -> "Begun":
        return self

    def remote(self) -> str:
        self.log.append(self.name)
        return f"{self.name} {len(self.log)}"


def in_turns(turns: Turns, log: list[str]) -> list[Caller]:
    callers = [Caller(Begun(log, name)) for name in "abcd"]
    for caller in callers:
        caller.turns = turns
    return callers


def test_an_actor_waits_until_one_of_those_that_work_is_done() -> None:
    log: list[str] = []
    waits: list[list[str]] = []

    def last(refs: list[str]) -> list[str]:
        waits.append(refs)
        return refs[-1:]

    a, b, c, d = in_turns(Turns(2, last), log)
    for caller in (a, b, a, c, a, d):
        caller.call("train")
    assert log == ["a", "b", "a", "c", "a", "d"]
    # One that works may be called again: what counts is the last call of each.
    assert waits == [["a 3", "b 2"], ["a 5", "c 4"]]


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


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_resting_changes_no_bit_and_an_actor_that_is_killed_over_it_is_replaced(
    small_scenario: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario = small_scenario.override({"execution.runtime": "ray", "execution.clients_per_actor": 3})
    awake, facts = run_here(scenario)
    monkeypatch.setattr("blossom_ray.runtime.actors._WAITING_PER_CORE", 0)
    rested: list[list[psutil.Process]] = []
    original = ActorRuntime.take_round

    def killed_over_its_rest(runtime: Any) -> Any:
        # Between two rounds every actor is done, and comes to rest.
        until(lambda: len(resting_actors()) == len(runtime._slots))
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
    """Ray names a worker's process by what it runs."""
    everyone = psutil.process_iter(["cmdline"])
    return [one for one in everyone if "ray::ClientActor.rest" in " ".join(one.info["cmdline"] or [])]
