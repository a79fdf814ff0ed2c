"""In which rows clients observe a modality: by hand from the same numbers, and what moves nobody's pattern."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from blossom_ray import Dataset
from blossom_ray.core.blocks import ClientProfile
from blossom_ray.core.seeding import Purpose, generator, stable_number
from blossom_ray.data.division.federation import Federation, build_federation
from blossom_ray.data.division.observation import (
    observation_digest,
    observation_of,
    observe,
    observe_held_out,
)
from blossom_ray.data.division.options import ClientGroup
from blossom_ray.data.division.partition import PartitionError
from blossom_ray.data.sets.synthetic import SyntheticData
from blossom_ray.data.targets import Targets

NUM_ROWS, SEED = 400, 7


def section(**keys: Any) -> SyntheticData:
    return SyntheticData.model_validate({"dataset": "synthetic", **keys})


def groups_of(*groups: dict[str, Any]) -> list[ClientGroup]:
    return [ClientGroup.model_validate({"count": 2, "modalities": ["acc", "gyro"], **group}) for group in groups]


def targets_of(num_rows: int = NUM_ROWS, **known: Any) -> Targets:
    return Targets(np.arange(num_rows, dtype=np.int64) % 2, 2, **known)


def divided(data: SyntheticData, groups: list[ClientGroup], targets: Targets) -> Federation:
    return build_federation(data, targets, sum(group.count for group in groups), SEED)


def observed(data: SyntheticData, groups: list[ClientGroup], targets: Targets | None = None) -> Federation:
    known = targets_of() if targets is None else targets
    return observe(divided(data, groups, known), data, known, groups, SEED)


def drawn(name: str, part: int = 0, num_rows: int = NUM_ROWS) -> np.ndarray:
    return generator(SEED, Purpose.OBSERVATION, part, stable_number(name)).random(num_rows)


def test_a_row_is_observed_where_its_number_is_below_the_share_of_its_split() -> None:
    groups = groups_of({"observed": {"gyro": {"train": 0.8, "test": 0.5}}}, {"modalities": ["acc"]})
    found = observed(section(validation_fraction=0.2), groups)
    assert set(found.observed) == {"gyro"}
    for client in range(2):
        for split, share in (("train", 0.8), ("validation", 0.8), ("test", 0.5)):
            rows = found.splits[split].of(client)
            assert len(rows) > 10
            assert found.observed["gyro"][rows].tolist() == [drawn("gyro")[row] < share for row in rows]
    assert not found.observed["gyro"][found.rows(2)].any()  # who does not own it observes nothing


def test_a_number_is_for_all_splits_and_what_all_observe_is_no_mask() -> None:
    data, groups = section(observed={"gyro": 0.5}), groups_of({}, {"observed": {"gyro": 1.0}})
    found = observed(data, groups)
    for client in range(2):
        own = found.rows(client)
        assert found.observed["gyro"][own].tolist() == (drawn("gyro")[own] < 0.5).tolist()
    assert found.observed["gyro"][found.rows(3)].all()  # a group's own share stands in the place of the data's
    whole = divided(section(), groups_of({}), targets_of())
    assert observe(whole, section(observed={"gyro": 1.0}), targets_of(), groups_of({}), SEED) is whole


def test_a_larger_share_only_adds_rows_and_moves_none() -> None:
    few, many = (observed(section(observed={"gyro": share}), groups_of({})) for share in (0.5, 0.8))
    assert (many.observed["gyro"] >= few.observed["gyro"]).all()
    assert many.observed["gyro"].sum() > few.observed["gyro"].sum()
    assert few.digest() == many.digest() == divided(section(), groups_of({}), targets_of()).digest()
    assert observation_digest(few, []) != observation_digest(many, [])


def test_another_division_or_another_group_moves_nobodys_pattern() -> None:
    first = observed(section(observed={"gyro": 0.5}), groups_of({}))
    changes: list[tuple[dict[str, Any], list[ClientGroup]]] = [
        ({"partition": {"kind": "dirichlet", "alpha": 1.0}}, groups_of({})),
        ({"test_fraction": 0.5}, groups_of({})),
        ({}, groups_of({}, {"modalities": ["acc"], "observed": {"acc": 0.9}})),
    ]
    for change, groups in changes:
        data = section(observed={"gyro": 0.5}, without_modality="leave-out", **change)
        second = observed(data, groups)
        rows = np.concatenate([second.rows(client) for client in range(2)])
        assert np.array_equal(first.observed["gyro"][rows], second.observed["gyro"][rows])


def test_what_is_drawn_together_fails_together() -> None:
    shares = {"acc": 0.5, "gyro": 0.8}
    group = {"observed": shares, "observed_draw": "together"}
    found = observed(section(without_modality="leave-out"), groups_of(group))
    rows = np.concatenate([found.rows(client) for client in range(2)])
    assert found.observed["acc"][rows].tolist() == (drawn("acc+gyro")[rows] < 0.5).tolist()
    assert len(rows) == (drawn("acc+gyro") < 0.8).sum()  # the others observe neither
    assert set(found.observed) == {"acc"}


def test_rows_with_nothing_are_refused_left_out_or_given_what_was_drawn_nearest() -> None:
    shares, groups = {"acc": 0.5, "gyro": 0.5}, groups_of({})
    numbers = {name: drawn(name) for name in shares}
    has_none = (numbers["acc"] >= 0.5) & (numbers["gyro"] >= 0.5)
    with pytest.raises(PartitionError, match=r"data\.without_modality is 'refuse', while \d+ of 280 train rows of"):
        observed(section(observed=shares), groups)
    left = observed(section(observed=shares, without_modality="leave-out"), groups)
    assert sorted(np.concatenate([left.rows(client) for client in range(2)])) == np.flatnonzero(~has_none).tolist()
    kept = observed(section(observed=shares, without_modality="keep-one"), groups)
    assert kept.num_samples == NUM_ROWS
    for row in range(NUM_ROWS):
        nearest = min(shares, key=lambda name: numbers[name][row])
        expected = {name: bool(numbers[name][row] < 0.5 or (has_none[row] and name == nearest)) for name in shares}
        assert {name: bool(kept.observed[name][row]) for name in shares} == expected
    # A quarter of the rows has nothing, and half of it is given each: 0.625, within three deviations.
    assert all(abs(kept.observed[name].mean() - 0.625) < 3 * np.sqrt(0.625 * 0.375 / NUM_ROWS) for name in shares)


def test_a_client_of_one_modality_has_fewer_rows_and_its_rows_stay_on_their_sides() -> None:
    data, groups = section(observed={"acc": 0.8}, without_modality="leave-out"), groups_of({"modalities": ["acc"]})
    before, after = divided(data, groups, targets_of()), observed(data, groups)
    for split, rows in before.splits.items():
        for client in range(2):
            own = rows.of(client)
            assert after.splits[split].of(client).tolist() == own[drawn("acc")[own] < 0.8].tolist()
    assert after.observed == {}
    with pytest.raises(PartitionError, match=r"which leaves none of the \d+ test rows of client \d"):
        observed(section(observed={"acc": {"test": 0.0}}, without_modality="leave-out"), groups)


def test_a_client_observes_what_it_owns_in_one_training_row_at_least() -> None:
    groups = groups_of({"count": 4, "observed": {"gyro": {"train": 1e-9, "test": 0.0}}})
    found = observed(section(), groups)
    for client in range(4):
        train, test = found.train.of(client), found.test.of(client)
        first = train[drawn("gyro")[train].argmin()]
        assert train[found.observed["gyro"][train]].tolist() == [first]
        assert not found.observed["gyro"][test].any()


def test_what_the_data_lack_is_not_drawn() -> None:
    has = np.arange(NUM_ROWS) % 3 != 0
    targets = targets_of(observed={"gyro": has})
    found = observed(section(observed={"gyro": 0.8}), groups_of({}), targets)
    assert np.array_equal(found.observed["gyro"], has & (drawn("gyro") < 0.8))
    assert np.array_equal(observed(section(), groups_of({}), targets).observed["gyro"], has)
    with pytest.raises(PartitionError, match="data have no value of gyro in the 140 training rows of client 0"):
        observed(section(), groups_of({}), targets_of(observed={"gyro": np.zeros(NUM_ROWS, np.bool_)}))
    only = groups_of({"modalities": ["gyro"]})
    with pytest.raises(PartitionError, match=r"while in the data \d+ of 280 train rows of clients with gyro"):
        observed(section(without_modality="keep-one"), only, targets)
    left = observed(section(without_modality="leave-out"), only, targets)
    assert sorted(np.concatenate([left.rows(client) for client in range(2)])) == np.flatnonzero(has).tolist()


def held_out_set(**known: Any) -> Dataset:
    values = np.arange(1, 101, dtype=np.float32)[:, None]
    return Dataset({"acc": values, "gyro": -values}, np.arange(100, dtype=np.int64) % 2, ("a", "b"), **known)


def test_the_held_out_set_has_draws_and_shares_of_its_own() -> None:
    whole, groups = held_out_set(), groups_of({}, {"modalities": ["gyro"], "count": 3})
    assert observe_held_out(whole, section(observed={"gyro": 0.5}), groups, SEED)[0] == [whole]
    data = section(observed={"gyro": {"held_out": 0.5}}, without_modality="leave-out")
    (both, gyro), numbers = observe_held_out(whole, data, groups, SEED)
    assert numbers.tolist() == [0, 0, 1, 1, 1]
    has = drawn("gyro", 1, 100) < 0.5
    assert both.observed["gyro"].tolist() == has.tolist()
    assert both.inputs["gyro"][:, 0].tolist() == [-(row + 1) * has[row] for row in range(100)]
    assert np.array_equal(both.inputs["acc"], whole.inputs["acc"])
    assert gyro.observed == {}
    assert np.array_equal(gyro.inputs["gyro"], whole.inputs["gyro"][has])
    assert np.array_equal(gyro.labels, whole.labels[has])


def test_what_the_held_out_set_lacks_is_not_observed() -> None:
    has = np.arange(100) % 4 != 0
    values = np.where(has, 1, 0).astype(np.float32)[:, None]
    lacking = Dataset({"acc": np.ones((100, 1), np.float32), "gyro": values}, np.zeros(100, np.int64), ("a",),
                      observed={"gyro": has})  # fmt: skip
    (both, acc), _ = observe_held_out(lacking, section(), groups_of({}, {"modalities": ["acc"]}), SEED)
    assert both.observed["gyro"].tolist() == has.tolist()
    assert set(acc.inputs) == {"acc"}
    with pytest.raises(PartitionError, match="25 of 100 rows of the held-out set of clients with gyro"):
        observe_held_out(lacking, section(), groups_of({"modalities": ["gyro"]}), SEED)


def test_what_some_clients_observe_is_told_as_of_a_federation_of_them_alone() -> None:
    groups = groups_of({"modalities": ["acc"]}, {"observed": {"gyro": 0.5}})
    data, targets = section(), targets_of()
    found, whole = observed(data, groups), divided(data, groups, targets)
    clients = [ClientProfile(number, ("acc",) if number < 2 else ("acc", "gyro")) for number in range(4)]
    alone = whole.only([2, 3])
    mask = np.zeros(NUM_ROWS, bool)
    own = np.concatenate([alone.rows(client) for client in range(2)])
    mask[own] = drawn("gyro")[own] < 0.5
    expected = observation_digest(replace(alone, observed={"gyro": mask}), [])
    assert observation_of(clients[2:], whole, found) == expected
    assert observation_of(clients[:2], whole, found) == ""
    fewer = replace(found, train=whole.test)
    assert observation_of(clients[:2], whole, fewer) != ""  # where rows were left out
