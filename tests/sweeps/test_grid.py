"""Grids: what a command line means, which cells follow, what they are called, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY

from blossom_ray import Scenario, ScenarioError
from blossom_ray.studies.sweeps.grid import (
    Axis,
    expand,
    parse_axis,
    parse_seeds,
    setting_name,
    short_labels,
    value_text,
)

QUICKSTART = REPOSITORY / "scenarios" / "quickstart.yaml"

AXES: dict[str, Axis] = {
    "sharing=full-model,private-head": Axis("sharing", ("full-model", "private-head")),
    "training.optimizer.lr=1e-3, 0.1": Axis("training.optimizer.lr", (0.001, 0.1)),
    "data.partition={kind: iid},{kind: dirichlet, alpha: 0.5}": Axis(
        "data.partition", ({"kind": "iid"}, {"kind": "dirichlet", "alpha": 0.5})
    ),
    "clients=[{count: 2, modalities: [a, b]}],[]": Axis("clients", ([{"count": 2, "modalities": ["a", "b"]}], [])),
    """data.path="a,b.zip",it's here/c.zip""": Axis("data.path", ("a,b.zip", "it's here/c.zip")),
    "model.head.options={a: 'x, y}'},null": Axis("model.head.options", ({"a": "x, y}"}, None)),
    "rounds=5": Axis("rounds", (5,)),
}


@pytest.mark.parametrize("text", AXES)
def test_values_are_read_as_yaml_between_commas(text: str) -> None:
    assert parse_axis(text) == AXES[text]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sharing", r"--vary sharing: has no '='; expected KEY=VALUE,VALUE"),
        ("sharing=a,,b", r"sharing has an empty value; expected values between commas"),
        ("sharing=", r"sharing has an empty value"),
        ("=a,b", r"has an empty key"),
        ("data.partition={kind: iid,[", r"--vary data\.partition: "),
    ],
)
def test_what_is_no_axis(text: str, message: str) -> None:
    with pytest.raises(ScenarioError, match=message):
        parse_axis(text)


@pytest.mark.parametrize(
    ("text", "seeds"), [("3", (0, 1, 2)), ("1", (0,)), ("0,1,7", (0, 1, 7)), ("3,", (3,)), (" 4 , 2 ", (4, 2))]
)
def test_seeds(text: str, seeds: tuple[int, ...]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "0", "-1", "1,1", "many", "1.5", "99999999", ","])
def test_what_are_no_seeds(text: str) -> None:
    with pytest.raises(ScenarioError, match=r"--seeds: is .*; expected a number of seeds of at least 1, such as 5 for"):
        parse_seeds(text)


def test_all_combinations_with_the_seeds_of_a_setting_together(small_scenario: Scenario) -> None:
    axes = [Axis("sharing", ("full-model", "local")), Axis("model.fusion.kind", ("attention", "concat"))]
    cells = expand([small_scenario], axes, seeds=(3, 4))
    assert [cell.name for cell in cells] == [
        f"sharing={sharing},fusion={fusion},seed={seed}"
        for sharing in ("full-model", "local")
        for fusion in ("attention", "concat")
        for seed in (3, 4)
    ]
    last = cells[-1]
    assert (last.scenario.sharing, last.scenario.model.fusion.kind, last.scenario.seed) == ("local", "concat", 4)
    assert last.setting == {"sharing": "local", "model.fusion.kind": "concat"}
    assert len({cell.identity for cell in cells}) == 8


def test_one_scenario_alone_is_a_grid_of_one_cell(small_scenario: Scenario) -> None:
    (cell,) = expand([small_scenario])
    assert (cell.name, cell.setting, cell.scenario) == ("small", {}, small_scenario)


def test_overrides_come_before_what_varies(small_scenario: Scenario) -> None:
    cells = expand([small_scenario], [Axis("rounds", (3, 4))], overrides={"rounds": 9, "sharing": "local"})
    assert [(cell.scenario.rounds, cell.scenario.sharing) for cell in cells] == [(3, "local"), (4, "local")]


def test_several_scenarios_are_told_apart_by_name(small_scenario: Scenario, tmp_path: Path) -> None:
    cells = expand([small_scenario, QUICKSTART], [Axis("sharing", ("local",))])
    assert [cell.name for cell in cells] == ["small,sharing=local", "quickstart,sharing=local"]
    assert [cell.setting["name"] for cell in cells] == ["small", "quickstart"]


def test_names_that_would_be_alike_are_told_apart_by_identity(small_scenario: Scenario) -> None:
    long = dict.fromkeys(("encoder/acc", "encoder/gyro", "fusion"), "same-modalities")
    first, second = expand(
        [small_scenario], [Axis("sharing", tuple({**long, "head": x} for x in ("shared", "private")))]
    )
    assert first.name == "sharing=same-modalities-same-modalities-same-mod"
    assert second.name == f"{first.name}-{second.identity[:6]}"


def test_problems_of_all_cells_come_at_once_and_name_the_first_cell() -> None:
    axes = [Axis("training.batch_size", (8, 0)), Axis("sharing", ("local", "privat"))]
    with pytest.raises(ScenarioError) as caught:
        expand([QUICKSTART], axes, seeds=(0, 1), overrides={"rouns": 3})
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("--set rouns: rouns is not a known key")
    assert lines[0].endswith("did you mean 'rounds'?")
    assert "(in 4 of 8 cells, the first is batch_size=8,sharing=privat,seed=0)" in lines[1]
    assert lines[2] == (
        "--vary training.batch_size: training.batch_size is 0; expected an integer of at least 1 "
        "(in 4 of 8 cells, the first is batch_size=0,sharing=local,seed=0)"
    )


def test_a_partition_that_some_seed_cannot_meet_is_found_before_anything_runs(small_scenario: Scenario) -> None:
    hard = small_scenario.override({"data.partition": {"kind": "dirichlet", "alpha": 0.05}})
    with pytest.raises(
        ScenarioError, match=r"data\.partition\.alpha is 0\.05.*\(in \d+ of 30 cells, the first is seed="
    ):
        expand([hard], seeds=range(30))


def test_data_that_cells_share_are_looked_at_once(small_scenario: Scenario, tmp_path: Path) -> None:
    looks: list[int] = []

    def build() -> Any:
        looks.append(1)
        raise ValueError("no data today")

    own = small_scenario.override({"data": {"dataset": "custom", "factory": build}})
    with pytest.raises(ScenarioError, match="no data today"):
        expand([own], [Axis("sharing", ("local", "full-model", "private-head"))])
    assert len(looks) == 1


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        (
            [Axis("execution.clients_per_actor", (1, 2))],
            r"cell clients_per_actor=2: gives the same numbers as the cell clients_per_actor=1; expected cells that",
        ),
        ([Axis("name", ("a", "b"))], r"gives the same numbers as the cell a"),
        ([Axis("sharing", ("local", "local"))], r"gives the same numbers"),
        ([Axis("rounds", (1,)), Axis("rounds", (2,))], r"--vary: rounds is varied 2 times; expected each key once"),
        ([Axis("rounds", ())], r"--vary rounds: rounds has no value to take; expected at least one value"),
    ],
)
def test_what_is_no_grid(axes: list[Axis], message: str, small_scenario: Scenario) -> None:
    with pytest.raises(ScenarioError, match=message):
        expand([small_scenario], axes)


def test_seeds_and_a_varied_seed() -> None:
    with pytest.raises(ScenarioError, match="seed is varied 2 times; expected each key once, and the seed by --seeds"):
        expand([QUICKSTART], [Axis("seed", (1,))], seeds=(2,))
    assert [cell.scenario.seed for cell in expand([QUICKSTART], [Axis("seed", (5, 6))])] == [5, 6]


@pytest.mark.parametrize(
    ("value", "word"),
    [
        ("full-model", "full-model"), (0.001, "0.001"), (True, "true"), (None, "null"), ([], "none"),
        ({"kind": "dirichlet", "alpha": 0.5}, "dirichlet-0.5"),
        ([{"count": 5, "modalities": ["acc"]}, {"count": 5, "modalities": ["gyro"]}], "5-acc-5-gyro"),
        ("../a b/UCI HAR.zip", "..-a-b-UCI-HAR.zip"), ("é" * 3, "none"), ("a" * 99, "a" * 40), (len, "len"),
    ],
)  # fmt: skip
def test_values_as_words(value: Any, word: str) -> None:
    assert value_text(value) == word


def test_labels_are_the_shortest_ends_that_differ() -> None:
    paths = ["sharing", "model.fusion.kind", "data.dataset", "training.optimizer.lr", "server.optimizer.lr"]
    assert list(short_labels(paths).values()) == [
        "sharing", "fusion", "data", "training.optimizer.lr", "server.optimizer.lr",
    ]  # fmt: skip
    assert setting_name({"data.partition.kind": "iid", "seed": 2}) == "partition=iid,seed=2"
