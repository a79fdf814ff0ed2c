"""An author's own algorithm: named in a file or given as an object, the same bits as the built-in one it repeats."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from plain_loops import TREE

from blossom_ray import Run, Scenario, ScenarioError, simulate, sweep
from blossom_ray.algorithms.options import Ditto
from blossom_ray.algorithms.seam import Client, Extra, Layout, Pass, Sent, ServerView, Tree
from blossom_ray.errors import InputError
from blossom_ray.reading.own_code import own_code_checksums
from blossom_ray.reading.writer import scenario_yaml
from blossom_ray.runs.session import record_run, resume_run
from blossom_ray.scenario.identity import identity

FILE = """
from blossom_ray.algorithms.seam import Extra, Pass, Sent


class Scaffold:
    def __init__(self, factor=1.0):
        self.factor = factor

    def extras(self, layout):
        return {"c": Extra(layout.averaged), "own": Extra(layout.averaged, scope="private")}

    def passes(self, k):
        return [Pass(offset=self.factor * (k["c"] - k["own"]))]

    def finish(self, k):
        change = (k.mean_step - k["c"]) * k.stepped
        return {"own": k["own"] + change, "c": Sent(change)}

    def server(self, s):
        return {"c": s.current["c"] + s.total["c"] / s.holders["c"]}
"""


def scenario_of(algorithm: dict[str, Any]) -> Scenario:
    return Scenario.model_validate({**TREE, "rounds": 2, "algorithm": algorithm})


@pytest.fixture
def own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module `own_of_a_test` in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "own_of_a_test.py").write_text(FILE, encoding="utf-8")
    yield tmp_path / "own_of_a_test.py"
    sys.modules.pop("own_of_a_test", None)


@dataclass
class Dyn:
    """FedDyn once more."""

    alpha: float = 0.1

    def extras(self, layout: Layout) -> dict[str, Extra]:
        return {"own": Extra(layout.averaged, scope="private"), "h": Extra(layout.averaged, scope="server")}

    def passes(self, k: Client) -> list[Pass]:
        return [Pass(offset=-k["own"], anchor=k.received, mu=self.alpha)]

    def finish(self, k: Client) -> dict[str, Any]:
        return {"own": k["own"] - self.alpha * (k.new - k.received)}

    def server(self, s: ServerView) -> dict[str, Tree]:
        moved = s.total["model"] - s.weight["model"] * s.current["model"]
        h = s.current["h"] - self.alpha * moved / s.holders["model"]
        return {"h": h, "model": s.average("model") - h / self.alpha}


class Lossy:
    """Forgets what it was made with."""

    def __init__(self, strength: float) -> None:
        self.doubled = 2 * strength

    def finish(self, k: Client) -> dict[str, Any]:
        return {"model": Sent(k.new)}


class Shifting(Lossy):
    """Cannot be made again from its attributes."""

    def __init__(self, strength: float) -> None:
        self.strength = 2 * strength


def test_named_in_a_file_it_has_the_bits_of_the_built_in_one(own_file: Path) -> None:
    own = simulate(scenario_of({"kind": "custom", "factory": "own_of_a_test:Scaffold"}))
    built_in = simulate(scenario_of({"kind": "scaffold"}))
    plain = simulate(scenario_of({"kind": "fedavg"}))
    assert own.manifest["digest"] == built_in.manifest["digest"] != plain.manifest["digest"]


def test_options_reach_it(own_file: Path) -> None:
    section = {"kind": "custom", "factory": "own_of_a_test:Scaffold", "options": {"factor": 0.5}}
    one, half = (simulate(scenario_of(each)) for each in (section | {"options": {}}, section))
    assert one.manifest["digest"] != half.manifest["digest"]


def test_an_object_is_taken_as_its_class_and_its_arguments() -> None:
    scenario = scenario_of({"kind": "feddyn", "alpha": 0.2})
    own = scenario.override({"algorithm": Dyn(0.2)})
    assert own.algorithm.model_dump() == {"kind": "custom", "factory": Dyn, "options": {"alpha": 0.2}}
    assert simulate(own).manifest["digest"] == simulate(scenario).manifest["digest"]
    assert f'factory: "{__name__}:Dyn"' in scenario_yaml(own)
    given = Scenario.model_validate(dict(scenario) | {"algorithm": Dyn(0.2)})
    assert given == own


def test_objects_that_differ_are_different_simulations() -> None:
    scenario = scenario_of({"kind": "fedavg"})
    two = [scenario.override({"algorithm": Dyn(alpha)}) for alpha in (0.1, 0.2)]
    assert identity(two[0]) != identity(two[1])
    assert identity(two[0]) == identity(
        scenario.override({"algorithm": {"kind": "custom", "factory": Dyn}} | {"algorithm.options": {"alpha": 0.1}})
    )


def test_what_inherits_from_a_built_in_one_is_not_taken_for_it() -> None:
    class Nearer(Ditto):
        def passes(self, k: Client) -> list[Pass]:
            return super().passes(k)[:1]

    scenario = scenario_of({"kind": "ditto"})
    own = scenario.override({"algorithm": Nearer(kind="ditto")})
    assert own.algorithm.kind == "custom"
    assert identity(own) != identity(scenario)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (Lossy(1.0), "expected an attribute strength of Lossy that holds its argument strength"),
        (Shifting(1.0), "expected Shifting with the attributes that its arguments give it, and no others"),
        (3, "algorithm is 3; expected a mapping with the key 'kind'"),
    ],
)
def test_objects_that_cannot_be_made_again(given: Any, message: str) -> None:
    with pytest.raises(ScenarioError, match=message):
        scenario_of({"kind": "fedavg"}).override({"algorithm": given})


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("no_such_module:Mine", "algorithm.factory is 'no_such_module:Mine', but there is no module 'no_such_module'"),
        ("own_of_a_test:Missing", "own_of_a_test has no attribute 'Missing'"),
    ],
)
def test_code_that_cannot_be_found_is_told_before_a_run(own_file: Path, factory: str, message: str) -> None:
    with pytest.raises(ScenarioError, match=message):
        simulate(scenario_of({"kind": "custom", "factory": factory}))


def test_a_factory_that_gives_no_algorithm() -> None:
    with pytest.raises(InputError, match=r"gave dict with no such method; expected an object with some of extras"):
        simulate(scenario_of({"kind": "custom", "factory": dict}))
    with pytest.raises(InputError, match=r"algorithm.factory raised TypeError: .*unexpected keyword argument 'speed'"):
        simulate(scenario_of({"kind": "custom", "factory": Dyn, "options": {"speed": 1}}))


def test_it_is_among_the_code_that_a_run_is_known_by(own_file: Path) -> None:
    scenario = scenario_of({"kind": "custom", "factory": "own_of_a_test:Scaffold"})
    before = own_code_checksums(scenario)
    assert list(before) == ["own_of_a_test"]
    own_file.write_text(FILE.replace("1.0", "2.0"), encoding="utf-8")
    assert own_code_checksums(scenario) != before
    assert list(own_code_checksums(scenario.override({"algorithm": Dyn()}))) == [f"{__name__}:Dyn"]


class Branching(Dyn):
    """Cannot be mapped over clients: looks at numbers."""

    def passes(self, k: Client) -> list[Pass]:
        mu = self.alpha if float(k.num_samples) > 0 else 0.0
        return [Pass(offset=-k["own"], anchor=k.received, mu=mu)]


def test_functions_that_cannot_be_mapped_are_called_in_turn_and_said(caplog: pytest.LogCaptureFixture) -> None:
    scenario = scenario_of({"kind": "feddyn"}).override({"training.engine": "vectorized"})
    mapped = simulate(scenario)
    with caplog.at_level("INFO"):
        run = simulate(scenario.override({"algorithm": Branching()}))
    said = "algorithm: passes is called for one client after the other, for it cannot be mapped: "
    (told,) = [text for text in caplog.messages if "after the other" in text]
    assert told.startswith(said)
    assert told in run.manifest["notes"]
    assert not any("after the other" in note for note in mapped.manifest["notes"])
    assert set(run.manifest["engines"].values()) == {"vectorized"}
    assert run.rounds["loss"].to_list() == pytest.approx(mapped.rounds["loss"].to_list(), abs=1e-5)


class LooksAtLosses:
    """A loss that cannot be mapped over clients."""

    def loss(self, batch: Any) -> Any:
        return 0.1 * batch.losses if float(batch.losses.detach().sum()) > 0 else batch.losses


def test_losses_that_cannot_be_mapped_are_said() -> None:
    changes = {"training.engine": "vectorized", "rounds": 1, "server.clients_per_round": 1.0}
    scenario = scenario_of({"kind": "fedavg"}).override(changes)
    notes = simulate(scenario.override({"algorithm": LooksAtLosses()})).manifest["notes"]
    said = "were computed one after the other: their stack raised RuntimeError: algorithm: loss cannot be mapped: "
    assert {note.partition(said)[0] for note in notes if said in note} == {
        f"clients with {name} " for name in ("acc", "acc+gyro", "gyro")
    }


@pytest.mark.parametrize("algorithm", [{"kind": "ditto"}, Dyn()], ids=str)
def test_keys_that_an_algorithm_would_ignore_are_refused(algorithm: Any) -> None:
    scenario = scenario_of({"kind": "fedavg"}).override({"sharing": "private-head"})
    alternate = {"private_epochs": 1, "shared_epochs": 1}
    for key, value in (("training.proximal_mu", 0.1), ("training.alternate", alternate)):
        with pytest.raises(InputError, match=rf"{key} .*, while the algorithm has its own passes; expected (0|null)"):
            simulate(scenario.override({"algorithm": algorithm, key: value}))
    with pytest.raises(ScenarioError, match=r"algorithm.kind is '\w+', while sharing is 'central'; expected 'fedavg'"):
        scenario.override({"algorithm": algorithm, "sharing": "central"})


class Steps:
    """Sends the mean step."""

    def extras(self, layout: Layout) -> dict[str, Extra]:
        return {"step": Extra(layout.averaged)}

    def finish(self, k: Client) -> dict[str, Any]:
        return {"step": Sent(k.mean_step)}


def test_steps_of_momentum_are_no_gradients() -> None:
    changes = {"algorithm": Steps(), "training.optimizer.momentum": 0.9}
    with pytest.raises(InputError, match=r"algorithm: finish: mean_step has no meaning .* sgd with a momentum"):
        simulate(scenario_of({"kind": "fedavg"}).override(changes))


def test_cells_of_a_sweep_and_a_resumed_run_find_it(own_file: Path, warm_processes: None) -> None:
    section = {"kind": "custom", "factory": "own_of_a_test:Scaffold", "options": {"factor": 1.0}}
    scenario = scenario_of(section).override({"checkpoint.every": 1})
    folder, vary = own_file.parent / "sweep", {"algorithm.options.factor": [1.0, 0.5]}
    results = list(sweep(scenario, vary=vary, out=folder, jobs=1))
    digests = [result.run.manifest["digest"] for result in results if result.run is not None]
    assert len(digests) == 2
    assert digests[0] != digests[1]
    assert simulate(scenario).manifest["digest"] in digests
    records = record_run(scenario, own_file.parent / "run")
    for _ in range(2):
        next(records)
    records.close()
    for _ in resume_run(scenario, own_file.parent / "run"):
        pass
    assert Run.open(own_file.parent / "run").manifest["digest"] == simulate(scenario).manifest["digest"]
    # Cells that have finished are of other code then.
    own_file.write_text(FILE.replace("s.total", "2 * s.total"), encoding="utf-8")
    with pytest.raises(InputError, match="own_of_a_test"):
        list(sweep(scenario, vary=vary, out=folder, jobs=1))
