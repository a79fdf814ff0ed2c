"""Values set by dotted path: from Python, and as the command line writes them."""

from __future__ import annotations

import re

import pytest

from blossom_ray.errors import ScenarioError
from blossom_ray.reading.overrides import apply_overrides, parse_assignment
from blossom_ray.reading.scenario import Scenario, inspect_scenario

SMALL = """\
rounds: 2
data: {dataset: uci-har, path: ., zscore: true, test_fraction: 0.25}
clients:
  - {count: 4, modalities: [acc]}
model:
  encoders: {acc: {kind: conv-gru, channels: [8], dim: 5}}
  head: {kind: mlp, dropout: 0.3}
training:
  optimizer: {kind: sgd, lr: 0.5, momentum: 0.9}
"""


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(SMALL)
    return path


def test_values_are_replaced(small):
    values = {"clients.0.count": 7, "training.optimizer.lr": 0.1, "sharing": "local", "model.encoders.acc.dim": 6}
    scenario = Scenario.load(small, values)
    assert scenario.clients[0].count == 7
    assert scenario.training.optimizer.lr == 0.1
    assert scenario.training.optimizer.momentum == 0.9
    assert scenario.sharing == "local"
    assert Scenario.load(small).override(values) == scenario


def test_sections_that_are_missing_are_made_with_their_default_kind(small):
    scenario = Scenario.load(small, {"server.optimizer.lr": 0.5, "evaluation.every": 3, "model.fusion.dim": 4})
    assert (scenario.server.optimizer.kind, scenario.server.optimizer.lr) == ("fedavg", 0.5)
    assert (scenario.model.fusion.kind, scenario.model.fusion.dim) == ("attention", 4)
    assert scenario.evaluation.every == 3


def test_a_new_kind_keeps_what_it_knows_and_drops_the_rest(small):
    scenario = Scenario.load(small, {"training.optimizer.kind": "adam", "model.encoders.acc.kind": "gru"})
    assert scenario.training.optimizer.lr == 0.5
    assert scenario.training.optimizer.kind == "adam"
    assert scenario.model.encoders["acc"].dim == 5
    synthetic = Scenario.load(small).override({"data.dataset": "synthetic"})
    assert synthetic.data.path is None
    assert synthetic.data.test_fraction == 0.25


def test_a_new_kind_does_not_keep_defaults_of_the_old_one(small):
    scenario = Scenario.load(small).override({"server.optimizer.kind": "fedadam"})
    assert scenario.server.optimizer.lr == 0.01


def test_what_another_override_gives_is_never_dropped(small):
    values = {"training.optimizer.nesterov": True, "training.optimizer.kind": "adam"}
    reading = inspect_scenario(small, values, {key: f"--set {key}" for key in values})
    assert [str(problem) for problem in reading.problems] == [
        "--set training.optimizer.nesterov: training.optimizer.nesterov is not a known key; "
        "expected one of kind, lr, beta1, beta2, eps, weight_decay, blocks"
    ]


def test_an_unknown_key_of_what_may_be_a_number_too(small):
    reading = inspect_scenario(small, {"data.observed": {"acc": {"tset": 0.5}}}, {})
    assert [str(problem) for problem in reading.problems] == [
        "override: data.observed.acc.tset is not a known key; "
        "expected one of train, validation, test, held_out; did you mean 'test'?"
    ]


def test_a_key_of_data_where_there_are_data_sets(small):
    several = {"data": None, "datasets": {"one": {"dataset": "synthetic"}}, "tasks": {"shape": {"data": "one"}}}
    reading = inspect_scenario(small, {**several, "data.test_fraction": 0.5}, {})
    found = "leads nowhere, since the data sets have names; expected one of datasets.one.test_fraction"
    assert str(reading.problems[0]).endswith(f"data.test_fraction {found}")


def test_columns_of_a_table_are_named_once(small):
    table = {"dataset": "table", "path": "own.parquet", "label_column": ["a", "a"]}
    reading = inspect_scenario(small, {"data": {**table, "modalities": {"acc": {"column": ["x", "y", "x"]}}}}, {})
    assert [str(problem) for problem in reading.problems] == [
        "override: data.modalities.acc.column is ['x', 'y', 'x']; expected each column once",
        "override: data.label_column is ['a', 'a']; expected each column once",
    ]


def test_problems_name_the_override_and_come_last(small):
    values = {"seed": -1, "training.schedule.kind": "step", "clients.0.count": 0, "training.batch_size": {"a": 1}}
    reading = inspect_scenario(small, values, {"seed": "--seed"})
    assert [str(problem) for problem in reading.problems] == [
        "--seed: seed is -1; expected an integer of at least 0 and below 2^63",
        "override: clients.0.count is 0; expected an integer of at least 1",
        "override: training.batch_size is a mapping; expected an integer of at least 1",
        "override: training.schedule.every is missing; expected an integer of at least 1",
    ]
    assert reading.origins.locate("seed").source == "--seed"
    assert reading.origins.locate("rounds").source is None


def test_a_value_inside_an_override_belongs_to_it(small):
    reading = inspect_scenario(small, {"training": {"optimizer": {"kind": "adam", "lr": 0}}})
    assert str(reading.problems[0]) == "override: training.optimizer.lr is 0; expected a number above 0"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("rounds.x", "rounds.x leads nowhere, since rounds is 2; expected the path of a key in a section"),
        ("clients.3.count", "clients.3.count leads nowhere, since clients is a list of 1 entries; expected an index"),
        ("clients.x", "clients.x leads nowhere, since clients is a list of 1 entries"),
        ("training..lr", "training..lr has an empty key; expected keys joined by points"),
        ("", "has an empty key"),
    ],
)
def test_a_path_that_leads_nowhere(small, path, message):
    with pytest.raises(ScenarioError, match=re.escape(f"override: {message}")) as caught:
        Scenario.load(small, {path: 1})
    assert len(caught.value.problems) == 1


def test_nothing_is_modified_in_place(small):
    tree = {"clients": ({"count": 1},), "data": {"dataset": "synthetic"}}
    changed, problems = apply_overrides(tree, {"clients.0.count": 2, "data.samples": 5})
    assert problems == []
    assert changed == {"clients": [{"count": 2}], "data": {"dataset": "synthetic", "samples": 5}}
    assert tree == {"clients": ({"count": 1},), "data": {"dataset": "synthetic"}}


def test_an_override_without_changes_gives_the_same_scenario(small):
    scenario = Scenario.load(small)
    assert scenario.override({}) == scenario


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("a.b=0.01", "a.b", 0.01),
        ("a=[32, 64]", "a", [32, 64]),
        ("a={kind: adam, lr: 0.001}", "a", {"kind": "adam", "lr": 0.001}),
        ("a=true", "a", True),
        ("a=yes", "a", "yes"),
        ("a=null", "a", None),
        ("a=", "a", None),
        ("a='1'", "a", "1"),
        ('a=""', "a", ""),
        ("a=b=c", "a", "b=c"),
        ("a=../a b/UCI HAR Dataset.zip", "a", "../a b/UCI HAR Dataset.zip"),
        (r"a=C:\data\UCI HAR: new #1.zip", "a", r"C:\data\UCI HAR: new #1.zip"),
        ("a=*x", "a", "*x"),
        (" a = full-model ", "a", "full-model"),
    ],
)
def test_assignments(text, path, value):
    assert parse_assignment(text) == (path, value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.b", "--set a.b: has no '='; expected KEY=VALUE, such as training.optimizer.lr=0.01"),
        ("=1", "--set =1: has an empty key; expected keys joined by points"),
        ("a..b=1", "--set a..b=1: has an empty key"),
        ("a=[1", "--set a: a is not valid YAML ("),
        ("a={b: 1, b: 2}", "--set a: a.b is given 2 times, in lines 1 and 1; expected each key once"),
        (f"a={'1' * 200}", "--set a: a is an integer of 200 digits"),
    ],
)
def test_wrong_assignments(text, message):
    with pytest.raises(ScenarioError, match=re.escape(message)):
        parse_assignment(text)


def test_text_that_is_not_unicode(small):
    with pytest.raises(ScenarioError, match="is not UTF-8 text; expected KEY=VALUE in UTF-8"):
        parse_assignment("name=a\udcff")
    overrides = {"na\ud800me": "x", "clients.0.group": ["\ud800"], "training.batch_size": 0}
    found = [(problem.path, problem.found) for problem in inspect_scenario(small, overrides).problems]
    assert (r"na\ud800me", "has half of a surrogate pair") in found
    assert ("clients.0.group", "has half of a surrogate pair") in found
    assert ("training.batch_size", "is 0") in found
