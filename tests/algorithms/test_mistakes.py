"""What authors get wrong: `validate` says each in one line, and nothing about algorithms that are right."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import pytest
import torch
from conftest import Command
from own_algorithms import Everything
from plain_loops import TREE
from torch.nn.functional import log_softmax, normalize

from blossom_ray import Scenario, simulate
from blossom_ray.algorithms.options import AlgorithmOption, CustomAlgorithm
from blossom_ray.algorithms.seam import Client, Extra, Layout, Pass, Sent, ServerView, Tree
from blossom_ray.studies.algorithm_trial import algorithm_problem

pytestmark = pytest.mark.slow


class Scaffold:
    def extras(self, layout: Layout) -> Any:
        return {"c": Extra(layout.averaged), "own": Extra(layout.averaged, scope="private")}

    def passes(self, k: Client) -> Any:
        return [Pass(offset=k["c"] - k["own"])]

    def finish(self, k: Client) -> Any:
        change = (k.mean_step - k["c"]) * k.stepped
        return {"own": k["own"] + change, "c": Sent(change)}

    def server(self, s: ServerView) -> Any:
        return {"c": s.current["c"] + s.total["c"] / s.holders["c"]}


class Personal:
    def extras(self, layout: Layout) -> Any:
        return {"personal": Extra(layout.averaged, scope="private", initial="received")}

    def passes(self, k: Client) -> Any:
        return [Pass(), Pass(("personal",), anchor=k.received, mu=0.1)]

    def scored(self, x: Any) -> Any:
        return x["personal"]


class Teacher:
    """The received model teaches."""

    def loss(self, batch: Any) -> Any:
        teacher = log_softmax(batch.through("received").outputs, -1)
        return -(teacher.exp() * log_softmax(batch.outputs, -1)).sum(-1)


class ClassMeans:
    """Means of the representation by class, sums and counts in one table."""

    def extras(self, layout: Layout) -> Any:
        return {"means": Extra(shape=(layout.num_classes, layout.width + 1))}

    def after(self, batch: Any) -> Any:
        z = batch.representation
        rows = torch.cat([z, torch.ones_like(z[:, :1])], -1)
        width = batch["means"].shape[0]
        return {"sums": torch.nn.functional.one_hot(batch.targets, width).to(z.dtype)[:, :, None] * rows[:, None, :]}

    def finish(self, k: Client) -> Any:
        return {"means": Sent(k.after["sums"], 1)}

    def server(self, s: ServerView) -> Any:
        counts = s.total["means"].map(lambda t: t[:, -1:])
        means = s.total["means"].map(lambda t: t[:, :-1] / np.maximum(t[:, -1:], 1))
        return {"means": means.map(lambda m, n: np.hstack([m, n > 0]), counts)}


class WrongShape(Scaffold):
    def finish(self, k: Client) -> Any:
        return {"own": k["own"].map(lambda v: v[:-1])}


class UnknownName(Scaffold):
    def finish(self, k: Client) -> Any:
        return {"controls": k["own"]}


class UnknownBlock(Scaffold):
    def extras(self, layout: Layout) -> Any:
        return {"c": Extra(("encoder/video",)), "own": Extra(layout.averaged, scope="private")}


class NameTaken(Scaffold):
    def extras(self, layout: Layout) -> Any:
        return {"model": Extra(layout.averaged)}


class SharedNotSent(Scaffold):
    def finish(self, k: Client) -> Any:
        return {"own": k["own"], "c": k["c"]}


class PrivateSent(Scaffold):
    def finish(self, k: Client) -> Any:
        return {"own": Sent(k["own"])}


class ForgetsRest(Scaffold):
    """Without an offset, with which no block rests."""

    def passes(self, k: Client) -> Any:
        return [Pass(anchor=k.received, mu=0.1)]

    def finish(self, k: Client) -> Any:
        change = k.mean_step - k["c"]
        return {"own": k["own"] + change, "c": Sent(change)}


class DividesByZero(ForgetsRest):
    def finish(self, k: Client) -> Any:
        change = (k.received - k.new) / (k.num_steps * k.learning_rate) - k["c"]
        return {"own": k["own"] + change, "c": Sent(change)}


class KeepsStateInSelf(Scaffold):
    def __init__(self) -> None:
        self.controls: dict[int, int] = {}

    def finish(self, k: Client) -> Any:
        self.controls[len(self.controls)] = 1
        return super().finish(k)


class NumberInsteadOfTensor(Scaffold):
    def passes(self, k: Client) -> Any:
        return [Pass(epochs=int(k.num_samples) // 5 + 1)]


class WritesInPlace(Scaffold):
    def finish(self, k: Client) -> Any:
        for values in k.received.values():
            values.add_(1.0)
        return super().finish(k)


class GlobalRandomness(Scaffold):
    def finish(self, k: Client) -> Any:
        return {"own": k["own"].map(lambda v: v + torch.rand(1)), "c": Sent(k["c"])}


class PaddingIsNegative:
    def loss(self, batch: Any) -> Any:
        if len(batch.embeddings) < 2:
            return torch.zeros_like(batch.losses)
        za, zb = (normalize(values, dim=-1) for values in batch.embeddings.values())
        return -log_softmax(za @ zb.T / 0.5, -1).diagonal()


class BranchesOnData:
    def loss(self, batch: Any) -> Any:
        return batch.losses * 0.1 if batch.losses.mean() > 1 else torch.zeros_like(batch.losses)


class MeanLoss(Teacher):
    def loss(self, batch: Any) -> Any:
        return super().loss(batch).mean()


class AbsentClassIsNan(ClassMeans):
    def loss(self, batch: Any) -> Any:
        means, seen = batch["means"][:, :-1], batch["means"][:, -1]
        log_p = log_softmax((batch.representation @ means.T).where(seen > 0, torch.tensor(float("-inf"))), -1)
        return -log_p.gather(-1, batch.targets[:, None])[:, 0] * seen[batch.targets]


class EmptyClass(ClassMeans):
    def server(self, s: ServerView) -> Any:
        with np.errstate(all="ignore"):
            return {"means": s.total["means"].map(lambda t: np.hstack([t[:, :-1] / t[:, -1:], t[:, -1:] > 0]))}


class ServerShape(Scaffold):
    def server(self, s: ServerView) -> Any:
        return {"c": s.total["c"].map(lambda v: v[None])}


class AnchorOfWrongCopy(Personal):
    def passes(self, k: Client) -> Any:
        return [Pass(), Pass(("personal",), anchor=Tree({"encoder": k.client}), mu=0.1)]


class TrainsWhatItLacks(Personal):
    def passes(self, k: Client) -> Any:
        return [Pass(("persona",))]


# --- those that are not in the list of the sketch -------------------------------------------------------------------


class OwnGenerator(Scaffold):
    def __init__(self) -> None:
        self.draw = np.random.default_rng(1)

    def select(self, s: ServerView, candidates: Any, size: int, draw: Any) -> Any:
        return self.draw.permutation(candidates)[:size]


class FreshGenerator(Scaffold):
    def select(self, s: ServerView, candidates: Any, size: int, draw: Any) -> Any:
        return np.random.default_rng().permutation(candidates)[:size]


class GlobalNumpy(Scaffold):
    def select(self, s: ServerView, candidates: Any, size: int, draw: Any) -> Any:
        return np.random.permutation(candidates)[:size]  # the mistake


class StateInClass(Scaffold):
    seen: list[int] = []  # noqa: RUF012  # the mistake

    def server(self, s: ServerView) -> Any:
        self.seen.append(s.round)
        return super().server(s)


class TooFew(Scaffold):
    def select(self, s: ServerView, candidates: Any, size: int, draw: Any) -> Any:
        return candidates[:1]


class Twice(Scaffold):
    def select(self, s: ServerView, candidates: Any, size: int, draw: Any) -> Any:
        return [0] * size


class SelectsText(Scaffold):
    def select(self, s: ServerView, candidates: Any, size: int, draw: Any) -> Any:
        return "first"


class AdmitsNothing(Scaffold):
    def admit(self, s: ServerView) -> Any:
        return {"model": dict.fromkeys(s.members["model"])}


class OddShape(Scaffold):
    def extras(self, layout: Layout) -> Any:
        return super().extras(layout) | {"more": Extra(shape=(2, -1))}


class WeightOfOneArray(Scaffold):
    def extras(self, layout: Layout) -> Any:
        return super().extras(layout) | {"more": Extra(shape=(), scope="shared")}

    def finish(self, k: Client) -> Any:
        return {"more": Sent(k["more"], float("inf"))}


class Nothing:
    pass


class AdmitsUnknownBlock(Scaffold):
    def admit(self, s: ServerView) -> Any:
        return {"model": {("encoder/video", ""): s.clients}}


class AdmitsStranger(Scaffold):
    def admit(self, s: ServerView) -> Any:
        return {"model": {key: [977] for key in s.members["model"]}}


class NegativeWeight(Scaffold):
    def finish(self, k: Client) -> Any:
        return {"c": Sent(k["c"], -1)}


class NanWeight(Scaffold):
    def finish(self, k: Client) -> Any:
        return {"c": Sent(k["c"], k.num_samples * float("nan"))}


class ExtrasDiffer(Scaffold):
    def extras(self, layout: Layout) -> Any:
        return super().extras(layout) | {"more": Extra(shape=(), scope="private", initial=float(id(object()) % 97))}


class ExtrasDrawn(Scaffold):
    def extras(self, layout: Layout) -> Any:
        return super().extras(layout) | {"more": Extra(shape=(int(torch.randint(1, 10**6, ())),), scope="private")}


class RowsOfNothing(Scaffold):
    rows = ("controls",)


class ScoresUnknownBlock(Personal):
    def scored(self, x: Any) -> Any:
        return Tree({"encoder/video": x["personal"]["head"]})


class ServerKey(Scaffold):
    def server(self, s: ServerView) -> Any:
        return {"c": Tree({("head", "everybody"): s.current["c"]["head", ""]})}


class ServerName(Scaffold):
    def server(self, s: ServerView) -> Any:
        return {"control": s.current["c"]}


class ServerNothing(Scaffold):
    def server(self, s: ServerView) -> Any:
        return None


class ServerWrites(Scaffold):
    def server(self, s: ServerView) -> Any:
        for values in s.current["c"].values():
            values += 1
        return {}


class OnePass(Scaffold):
    def passes(self, k: Client) -> Any:
        return Pass()


class FinishNothing(Scaffold):
    def finish(self, k: Client) -> Any:
        k["own"] + k["c"]


class LossIsInfinite(Teacher):
    def loss(self, batch: Any) -> Any:
        return batch.losses.detach() * 0 + float("inf") * 0


class BeforeIsOneNumber(Teacher):
    def before(self, batch: Any) -> Any:
        return {"loss": batch.losses.mean()}


class ThroughNothing(Teacher):
    def loss(self, batch: Any) -> Any:
        return batch.through("teacher").losses


class StatisticsOfAShape(Scaffold):
    def extras(self, layout: Layout) -> Any:
        return {"c": Extra(layout.averaged, shape=(2,), with_statistics=True), "own": Extra(layout.averaged)}


class OffsetOfAModel:
    """Another model is no offset: it has statistics behind its parameters."""

    def extras(self, layout: Layout) -> Any:
        return {"other": Extra(layout.averaged, with_statistics=True)}

    def passes(self, k: Client) -> Any:
        return [Pass(offset=k["other"])]


class DifferentTrees(Scaffold):
    def passes(self, k: Client) -> Any:
        return [Pass(offset=k["c"] - k["own"].only(["head"]))]


def raising(method: str) -> type:
    def broken(self: Any, *given: Any) -> Any:
        raise KeyError("no such thing")

    return type(f"Raising_{method}", (Scaffold,), {method: broken, "rows": ("model",)})


RAISING = [raising(name) for name in ("extras", "select", "before", "passes", "loss", "after", "finish", "admit",
                                      "server", "scored", "local")]  # fmt: skip
MISTAKES: list[tuple[type, str]] = [
    (WrongShape, r"finish: own encoder/acc has shape \(\d+,\); expected \(71,\)"),
    (UnknownName, "finish gave 'controls', which is no extra; expected some of c, model, own"),
    (UnknownBlock, "extra 'c' names encoder/video; expected blocks of the model: encoder/acc"),
    (NameTaken, "extra 'model': expected a name of letters and digits that is none of model, received"),
    (SharedNotSent, r"finish gave c, which is shared; expected Sent\(...\), for it leaves"),
    (PrivateSent, "finish sends own, which is private; expected a plain value, for it stays"),
    (ForgetsRest, r"finish changes own for encoder/\w+, which took no step; expected \* k.stepped"),
    (DividesByZero, r"finish changes own for encoder/\w+, which took no step|finish: own encoder/\w+ is not finite"),
    (KeepsStateInSelf, "finish keeps controls in itself, which no checkpoint has; expected an extra"),
    (NumberInsteadOfTensor, "passes differs between clients of one kind; expected numbers as tensors"),
    (WritesInPlace, "finish writes into what it was given; expected new tensors"),
    (GlobalRandomness, "finish draws from a global generator; expected .* an extra of the scope drawn"),
    (PaddingIsNegative, "gives other numbers where clients are stacked; expected .* where batch.real is 0"),
    (MeanLoss, r"loss gave shape \(\); expected \(\d+,\), a number per sample"),
    (AbsentClassIsNan, "loss gave numbers that are not finite; expected finite numbers, whatever classes"),
    (EmptyClass, "server gave means with values that are not finite; expected finite ones"),
    (ServerShape, r"server gave c:encoder/\w+ with shape \(1, \d+\); expected finite ones of \(\d+,\)|c:"),
    (AnchorOfWrongCopy, r"passes: anchor of personal for encoder has shape \(\); expected blocks of encoder/"),
    (TrainsWhatItLacks, "passes trains 'persona'; expected some of model, personal"),
    (OwnGenerator, "select keeps draw in itself, which no checkpoint has; expected an extra"),
    (FreshGenerator, "gives other numbers when it is run again; expected numbers of the simulator's"),
    (GlobalNumpy, "select draws from a global generator; expected .* the argument `draw`"),
    (StateInClass, "server keeps seen in itself"),
    (TooFew, r"select gave \[0\]; expected 3 clients between 0 and 5, each once"),
    (Twice, r"select gave \[0, 0, 0\]; expected 3 clients between 0 and 5, each once"),
    (SelectsText, "select raised ValueError: invalid literal for int.* 'f'"),
    (AdmitsNothing, "admit raised TypeError: 'NoneType' object is not iterable"),
    (OddShape, r"extra 'more' has shape \(2, -1\); expected a tuple of whole numbers from 0"),
    (WeightOfOneArray, "finish sends more with a weight of inf; expected 0 or more"),
    (AdmitsUnknownBlock, r"admit gave \('encoder/video', ''\) of model; expected some of \('encoder/"),
    (AdmitsStranger, r"admit names \[977\] for model .*; expected some of \[.*\], who sent it"),
    (NegativeWeight, r"finish sends encoder/\w+ with a weight of -1.0; expected 0 or more"),
    (NanWeight, r"finish sends encoder/\w+ with a weight of .*nan.*; expected 0 or more"),
    (ExtrasDrawn, "extras .*(draws from a global generator|gives something else when it is asked again)"),
    (RowsOfNothing, r"rows is \('controls',\); expected a tuple of some of c, model, own"),
    (ScoresUnknownBlock, r"scored gave encoder/video of shape \(\d+,\); expected of encoder/"),
    (ServerKey, r"server gave \('head', 'everybody'\) of c; expected some of \('encoder/acc', ''\)"),
    (ServerName, "server gave 'control'; expected some of 'model', 'c'"),
    (ServerNothing, "server gave NoneType; expected a dict by copy"),
    (ServerWrites, r"server raised ValueError: .*read-only \(.*test_mistakes.py:\d+, in server\)"),
    (OnePass, "passes gave Pass; expected a list of Pass"),
    (FinishNothing, "finish gave NoneType; expected a dict by name"),
    (LossIsInfinite, "loss gave numbers that are not finite"),
    (BeforeIsOneNumber, r"before or after gave loss of shape \(\); expected \(\d+, ...\) per sample"),
    (ThroughNothing, r"through\('teacher'\), which is no copy of the model; expected one of received"),
    (StatisticsOfAShape, "extra 'c' has statistics and a shape of its own; expected blocks alone"),
    (DifferentTrees, "passes: trees with different blocks: encoder/acc, .* on one side alone; expected the same"),
    *((kind, r"KeyError: 'no such thing' \(.*test_mistakes.py:\d+, in broken\)") for kind in RAISING),
]  # fmt: skip


def scenario_of(algorithm: Any) -> Scenario:
    return Scenario.model_validate({**TREE, "algorithm": algorithm})


@pytest.mark.parametrize(("kind", "message"), MISTAKES, ids=[kind.__name__ for kind, _ in MISTAKES])
def test_each_mistake_has_its_line(kind: type, message: str) -> None:
    found = algorithm_problem(scenario_of(kind))
    assert found is not None
    line = "; expected ".join(found)
    assert "\n" not in line
    assert re.search(message, line), line


def test_a_model_with_statistics_of_its_own_is_a_start_and_nothing_else() -> None:
    changes = {"model.head": {"kind": "mlp", "hidden": [6], "norm": "batch"}}
    found = algorithm_problem(scenario_of(OffsetOfAModel).override(changes))
    assert found is not None
    assert found[0] == "passes: head have running statistics behind the parameters"
    assert found[1] == "passes of the model, from a start, without offset, anchor and model="


def test_an_object_without_methods_is_no_algorithm() -> None:
    found = algorithm_problem(scenario_of({"kind": "custom", "factory": Nothing}))
    assert found is not None
    assert found[0] == "gave Nothing with no such method"


@dataclass
class NamesTheHead:
    head: str

    def finish(self, k: Client) -> Any:
        return {"model": Sent(k.new.map(lambda values: values + 0 * k.new[self.head].sum()))}


@pytest.mark.parametrize(("task", "head", "other"), [(None, "head", "head/only"), ("only", "head/only", "head")])
def test_heads_are_called_as_in_the_run(task: str | None, head: str, other: str) -> None:
    """With a task that has a name the head has it too, though each client has one."""
    scenario = scenario_of(NamesTheHead(head)).override({"tasks": {task: {}} if task else None})
    assert algorithm_problem(scenario) is None
    found = algorithm_problem(scenario.override({"algorithm": NamesTheHead(other)}))
    assert found is not None
    assert "KeyError" in found[0]


BUILT_IN = [section for section in get_args(get_args(AlgorithmOption)[0]) if section is not CustomAlgorithm]


@pytest.mark.parametrize("section", BUILT_IN, ids=[section.__name__ for section in BUILT_IN])
def test_nothing_is_said_about_the_built_in_ones(section: Any) -> None:
    (kind,) = get_args(section.model_fields["kind"].annotation)
    assert algorithm_problem(scenario_of({"kind": kind})) is None


NOTHING_SHARED = {"encoder/*": "private", "fusion": "frozen", "head": "private"}


@pytest.mark.parametrize(
    ("sharing", "engine"),
    [
        ("local", "vectorized"),
        (NOTHING_SHARED, "sequential"),
        pytest.param("local", "sequential", marks=pytest.mark.long),
        pytest.param(NOTHING_SHARED, "vectorized", marks=pytest.mark.long),
    ],
    ids=str,
)
@pytest.mark.parametrize("section", BUILT_IN, ids=[section.__name__ for section in BUILT_IN])
def test_built_in_ones_run_where_nothing_is_averaged(section: Any, sharing: Any, engine: str) -> None:
    """Copies of no blocks are trees without entries."""
    (kind,) = get_args(section.model_fields["kind"].annotation)
    changes = {"sharing": sharing, "training.engine": engine, "rounds": 1}
    run = simulate(scenario_of({"kind": kind}).override(changes))
    plain = simulate(scenario_of({"kind": "fedavg"}).override(changes))
    assert run.status == "finished"
    if kind in ("scaffold", "feddyn", "ditto", "ifca", "mixed", "low-rank"):  # which are about averaged blocks alone
        assert run.rounds["loss"].to_list() == plain.rounds["loss"].to_list()


@pytest.mark.parametrize("kind", [Scaffold, Personal, Teacher, ClassMeans, Everything, BranchesOnData])
def test_nothing_is_said_about_right_ones(kind: type) -> None:
    assert algorithm_problem(scenario_of(kind)) is None


def test_validate_says_it(command: Command, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "mistaken_of_a_test.py").write_text(
        "class Mine:\n    def finish(self, k):\n        return {'controls': k.new}\n", encoding="utf-8"
    )
    tree = {**TREE, "algorithm": {"kind": "custom", "factory": "mistaken_of_a_test:Mine"}}
    (tmp_path / "own.yaml").write_text(json.dumps(tree), encoding="utf-8")
    outcome = command("validate", "own.yaml")
    line = "own.yaml: algorithm finish gave 'controls', which is no extra; expected some of model"
    assert (outcome.exit_code, outcome.out, outcome.err.strip()) == (2, "", line)
    told = json.loads(command("validate", "own.yaml", "--json").out)
    assert told["valid"] is False
    assert told["problems"][0]["message"] == line
    assert command("validate", "own.yaml", "--set", "algorithm={kind: scaffold}").exit_code == 0
