"""What `plan` says, by numbers that one can do by hand, and against what a run then does."""

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPOSITORY
from typer.testing import CliRunner

from blossom_ray import Scenario, simulate
from blossom_ray.cli import app
from blossom_ray.errors import InputError
from blossom_ray.runtime.placement import Room, actor_memory_bytes
from blossom_ray.scenario.sections import ClientResources
from blossom_ray.studies.plan import Plan, make_plan

OWN_BYTES = actor_memory_bytes(ClientResources())

TWO_CORES = Room(num_cpus=2, num_gpus=0, memory_bytes=16 * 2**30)
ON_RAY = {"execution.runtime": "ray"}


@pytest.fixture
def plan(small_scenario: Scenario, tmp_path: Path) -> Any:
    def make(room: Room = TWO_CORES, probe: bool | None = False, **changes: Any) -> Plan:
        scenario = small_scenario.override(ON_RAY | {name.replace("__", "."): v for name, v in changes.items()})
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        return make_plan(scenario, room, folder, probe=probe)

    return make


def test_clients_chunks_and_actors(plan: Any) -> None:
    found = plan()
    assert {name: (s.clients, s.chunks) for name, s in found.sets.items()} == {
        "acc": (2, 1), "acc+gyro": (2, 1), "gyro": (1, 1)
    }  # fmt: skip
    # 2 cores / 0.2 give ten actors: one for each of the five clients.
    assert (found.actors, found.most_clients_per_actor, found.most_actors) == (5, 1, 10)
    assert found.packings["1"].actors == 5
    packed = plan(clients__0__count=20)
    assert (packed.actors, packed.most_actors) == (2, 10)
    assert sum(s.clients for s in packed.sets.values()) == 23
    assert packed.packings["1"].actors is None
    assert "takes 23 actors for 23 clients; 10 with 0.2 CPU cores" in packed.packings["1"].refusal
    # 23 / 10, rounded up.
    assert packed.packings["3"].actors == 8


def test_stacked_clients_stay_together(plan: Any) -> None:
    found = plan(training__engine="vectorized")
    assert found.actors == 2
    assert "stacks clients" in found.packings["1"].refusal


def test_why_own_code_is_not_stacked_is_noted(plan: Any) -> None:
    class Centred(torch.nn.Linear):
        def forward(self, fused: torch.Tensor) -> torch.Tensor:
            return super().forward(fused - fused.mean(0))

    found = plan(training__engine="vectorized", model__head={"kind": "custom", "factory": Centred})
    assert {own.engine for own in found.sets.values()} == {"sequential"}
    assert found.notes[0].startswith("engine of acc: sequential, since head (Centred) mixes the rows of a batch")


def test_a_setting_of_the_scenario_s_own_that_does_not_fit_is_refused(plan: Any) -> None:
    with pytest.raises(InputError, match="which takes 23 actors for 23 clients"):
        plan(clients__0__count=20, execution__clients_per_actor=1)


def test_memory_grows_by_what_is_added(plan: Any) -> None:
    shared, private = plan(sharing="full-model").memory, plan(sharing="local").memory
    assert shared.largest_actor > OWN_BYTES
    assert private.largest_actor > shared.largest_actor
    assert private.object_store == 0
    assert shared.total == pytest.approx(5 * OWN_BYTES + shared.driver + shared.object_store, rel=0.01)
    local = plan(execution__runtime="local")
    assert (local.actors, local.memory.largest_actor, local.memory.total) == (0, 0, local.memory.driver)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sharing": "full-model", "evaluation.every": 1},
        {"sharing": {"encoder/*": "frozen", "fusion": "same-modalities", "head": "shared"}},
        {"model.missing": "zero-input", "sharing": "private-head"},
        {
            "model.head": {"kind": "mlp", "hidden": [8], "norm": "batch"},
            "model.norm_statistics": "same-modalities",
            "sharing": "full-model",
        },
    ],
)
def test_bytes_are_those_of_a_round(small_scenario: Scenario, tmp_path: Path, changes: dict[str, Any]) -> None:
    scenario = small_scenario.override(changes)
    plan = make_plan(scenario, TWO_CORES, tmp_path, probe=False)
    last = simulate(scenario).blocks.filter(round=2)
    names = [(block.name, block.key) for block in plan.blocks]
    assert names == list(zip(last["block"], last["key"], strict=True))
    assert [block.bytes_down for block in plan.blocks.values()] == last["bytes_down"].to_list()
    assert [block.bytes_up for block in plan.blocks.values()] == last["bytes_up"].to_list()


def test_bytes_of_an_average_round(plan: Any) -> None:
    """Three of five clients train, all score every second round: 3/5 fetch it, less those whom scoring brought it."""
    found = plan(sharing="full-model", server__clients_per_round=3, evaluation__every=2)
    (fusion,) = (block for instance, block in found.blocks.items() if instance.name == "fusion")
    size = 4 * fusion.values
    assert fusion.bytes_up == pytest.approx(3 * size)
    assert fusion.bytes_down == pytest.approx(5 * size * (0.6 * 0.5 + 0.5))


def test_seconds_are_known_only_where_they_were_measured(plan: Any) -> None:
    assert plan().seconds is None
    found = plan(probe=True)
    times = found.sets["acc"].seconds_per_sample
    assert set(times) == {"sequential", "vectorized", *(["compiled"] if shutil.which("cc") else [])}
    assert 0 < found.seconds.train < 10
    assert 0 < found.seconds.evaluate < 10
    assert plan(probe=True, execution__client_resources__num_gpus=0.1, room=Room(2, 1, 2**34)).seconds is None


def test_unasked_only_models_without_own_code_are_timed(plan: Any) -> None:
    assert plan(probe=None).seconds is not None
    own = {"kind": "custom", "factory": Unready}
    assert plan(probe=None, model__encoders__gyro=own).seconds is None


class Unready(torch.nn.Module):
    """An encoder that must not be trained in the process that plans."""

    def __init__(self, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(math.prod(input_shape), 8)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        assert not (self.training and torch.is_grad_enabled()), "trained"
        return self.layer(inputs.flatten(1))


QUICKSTART = str(REPOSITORY / "scenarios" / "quickstart.yaml")


def test_the_command_fits_into_80_columns() -> None:
    done = CliRunner().invoke(app, ["plan", QUICKSTART], env={"COLUMNS": "80"})
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    # Sentences are left to the terminal to break, as paths are.
    assert max(len(line) for line in lines if line.startswith(" ")) <= 80
    assert "…" not in done.output
    assert lines[0] == "quickstart, private-head-fusion, 10 clients, 20 rounds"
    assert re.search(r"all +218\.6 kB +218\.6 kB", done.output)
    assert "of arithmetic a round" in done.output
    assert "refused: execution.clients_per_actor is 1" in " ".join(done.output.split())


def test_the_command_without_a_probe_says_that_time_is_unknown() -> None:
    command = ["plan", QUICKSTART, "--no-probe", "--set", "execution.runtime=local"]
    done = CliRunner().invoke(app, command, env={"COLUMNS": "80"})
    assert "time: unknown; --probe times a few batches" in done.output
    assert "actor" not in done.output.partition("block")[0]


def test_json_is_the_whole_plan() -> None:
    done = CliRunner().invoke(app, ["plan", QUICKSTART, "--json", "--set", "clients.0.count=40"])
    found = json.loads(done.output)
    assert found["sets"]["acc"]["clients"] == 40
    assert found["clients_per_actor"]["1"]["actors"] is None
    assert found["memory_bytes"]["total"] > found["actors"] * OWN_BYTES
    assert set(found["seconds_per_round"]) == {"train", "evaluate"}
