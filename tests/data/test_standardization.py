"""`data.standardize`, beside scikit-learn's StandardScaler."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.preprocessing import StandardScaler

from blossom_ray import Dataset
from blossom_ray.core.blocks import ClientProfile
from blossom_ray.data.division.federation import Federation
from blossom_ray.data.division.split import Split
from blossom_ray.data.division.standardization import standardized

PROFILES = (ClientProfile(0, ("a",)), ClientProfile(1, ("a", "b")))
CHANNELS = {(5,): -1, (7, 3): -1, (2, 6, 4): 1, (2, 2, 2, 2): None}
"""The axis of channels, samples counted, by the shape of a sample."""


def federation_of(*splits: tuple[list[int], list[int], list[int]]) -> Federation:
    return Federation.of([Split(*(np.array(rows, np.int64) for rows in split)) for split in splits])


def by_channel(values: np.ndarray, axis: int | None) -> np.ndarray:
    """(rows times places, channels)."""
    return values.reshape(-1, 1) if axis is None else np.moveaxis(values, axis, -1).reshape(-1, values.shape[axis])


@pytest.mark.parametrize("shape", CHANNELS)
def test_it_is_the_standard_scaler_of_what_owners_train_on(shape: tuple[int, ...]) -> None:
    draw = np.random.default_rng(0)
    scale = np.geomspace(0.001, 10_000, int(np.prod(shape))).reshape(shape)
    inputs = {name: (scale * (3 + draw.normal(size=(40, *shape)))).astype(np.float32) for name in ("a", "b")}
    before = {name: values.copy() for name, values in inputs.items()}
    labels = np.zeros(40, np.int64)
    held_out = Dataset({name: values[:5] * 2 for name, values in inputs.items()}, labels[:5], ("x",))
    federation = federation_of(([*range(10)], [], [10, 11]), ([*range(12, 30)], [30], [*range(31, 40)]))
    found = standardized(Dataset(inputs, labels, ("x",), held_out=held_out), federation, PROFILES)
    for name, train in {"a": [*range(10), *range(12, 30)], "b": [*range(12, 30)]}.items():
        judge = StandardScaler().fit(by_channel(before[name][train].astype(np.float64), CHANNELS[shape]))
        for mine, raw in ((found, before[name]), (found.held_out, before[name][:5] * 2)):
            assert mine is not None
            expected = judge.transform(by_channel(raw.astype(np.float64), CHANNELS[shape]))
            np.testing.assert_allclose(by_channel(mine.inputs[name], CHANNELS[shape]), expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(inputs[name], before[name])


def test_a_constant_channel_becomes_zero_and_a_missing_row_stays_missing() -> None:
    values = np.full((6, 2), 0.1, np.float32)
    values[:, 1] = [1, 2, 3, 4, 5, 6]
    values[3:] = np.nan
    dataset = Dataset(
        {"a": np.ones((6, 1), np.float32), "b": values},
        np.zeros(6, np.int64),
        ("x",),
        clients=np.array([1, 1, 1, 0, 0, 0]),
    )
    found = standardized(dataset, federation_of(([3, 4], [], [5]), ([0, 1], [], [2])), PROFILES).inputs["b"]
    assert found[:3, 0].tolist() == [0, 0, 0]
    np.testing.assert_allclose(found[:3, 1], [-1, 1, 3])  # mean 1.5, deviation 0.5
    assert np.isnan(found[3:]).all()
