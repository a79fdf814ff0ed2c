import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blossom_ray.algorithms.server_optimizers import FedAdagrad, FedAdam, FedAvg, FedAvgM, FedYogi

SECTIONS = [
    FedAvg(kind="fedavg", lr=0.5),
    FedAvgM(kind="fedavgm"),
    FedAdagrad(kind="fedadagrad", beta1=0.5),
    FedAdam(kind="fedadam"),
    FedYogi(kind="fedyogi"),
]
BY_KIND = pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.kind)


def two_steps(section, averages=(3.0, 1.0)):
    """The block and the state after two rounds that start from 1."""
    current, state, seen = np.array([1.0], dtype=np.float32), section.init(1), []
    for average in averages:
        current, state = section.step(state, current, np.array([average]))
        seen.append(float(current[0]))
    return seen, state


def test_fedavg_by_hand():
    # delta 2: 1 + 0.5 * 2 = 2; delta 1 - 2 = -1: 2 - 0.5 = 1.5
    assert two_steps(FedAvg(kind="fedavg", lr=0.5))[0] == [2.0, 1.5]


def test_fedavg_with_rate_one_is_the_average_itself():
    current = np.array([1e8, 1.0], dtype=np.float32)
    average = np.array([0.1, 1 / 3])
    new, _ = FedAvg(kind="fedavg").step({}, current, average)
    np.testing.assert_array_equal(new, average.astype(np.float32))


def test_fedavgm_by_hand():
    # m = 2, x = 1 + 0.5 * 2 = 2; delta 1 - 2 = -1, m = 0.5 * 2 - 1 = 0, x = 2
    seen, state = two_steps(FedAvgM(kind="fedavgm", lr=0.5, momentum=0.5))
    assert seen == [2.0, 2.0]
    assert state["momentum"].tolist() == [0.0]


def test_fedadagrad_by_hand():
    # tau 1, v0 = 1, beta1 0.5, lr 3.
    # delta 2: m = 1, v = 1 + 4 = 5, x = 1 + 3 * 1 / (sqrt 5 + 1) = 1.927050983
    # delta 1 - 1.927050983 = -0.927050983: m = 0.5 - 0.463525492 = 0.036474508,
    # v = 5 + 0.859423525 = 5.859423525, x = 1.927050983 + 3 * 0.036474508 / (2.420624615 + 1) = 1.959040368
    seen, state = two_steps(FedAdagrad(kind="fedadagrad", lr=3.0, beta1=0.5, tau=1.0))
    assert seen == pytest.approx([1.927050983, 1.959040368], rel=1e-6)
    assert state["second_moment"] == pytest.approx([5.859423525], rel=1e-6)


def test_fedadam_by_hand():
    # tau 1, v0 = 1, beta1 0.5, beta2 0.75, lr 1.
    # delta 2: m = 1, v = 0.75 + 0.25 * 4 = 1.75, x = 1 + 1 / (1.322875656 + 1) = 1.430500874
    # delta -0.430500874: m = 0.5 - 0.215250437 = 0.284749563, v = 1.3125 + 0.25 * 0.185331002 = 1.358832751,
    # x = 1.430500874 + 0.284749563 / (1.165690675 + 1) = 1.561982922
    seen, state = two_steps(FedAdam(kind="fedadam", lr=1.0, beta1=0.5, beta2=0.75, tau=1.0))
    assert seen == pytest.approx([1.430500874, 1.561982922], rel=1e-6)
    assert state["second_moment"] == pytest.approx([1.358832751], rel=1e-6)


def test_fedyogi_by_hand():
    # tau 1, v0 = 1, beta1 0.5, beta2 0.75, lr 1.
    # delta 2: m = 1, v = 1 - 0.25 * 4 * sign(1 - 4) = 2, x = 1 + 1 / (1.414213562 + 1) = 1.414213562
    # delta -0.414213562: m = 0.5 - 0.207106781 = 0.292893219,
    # v = 2 - 0.25 * 0.171572875 * sign(2 - 0.17) = 1.957106781,
    # x = 1.414213562 + 0.292893219 / (1.398966326 + 1) = 1.536305523
    seen, state = two_steps(FedYogi(kind="fedyogi", lr=1.0, beta1=0.5, beta2=0.75, tau=1.0))
    assert seen == pytest.approx([1.414213562, 1.536305523], rel=1e-6)
    assert state["second_moment"] == pytest.approx([1.957106781], rel=1e-6)


def test_the_second_moment_starts_at_tau_squared():
    state = FedAdam(kind="fedadam", tau=0.1).init(3)
    assert state["second_moment"] == pytest.approx([0.01, 0.01, 0.01])
    assert state["momentum"].tolist() == [0, 0, 0]


@given(values=st.lists(st.floats(-100, 100), min_size=1, max_size=8), rate=st.sampled_from([0.25, 0.7, 1.5]))
@settings(deadline=None, max_examples=30)
def test_fedavgm_without_momentum_is_fedavg(values, rate):
    average = np.array(values)
    current = np.ones(len(values), dtype=np.float32)
    plain, _ = FedAvg(kind="fedavg", lr=rate).step({}, current, average)
    section = FedAvgM(kind="fedavgm", lr=rate, momentum=0.0)
    state = section.init(len(values))
    for _ in range(2):
        new, state = section.step(state, current, average)
        np.testing.assert_array_equal(new, plain)


def test_adam_without_memory_moves_by_the_rate_in_the_sign_of_delta():
    section = FedAdam(kind="fedadam", lr=0.5, beta1=0.0, beta2=0.0, tau=1e-12)
    current = np.zeros(2, dtype=np.float32)
    new, _ = section.step(section.init(2), current, np.array([3.0, -0.2]))
    assert new == pytest.approx([0.5, -0.5])


@BY_KIND
def test_an_average_equal_to_the_block_changes_nothing(section):
    current = np.array([0.1, -2.5, 3e-8], dtype=np.float32)
    new, _ = section.step(section.init(3), current, current.astype(np.float64))
    np.testing.assert_array_equal(new, current)


@BY_KIND
def test_inputs_are_not_modified_and_types_are_kept(section):
    current, average = np.array([1.0, 2.0], dtype=np.float32), np.array([0.5, 4.0])
    state = section.init(2)
    for array in (current, average, *state.values()):
        array.flags.writeable = False
    new, later = section.step(state, current, average)
    assert new.dtype == np.float32
    assert not np.shares_memory(new, average)
    assert all(array.dtype == np.float64 for array in later.values())
    assert later.keys() == state.keys()


@BY_KIND
def test_a_state_rebuilt_from_its_arrays_goes_on_with_the_same_bits(section):
    current, average = np.array([1.0, 2.0], dtype=np.float32), np.array([0.5, 4.0])
    current, state = section.step(section.init(2), current, average)
    rebuilt = {name: array.copy() for name, array in state.items()}
    np.testing.assert_array_equal(section.step(state, current, average)[0], section.step(rebuilt, current, average)[0])
