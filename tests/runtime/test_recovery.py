"""Lost actors and failing clients: what is repeated gives the same bits, what is dropped is said."""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from ray import cloudpickle
from torch import nn

from blossom_ray import Dataset, Run, Scenario, from_arrays, simulate
from blossom_ray.algorithms.selection import Chunk
from blossom_ray.core.records import RoundRecord, Scoring
from blossom_ray.errors import ActorLostError, ClientError, RunError
from blossom_ray.runs.loop import LateScores, Outcome, Setup
from blossom_ray.runs.session import events
from blossom_ray.runtime.client_actor import ClientActor
from blossom_ray.runtime.placement import Room
from blossom_ray.runtime.preparation import Preparation
from blossom_ray.runtime.recovery import Call, Recovery, Slot, check_room
from blossom_ray.scenario.sections import ClientResources, Failures

# Actors cannot import this file.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


@pytest.fixture
def on_ray(small_scenario: Scenario) -> Scenario:
    """Two actors, four rounds, a checkpoint every second one, private heads and kept optimizer state."""
    return small_scenario.override(
        {
            "rounds": 4,
            "sharing": "private-head",
            "checkpoint.every": 2,
            "training.keep_optimizer_state": True,
            "server.clients_per_round": 4,
            "execution.runtime": "ray",
            "execution.clients_per_actor": 3,
        }
    )


class Lethal(ClientActor):
    """Kills its process once, at a given call, and notes that in a file; a successor goes on."""

    marks = Path()
    method = ""
    round_index = 0

    def train(self, *arguments: Any) -> Any:
        self._strike("before train", arguments[2])
        result = super().train(*arguments)
        self._strike("after train", arguments[2])
        return result

    def evaluate(self, *arguments: Any) -> Any:
        self._strike("evaluate", arguments[2])
        self._strike(f"evaluate {arguments[3]}", arguments[2])
        return super().evaluate(*arguments)

    def private_sums(self, *arguments: Any) -> Any:
        self._strike("private sums", arguments[2])
        return super().private_sums(*arguments)

    def begin_checkpoint(self, path: Path, round_index: int) -> None:
        self._strike("checkpoint", round_index)
        super().begin_checkpoint(path, round_index)

    def restore(self, *arguments: Any) -> None:
        self._strike("restore", 0)
        super().restore(*arguments)

    def setup(self, *arguments: Any) -> None:
        self._strike("setup", 0)
        super().setup(*arguments)

    def _strike(self, method: str, round_index: int) -> None:
        if (method, round_index) == (self.method, self.round_index):
            try:
                (self.marks / "struck").touch(exist_ok=False)
            except FileExistsError:
                return
            os.kill(os.getpid(), signal.SIGKILL)


def lethal(monkeypatch: pytest.MonkeyPatch, marks: Path, method: str, round_index: int) -> None:
    kind = type("ClientActor", (Lethal,), {"marks": marks, "method": method, "round_index": round_index})
    monkeypatch.setattr("blossom_ray.runtime.actors.ClientActor", kind)


def run_here(scenario: Scenario) -> tuple[list[RoundRecord], dict[str, Any]]:
    """Run with the loop in this process, so that a patched actor class is used; only the clients are actors."""
    import tempfile

    from blossom_ray.runs.loop import run
    from blossom_ray.runtime import actors

    records, facts = [], {}
    with tempfile.TemporaryDirectory() as folder:
        shards = Path(folder) / "shards"
        shards.mkdir()
        handles = actors.spawn_clients(scenario, stacks=scenario.training.may_stack)

        def start(preparation: Preparation) -> actors.ActorRuntime:
            return actors.ActorRuntime(preparation, handles)

        for event in run(scenario, start, shards=shards, checkpoints=Path(folder) / "checkpoints"):
            if isinstance(event, Setup | Outcome):
                facts |= event.entries
            elif isinstance(event, RoundRecord):
                records.append(event)
            elif isinstance(event, LateScores):
                records.append(event.record)
    return records, facts


def numbers(records: list[RoundRecord]) -> list[Any]:
    return [
        (
            record.metrics,
            [(t.client, t.loss, t.num_steps, t.drift, t.bytes_down, t.bytes_up) for t in record.training],
            [(e.client, e.loss, e.scores, e.bytes_down) for e in record.evaluation],
            record.blocks,
        )
        for record in records
    ]


def test_an_actor_that_is_up_and_does_not_answer_is_replaced(
    on_ray: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed, _ = run_here(on_ray.override({"execution.runtime": "local"}))

    class Deaf(ClientActor):
        def setup(self, *arguments: Any) -> None:
            try:
                (tmp_path / "struck").touch(exist_ok=False)
            except FileExistsError:
                super().setup(*arguments)
            else:
                time.sleep(600)

    monkeypatch.setattr("blossom_ray.runtime.actors.ClientActor", Deaf)
    monkeypatch.setattr("blossom_ray.runtime.actors._FIRST_PATIENCE_S", 5.0)
    records, _ = run_here(on_ray)
    assert numbers(records) == numbers(undisturbed)
    (failure,) = (failure for record in records for failure in record.failures)
    assert (failure.phase, failure.action, failure.cause) == ("set-up", "repeated", "was not up within 5 s")


@pytest.mark.parametrize(
    ("method", "round_index"),
    [
        ("before train", 1),
        ("before train", 4),
        ("after train", 3),
        ("evaluate", 0),
        ("evaluate", 3),
        ("checkpoint", 2),
        ("setup", 0),
    ],
)
def test_a_killed_actor_changes_no_bit(
    on_ray: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, round_index: int
) -> None:
    undisturbed, facts = run_here(on_ray.override({"execution.runtime": "local"}))
    lethal(monkeypatch, tmp_path, method, round_index)
    records, disturbed_facts = run_here(on_ray)
    assert (tmp_path / "struck").exists()
    assert disturbed_facts["digest"] == facts["digest"]
    assert numbers(records) == numbers(undisturbed)
    failures = [failure for record in records for failure in record.failures]
    assert [failure.action for failure in failures] == ["repeated"]
    assert sum(actor.times_replaced for record in records for actor in record.actors) == 1


def test_an_actor_that_is_killed_over_sums_of_private_blocks_changes_no_bit(
    on_ray: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unseen = {"count": 1, "modalities": ["acc"], "role": "unseen"}
    changes = {"clients": [*on_ray.model_dump()["clients"], unseen], "evaluation.unseen": {"start": "group-average"}}
    scenario = on_ray.override(changes)
    undisturbed, facts = run_here(scenario.override({"execution.runtime": "local"}))
    lethal(monkeypatch, tmp_path, "private sums", 3)
    records, disturbed_facts = run_here(scenario)
    assert (tmp_path / "struck").exists()
    assert disturbed_facts["digest"] == facts["digest"]
    assert numbers(records) == numbers(undisturbed)
    assert [failure.phase for record in records for failure in record.failures] == ["evaluation"]


BEST = 3


@pytest.mark.parametrize(
    ("method", "round_index"),
    [
        ("checkpoint", BEST),
        ("restore", 0),
        (f"evaluate {Scoring.OWN_TEST}", BEST),
    ],
)
def test_a_killed_actor_takes_no_best_round_along(
    on_ray: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, round_index: int
) -> None:
    """Whenever an actor is lost, also at the end, when the best round's blocks are scored once more."""
    scenario = on_ray.override(
        {
            "rounds": 5,
            "data.validation_fraction": 0.3,
            "evaluation.split": "validation",
            "evaluation.fine_tune": {"epochs": 1},
            "stop": {"patience": 2},
        }
    )
    undisturbed, facts = run_here(scenario.override({"execution.runtime": "local"}))
    assert (facts["stopped"]["best_round"], facts["stopped"]["round"]) == (BEST, 5)
    lethal(monkeypatch, tmp_path, method, round_index)
    records, disturbed_facts = run_here(scenario)
    assert (tmp_path / "struck").exists()
    for name in ("digest", "stopped"):
        assert disturbed_facts[name] == facts[name]
    assert numbers(records) == numbers(undisturbed)
    assert records[-1].round_index == BEST
    assert {"accuracy", "fine_tuned/accuracy", "validation/fine_tuned/accuracy"} <= records[-1].metrics.keys()


class Bad(nn.Module):
    """A head whose training raises, gives NaN, or hangs and says so in the folder `how`, now and then."""

    def __init__(self, input_dim: int, num_outputs: int, how: str = "raise") -> None:
        super().__init__()
        self.linear = nn.Linear(input_dim, num_outputs)
        self.how = how
        self.seen = 0

    def forward(self, fused: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.linear(fused)
        # The initial seed of the client and round: the same on every placement.
        if self.training and torch.initial_seed() % 5 == 0:
            if self.how == "raise":
                raise RuntimeError("a bad client")
            if self.how.startswith("/"):
                Path(self.how, ray.get_runtime_context().get_actor_id()).touch()
                time.sleep(600)
            return outputs * float("nan")
        return outputs


@pytest.mark.parametrize("how", ["raise", "nan"])
def test_failing_clients_are_dropped_and_said_the_same_everywhere(on_ray: Scenario, how: str) -> None:
    scenario = on_ray.override(
        {
            "model.head": {"kind": "custom", "factory": Bad, "options": {"how": how}},
            "failures.on_failure": "drop",
        }
    )
    local = collect(scenario.override({"execution.runtime": "local"}))
    placed = collect(scenario)
    dropped = [[failure.clients for failure in record.failures] for record in local]
    assert [[failure.clients for failure in record.failures] for record in placed] == dropped
    assert any(dropped)
    for record in local:
        gone = {client for failure in record.failures for client in failure.clients}
        assert len(record.cohort) == (4 if record.round_index else 0) - len(gone)
        assert gone.isdisjoint(record.cohort)
    assert numbers(placed) == numbers(local)


def four_clients() -> Dataset:
    """Of twelve training and four test rows each; the training rows of client 2 are large."""
    draw = np.random.default_rng(0)
    clients, splits = np.repeat(range(4), 16), np.tile([*["train"] * 12, *["test"] * 4], 4)
    values = draw.normal(size=(64, 5)).astype(np.float32)
    values[(clients == 2) & (splits == "train")] *= 1e6
    return from_arrays({"acc": values}, draw.integers(0, 3, 64), clients=clients, splits=splits)


def only_small(inputs: torch.Tensor) -> torch.Tensor:
    if float(inputs.detach().abs().max()) > 1e3:
        raise ArithmeticError("too large")
    return inputs


def head_for_small_values(input_dim: int, num_outputs: int) -> nn.Module:
    """Of layers that can be stacked, one of which refuses what client 2 trains on."""
    layer = nn.Identity()
    layer.forward = only_small
    return nn.Sequential(layer, nn.Linear(input_dim, num_outputs))


def test_of_clients_that_are_stacked_the_one_that_fails_is_dropped(small_scenario: Scenario) -> None:
    scenario = small_scenario.override(
        {
            "rounds": 2,
            "data": {"dataset": "custom", "factory": four_clients, "partition": {"kind": "given"}},
            "clients": [{"count": 4, "modalities": ["acc"]}],
            "model.encoders": {"acc": {"kind": "mlp", "hidden": [8], "dim": 6}},
            "model.fusion": {"kind": "concat", "dim": 6},
            "model.head": {"kind": "custom", "factory": head_for_small_values},
            "training.engine": "vectorized",
            "failures.on_failure": "drop",
            "execution.chunk_size": 4,
        }
    )
    local, placed = collect(scenario), collect(scenario.override({"execution.runtime": "ray"}))
    for record in (*local[1:], *placed[1:]):
        (failure,) = record.failures
        assert (failure.clients, failure.action) == ((2,), "dropped")
        assert failure.cause.startswith("ArithmeticError: too large")
        assert record.cohort == (0, 1, 3)
    assert numbers(placed) == numbers(local)


def first_bad_round(scenario: Scenario) -> RoundRecord:
    """The first round in which a client's training fails, if it fails by raising."""
    head = {"kind": "custom", "factory": Bad, "options": {"how": "raise"}}
    changes = {"model.head": head, "rounds": 20, "failures.on_failure": "drop", "execution.runtime": "local"}
    return next(record for record in collect(scenario.override(changes)) if record.failures)


def test_clients_that_hang_are_dropped_and_said(
    on_ray: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call that takes too long is given up with all of its clients: nobody can tell which of them hangs."""
    bad, wait = first_bad_round(on_ray), ray.wait

    def wait_until_it_hangs(refs: list[Any], *, timeout: float, **options: Any) -> tuple[list[Any], list[Any]]:
        """The time of a call is over as soon as its actor says that it hangs."""
        hangs = tmp_path / refs[0].task_id().actor_id().hex()
        found = wait(refs, timeout=min(timeout, 0.05), **options)
        while timeout == 1000.0 and not found[0] and not hangs.exists():
            found = wait(refs, timeout=0.05, **options)
        return found

    monkeypatch.setattr(ray, "wait", wait_until_it_hangs)
    records, _ = run_here(
        on_ray.override(
            {
                "model.head": {"kind": "custom", "factory": Bad, "options": {"how": str(tmp_path)}},
                "rounds": bad.round_index,
                "execution.timeout_s": 1000.0,
                "failures": {"max_retries": 0, "on_failure": "drop"},
            }
        )
    )
    assert {record.round_index for record in records if record.failures} == {bad.round_index}
    failures = records[bad.round_index].failures
    dropped = {client for failure in failures for client in failure.clients}
    hanging = {client for failure in bad.failures for client in failure.clients}
    assert hanging
    assert hanging <= dropped
    for failure in failures:
        assert (failure.phase, failure.action) == ("training", "dropped")
        assert failure.actor in (0, 1)
        assert failure.cause == "gave no result for 1000 s (execution.timeout_s)"
    assert dropped.isdisjoint(training.client for training in records[bad.round_index].training)


@pytest.mark.parametrize(("how", "message"), [("raise", "a bad client"), ("nan", "block .* is not finite after local")])
@pytest.mark.parametrize("runtime", ["local", "ray"])
def test_failing_clients_stop_the_run_by_default(on_ray: Scenario, how: str, message: str, runtime: str) -> None:
    bad = first_bad_round(on_ray)
    head = {"kind": "custom", "factory": Bad, "options": {"how": how}}
    scenario = on_ray.override({"model.head": head, "rounds": 20, "execution.runtime": runtime})
    with pytest.raises(ClientError, match=message) as caught:
        collect(scenario)
    assert caught.value.round_index == bad.round_index
    assert caught.value.client in {client for failure in bad.failures for client in failure.clients}


def test_a_call_that_is_in_the_averages_in_part_is_not_dropped() -> None:
    """Half of a client's blocks in the averages and half not would be no round of any algorithm."""
    recovery = Recovery(Failures(max_retries=0, on_failure="drop"))
    call = Call(Slot(1, None, [3, 4]), "train", Chunk(0, (3, 4)), 7, ())
    loss = ActorLostError("died: its process ended unexpectedly", "look")
    assert recovery.must_drop(call, loss)
    call.is_reported = True
    with pytest.raises(ActorLostError, match="round 7, training: actor 1 with client 3 and 1 others was lost 2 times"):
        recovery.must_drop(call, loss)
    with pytest.raises(ClientError, match="client 3, round 7: oh no"):
        recovery.drop_client(call, ClientError(3, 7, "oh no"))
    assert [(failure.clients, failure.action) for failure in recovery.take()] == [((3, 4), "dropped")]
    assert recovery.take() == ()


@pytest.mark.parametrize(("fits", "left"), [(3, Room(1.5, 0, 8e9)), (2, Room(1, 0, 8e9)), (0, Room(0.4, 0, 8e9))])
def test_a_cluster_that_became_too_small_is_said_with_numbers(fits: int, left: Room) -> None:
    resources = ClientResources(num_cpus=0.5)
    check_room(left, resources, fits)
    with pytest.raises(RunError, match=f"too small: {fits} of this run's {fits + 1} client actors fit into {left}"):
        check_room(left, resources, fits + 1)


def test_too_few_clients_left_stop_the_run(on_ray: Scenario) -> None:
    changes = {"failures.on_failure": "drop", "failures.min_clients": 4, "rounds": 20, "execution.runtime": "local"}
    scenario = on_ray.override({"model.head": {"kind": "custom", "factory": Bad}, **changes})
    with pytest.raises(RunError, match=r"[0-3] clients are left after failures; expected at least 4 \(failures.min"):
        collect(scenario)


def collect(scenario: Scenario) -> list[RoundRecord]:
    return [event for event in events(scenario) if isinstance(event, RoundRecord)]


def test_the_same_run_on_other_actors(on_ray: Scenario) -> None:
    runs: list[Run] = [simulate(on_ray.override({"execution.clients_per_actor": count})) for count in (5, 2)]
    assert runs[0].manifest["digest"] == runs[1].manifest["digest"]
    assert ray.is_initialized()
