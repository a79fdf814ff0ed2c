"""Scenario files: what loads, what each wrong file says, and with which line."""

from __future__ import annotations

import os
import pickle
import re
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blossom_ray.errors import Problem, ScenarioError
from blossom_ray.reading.scenario import Scenario, inspect_scenario
from blossom_ray.reading.yaml_tree import parse_yaml, resolve_scalar

QUICKSTART = """\
name: quickstart
seed: 0
rounds: 20
task: classification                      # classification | multilabel | regression
data:
  dataset: synthetic                      # synthetic, uci-har, ku-har, ptb-xl, av-mnist, meld, iemocap, table
  path: null                              # official download: file or folder
  partition: {kind: dirichlet, alpha: 0.5}   # iid | dirichlet | subject | quantity
  test_fraction: 0.3
clients:
  - {count: 3, modalities: [acc]}
  - {count: 3, modalities: [gyro]}
  - {count: 4, modalities: [acc, gyro]}
model:
  encoders: {acc: {kind: conv-gru}, gyro: {kind: conv-gru}}
  fusion: {kind: attention, dim: 256}     # attention | concat | mean | gated
  head: {kind: mlp, hidden: [64], dropout: 0.1}
  missing: mask
sharing: private-head-fusion
training:
  local_epochs: 1
  batch_size: 16
  optimizer: {kind: sgd, lr: 0.05, momentum: 0.9, weight_decay: 1e-5}
  schedule: {kind: constant}
server: {optimizer: {kind: fedavg}, clients_per_round: 1.0}
evaluation: {every: 1}
execution: {runtime: ray, clients_per_actor: auto, client_resources: {num_cpus: 0.2, num_gpus: 0}}
"""
SMALL = """\
rounds: 2
data: {dataset: synthetic}
clients: [{count: 4, modalities: [acc]}]
model: {encoders: {acc: {kind: gru}}}
"""


@pytest.fixture
def scenario_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(text: str | bytes) -> str:
        content = text.encode() if isinstance(text, str) else text
        Path("a.yaml").write_bytes(content)
        return "a.yaml"

    return write


def messages(path: str) -> list[str]:
    return [str(problem) for problem in inspect_scenario(path).problems]


def test_the_designs_example_loads(scenario_file):
    scenario = Scenario.load(scenario_file(QUICKSTART))
    assert scenario.name == "quickstart"
    assert scenario.num_clients == 10
    assert scenario.modalities == ("acc", "gyro")
    assert scenario.training.optimizer.weight_decay == 1e-5
    assert scenario.server.clients_per_round == 1.0
    assert isinstance(scenario.server.clients_per_round, float)
    assert pickle.loads(pickle.dumps(scenario)) == scenario


def test_a_fraction_and_a_number_of_clients_stay_apart(scenario_file):
    path = scenario_file(SMALL + "server: {clients_per_round: 1}\n")
    assert type(Scenario.load(path).server.clients_per_round) is int


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("yes", "yes"),
        ("1e-3", 1e-3),
        ("-.5", -0.5),
        ("0x1F", 31),
        ("0o17", 15),
        ("017", 17),
        ("1_000", "1_000"),
        ("2026-01-31", "2026-01-31"),
        ("12:30", "12:30"),
        ("~", None),
        ("", None),
        ("True", True),
        ("-.inf", float("-inf")),
        ("1.", 1.0),
    ],
)
def test_scalars_follow_the_core_schema(text, value):
    result = resolve_scalar(text)
    assert result == value
    assert type(result) is type(value)


def test_all_problems_come_at_once_in_line_order(scenario_file):
    path = scenario_file(
        "rounds: 0\n"  # 1
        "seed: '20'\n"
        "clients:\n"
        "  - {count: '3', modalities: [acc]}\n"
        "  - count: 2\n"  # 5
        "    modalities: [acc, acc]\n"
        "data:\n"
        "  dataset: synthetic\n"
        "  test_fraction: .nan\n"
        "  partition: iid\n"  # 10
        "model:\n"
        "  encoders:\n"
        "    acc: {kind: conv-gur}\n"
        "training:\n"
        "  schedule: {kind: step}\n"  # 15
        "  optimizer:\n"
        "    kind: sgd\n"
        "    momentm: 0.9\n"
        "    lr: 0\n"
        "server: {clients_per_round: 0}\n"  # 20
        "sharing: {head: privat}\n"
        "execution: {runtime: rai, clients_per_actor: all}\n"
    )
    kinds = "mlp, conv1d, conv-gru, gru, embedding, conv2d, custom"
    assert messages(path) == [
        "a.yaml:1: rounds is 0; expected an integer of at least 1",
        "a.yaml:2: seed is '20'; expected an integer of at least 0 and below 2^63",
        "a.yaml:4: clients.0.count is '3'; expected an integer of at least 1",
        "a.yaml:6: clients.1.modalities is ['acc', 'acc']; expected each modality once",
        "a.yaml:9: data.test_fraction is nan; expected a number above 0 and below 1",
        "a.yaml:10: data.partition is 'iid'; expected a mapping with the key 'kind': "
        "one of iid, dirichlet, subject, quantity, given",
        f"a.yaml:13: model.encoders.acc.kind is 'conv-gur'; expected one of {kinds}; did you mean 'conv-gru'?",
        "a.yaml:15: training.schedule.every is missing; expected an integer of at least 1",
        "a.yaml:18: training.optimizer.momentm is not a known key; "
        "expected one of kind, lr, momentum, weight_decay, nesterov, blocks; did you mean 'momentum'?",
        "a.yaml:19: training.optimizer.lr is 0; expected a number above 0",
        "a.yaml:20: server.clients_per_round is 0; expected a fraction such as 0.1 or a number of clients such as 10",
        "a.yaml:21: sharing.head is 'privat'; "
        "expected one of shared, same-modalities, same-task, same-modalities+same-task, group, private, frozen; "
        "did you mean 'private'?",
        "a.yaml:22: execution.runtime is 'rai'; expected one of ray, local, auto; did you mean 'ray'?",
        "a.yaml:22: execution.clients_per_actor is 'all'; expected auto or an integer of at least 1",
    ]
    with pytest.raises(ScenarioError, match=re.escape("a.yaml:1: rounds is 0")) as caught:
        Scenario.load(path)
    assert len(caught.value.problems) == 14
    assert pickle.loads(pickle.dumps(caught.value)).problems == caught.value.problems


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("sharing: full-modl", "sharing is 'full-modl'; expected one of full-model, private-head"),
        ("sharing: [head]", "sharing is ['head']; expected one of full-model"),
        ("rounds: true", "rounds is true; expected an integer of at least 1"),
        ("rounds: 3.0", "rounds is 3.0; expected an integer of at least 1"),
        ("rounds: 2026-01-31", "rounds is '2026-01-31'; expected an integer of at least 1"),
        ("name: a b", "name is 'a b'; expected letters, digits, '.', '_' and '-', starting with"),
        ("evaluation:", "evaluation is null; expected a mapping with the keys every, clients"),
        ("evaluation: {every: .inf}", "evaluation.every is inf; expected an integer of at least 1"),
        ("execution: {timeout_s: .inf}", "execution.timeout_s is inf; expected a number above 0"),
        ("data: {dataset: [a]}", "data.dataset is ['a']; expected one of synthetic, uci-har, "),
        ("data: {}", "data.dataset is missing; expected one of synthetic, uci-har, "),
        ("model: {encoders: {}}", "model.encoders is an empty mapping; expected a mapping with at least one entry"),
        ("clients: []", "clients is an empty list; expected a list with at least one entry"),
        ("clients: [3]", "clients.0 is 3; expected a mapping with the keys count, modalities, group"),
        ("model: {encoders: {'a b': {kind: gru}}}", "model.encoders.a b is not a valid name; expected letters"),
        (
            "model: {encoders: {acc: {kind: custom, factory: gru}}}",
            "model.encoders.acc.factory is 'gru'; expected 'module:attribute' of a callable",
        ),
        (
            "model: {encoders: {acc: {kind: conv2d, kernel_size: [3, 0]}}}",
            "model.encoders.acc.kernel_size.1 is 0; expected an integer of at least 1",
        ),
        (
            "model: {encoders: {acc: {kind: conv2d, kernel_size: x}}}",
            "model.encoders.acc.kernel_size is 'x'; expected an integer of at least 1 or a list, each an integer",
        ),
        (f"task: {'x' * 80}", f"task is '{'x' * 57}...'; expected one of classification, multilabel, regression"),
    ],
)
def test_a_wrong_value_is_reported_once(scenario_file, line, message):
    key = line.partition(":")[0]
    kept = [text for text in SMALL.splitlines() if not text.startswith(f"{key}:")]
    path = scenario_file("\n".join([line, *kept]))
    own = [text for text in messages(path) if text.startswith(f"a.yaml:1: {key}")]
    assert len(own) == 1
    assert own[0].startswith(f"a.yaml:1: {message}")


def test_missing_keys_stand_at_the_section_that_lacks_them(scenario_file):
    path = scenario_file("seed: 1\nclients:\n  - count: 1\n  -\n    count: 2\n")
    assert [(problem.line, problem.path, problem.found) for problem in inspect_scenario(path).problems] == [
        (None, "rounds", "is missing"),
        (None, "model", "is missing"),
        (None, "data", "is missing"),
        (3, "clients.0.modalities", "is missing"),
        (5, "clients.1.modalities", "is missing"),
    ]


def test_every_key_given_twice_names_its_lines_and_the_other_checks_go_on(scenario_file):
    path = scenario_file(
        "rounds: 0\n" + SMALL + "server:\n  clients_per_round: 2\n  clients_per_round: 3\n  clients_per_round: 4\n"
    )
    assert messages(path) == [
        "a.yaml:1: rounds is 0; expected an integer of at least 1",
        "a.yaml:2: rounds is given 2 times, in lines 1 and 2; expected each key once",
        "a.yaml:8: server.clients_per_round is given 3 times, in lines 7, 8 and 9; expected each key once",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a.yaml: is empty; expected a mapping with the keys name, seed, training_seed"),
        ("# nothing\n", "a.yaml: is empty; expected a mapping"),
        ("- 1\n", "a.yaml: is [1]; expected a mapping"),
        ("rounds\n", "a.yaml: is 'rounds'; expected a mapping"),
        ("rounds: 1\nseed: [1\n", "a.yaml:3: is not valid YAML (expected ',' or ']', but got"),
        ("a:\n\t- 1\n", "a.yaml:2: has a tab where indentation counts; expected spaces there"),
        ("a: 'x\n", "a.yaml:2: is not valid YAML (found unexpected end of stream)"),
        ('a: "\\UFFFFFFFF"\n', "a.yaml"),
        ('a: 1\nb: "\\ud800"\n', "a.yaml:2: b has half of a surrogate pair"),
        ("a: 1\nb: \x00\n", "a.yaml:2: has the control character U+0000; expected YAML 1.2 text"),
        (b"a: 1\nb: \xff\xfe\n", "a.yaml:2: is not UTF-8 text; expected a YAML 1.2 file in UTF-8"),
        ("a: 1\n---\nb: 2\n", "a.yaml:2: holds a second YAML document; expected one document in a file"),
        ("%YAML 1.1\n---\na: 1\n", "a.yaml:2: asks for YAML 1.1; expected YAML 1.2"),
        (
            "a: 1\nb: !!python/object/apply:os.system [ls]\n",
            "a.yaml:2: b has the tag '!!python/object/apply:os.system'",
        ),
        ("a: !x 1\n", "a.yaml:1: a has the tag '!x'; expected plain values without tags"),
        ("a: 1\nb: *x\n", "a.yaml:2: b has the alias *x; expected a finished &x above it"),
        ("a: &x [*x]\n", "a.yaml:1: a.0 has the alias *x; expected a finished &x above it"),
        ("a: " + "[" * 60 + "]" * 60, "a.yaml:1: is nested too deeply; expected at most 50 levels"),
        ("? " * 1000, "a.yaml:1: is nested too deeply; expected at most 50 levels"),
        ("a: " + "[" * 100_000, "a.yaml:1: is nested too deeply; expected at most 50 levels"),
        ("seed: " + "9" * 5000, "a.yaml:1: seed is an integer of 5000 digits; expected at most 100 digits"),
        ("a: " + "x" * 2**20, "a.yaml: is larger than 1 MiB; expected a scenario of a few kB"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_problem(scenario_file, text, message):
    found = messages(scenario_file(text))
    assert len(found) == 1
    assert found[0].startswith(message)


TABS = [
    ("a:\t1\n", {"a": 1}), ("a\t: 1\n", {"a": 1}), ("a: 1\t\n", {"a": 1}), ("a: b\t# c\n", {"a": "b"}),
    ("'a'\t:\t1\n", {"a": 1}), ("-\ta\n- \tb\n", ["a", "b"]), ("?\ta\n:\tb\n", {"a": "b"}),
    ("a: [\t1,\t2\t]\n", {"a": [1, 2]}), ("a: {\tb:\t1\t}\n", {"a": {"b": 1}}), ("\t{a: 1}\n", {"a": 1}),
    ("a: [1,\n\t2]\n", {"a": [1, 2]}), ("a: 'x\n\ty'\n", {"a": "x y"}), ("a: x\ty\n", {"a": "x\ty"}),
    ("a: x \t \n  y\n", {"a": "x y"}), ("a:\t|\n  \tx\ty\n", {"a": "\tx\ty\n"}), ("a: &x\t1\nb: *x\t\n",
     {"a": 1, "b": 1}),
    ("a:\t\n  b: 1\n", {"a": {"b": 1}}), ("a:\t# c\n  b: 1\n", {"a": {"b": 1}}), ("a: 1\n\t\nb: 2\n", {"a": 1, "b": 2}),
    ("\t\n\t# c\na: 1\n", {"a": 1}), ("---\t# c\na: 1\n...\t\n", {"a": 1}),
]  # fmt: skip


@pytest.mark.parametrize(("text", "value"), TABS)
@pytest.mark.parametrize("line_break", ["\n", "\r\n"])
def test_tabs_between_tokens_are_white_space(text, value, line_break):
    document = parse_yaml(text.replace("\n", line_break))
    assert document.problems == ()
    assert document.root.plain() == value


@pytest.mark.parametrize(
    ("text", "line"),
    [("\ta: 1\n", 1), ("a:\n\tb: 1\n", 2), ("a:\n  \tb: 1\n", 2), ("a:\n  b: 1\n\tc: 2\n", 3), ("-\ta: 1\n", 1),
     ("-\t- a\n", 1), ("? a\n:\t- b\n", 2), ("- a: 1\n\tb: 2\n", 2), ("a: |\n\tx\n", 2), ("a: x\n\ty\n", 2)],
)  # fmt: skip
def test_tabs_in_indentation_are_named(text, line):
    assert parse_yaml(text).problems == (Problem("", "has a tab where indentation counts", "spaces there", line=line),)


@pytest.mark.parametrize(
    "text",
    ["a: |\t\n  x\n", "a: >-\t# c\n  x\n", "%YAML\t1.2\n---\na: 1\n", "%YAML 1.2\t\n---\na: 1\n", "a: !!str\t1\n"],
)
def test_tabs_where_a_space_must_stand_are_named(text):
    assert parse_yaml(text).problems == (Problem("", "has a tab where a space must stand", "a space there", line=1),)


def test_a_mapping_of_too_many_keys_is_refused_as_it_is_read(scenario_file):
    path = scenario_file(SMALL + "server:\n" + "".join(f"  key{n}: 1\n" for n in range(60_000)))
    start = time.process_time()
    assert messages(path) == ["a.yaml:5006: server has too many keys; expected at most 5,000 of them"]
    assert time.process_time() - start < 10
    keys = ", ".join(f"key{n}: 1" for n in range(5_000))
    assert parse_yaml(f"{{{keys}}}").problems == ()


def test_fifty_problems_are_shown_and_how_many_more_there_are(scenario_file):
    path = scenario_file(SMALL + "".join(f"key{n}: 1\n" for n in range(1_000)))
    found = messages(path)
    assert len(found) == 51
    assert found[-1] == "a.yaml: has 950 more problems; expected the ones above mended first"
    path = scenario_file(SMALL + "".join(f"{n}: 1\n" for n in range(51)))
    assert messages(path)[-1] == "a.yaml: has 1 more problem; expected the ones above mended first"


@pytest.mark.parametrize(
    "line",
    ["rounds: VALUE", "name: VALUE", "VALUE: 1", "sharing: VALUE", "server: {VALUE: {VALUE: 1}}", "seed: [VALUE]"],
)
def test_of_a_value_no_more_than_200_characters_are_repeated(scenario_file, line):
    kept = "".join(text for text in SMALL.splitlines(keepends=True) if not text.startswith(line.partition(":")[0]))
    problems = inspect_scenario(scenario_file(line.replace("VALUE", "v" * 1_000) + "\n" + kept)).problems
    assert problems
    for problem in problems:
        assert len(problem.path) <= 200
        assert len(problem.found) <= 220
        assert len(str(problem)) < 800


def test_aliases_that_multiply_are_stopped(scenario_file):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    start = time.process_time()
    assert messages(scenario_file("\n".join(lines))) == [
        "a.yaml:5: holds too many values, with its aliases expanded; expected at most 100,000 values"
    ]
    assert time.process_time() - start < 5


def test_aliases_that_nest_are_stopped(scenario_file):
    lines = ["a0: &a0 [x]", *(f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, 60))]
    assert messages(scenario_file("\n".join(lines)))[0].endswith("is nested too deeply; expected at most 50 levels")


def test_an_alias_stands_for_its_value(scenario_file):
    text = SMALL.replace("{acc: {kind: gru}}", "{acc: &e {kind: gru, dim: 0}, gyro: *e}")
    assert messages(scenario_file(text))[:2] == [
        "a.yaml:4: model.encoders.acc.dim is 0; expected an integer of at least 1",
        "a.yaml:4: model.encoders.gyro.dim is 0; expected an integer of at least 1",
    ]


def test_keys_that_are_no_text_are_refused(scenario_file):
    path = scenario_file(SMALL + "1: a\nserver:\n  true: 3\n  [a]: 2\n  <<: {optimizer: {kind: fedavg}}\n")
    assert messages(path) == [
        "a.yaml:5: has a key that is 1; expected text as keys, in quotes if need be",
        "a.yaml:7: server has a key that is true; expected text as keys, in quotes if need be",
        "a.yaml:8: server has a key that is a list of 1 entries; expected text as keys, in quotes if need be",
        "a.yaml:9: server has a merge key '<<'; expected keys written out; YAML 1.2 has no merging",
    ]


def test_files_that_are_not_there(tmp_path):
    missing = tmp_path / "b.yaml"
    expected = "a scenario file (YAML 1.2)"
    or_name = f"{expected}, or a name that `blossom-ray scenarios` lists"
    assert inspect_scenario(missing).problems == (Problem("", "does not exist", or_name, str(missing)),)
    assert inspect_scenario(tmp_path).problems == (Problem("", "is a folder", expected, str(tmp_path)),)
    with pytest.raises(ScenarioError, match="does not exist"):
        Scenario.load(missing)


def test_a_pipe_is_not_read():
    """As of a shell's `<(...)`."""
    read, write = os.pipe()
    os.write(write, SMALL.encode())
    (problem,) = inspect_scenario(f"/proc/self/fd/{read}").problems
    assert problem.found == "is a pipe, a device or a socket"
    assert problem.expected == "a scenario file (YAML 1.2): write what a command prints into a file first"
    os.close(read)
    os.close(write)


def test_right_sections_survive_wrong_ones(scenario_file):
    reading = inspect_scenario(scenario_file(SMALL + "training: {batch_size: 0}\nunknown: 1\n"))
    assert reading.scenario is None
    assert reading.sections["data"].samples == 2000
    assert reading.sections["clients"][0].count == 4
    assert reading.sections["seed"] == 0
    assert "training" not in reading.sections


def test_a_caller_can_add_problems_with_their_place(scenario_file):
    reading = inspect_scenario(scenario_file(QUICKSTART))
    assert reading.scenario is not None
    assert reading.origins.locate("clients.1.modalities").line == 12
    assert reading.origins.locate("data.samples").line == 5
    assert (
        str(reading.origins.problem("data.path", "is damaged", "another"))
        == "a.yaml:7: data.path is damaged; expected another"
    )


def test_modality_names_with_points_keep_their_path(scenario_file):
    reading = inspect_scenario(
        scenario_file("rounds: 1\nmodel:\n  encoders:\n    wrist.acc:\n      kind: gru\n      dim: 0\n"),
        {"model.encoders.wrist.acc.kind": "mlp"},
    )
    assert "a.yaml:6: model.encoders.wrist.acc.dim is 0; expected an integer of at least 1" in map(
        str, reading.problems
    )


@settings(deadline=None, max_examples=150)
@given(st.text(alphabet="ab:{}[],-&*!|>'\"#%@?\n\t \\~01.\x00\ud7ff", max_size=40))
def test_no_text_makes_the_parser_raise(text):
    document = parse_yaml(text)
    assert document.root is not None or document.problems


def test_keys_reach_the_terminal_as_text(scenario_file):
    path = scenario_file(SMALL + '"\\e[2J\\u202e": 1\n"' + "k" * 1000 + '": 1\n')
    first, second = (str(problem) for problem in inspect_scenario(path).problems)
    assert r"\x1b[2J\u202e is not a known key" in first
    assert first.isprintable()
    assert len(second) < 600
