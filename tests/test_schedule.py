import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blossom_ray.clients.options import ConstantSchedule, CosineSchedule, StepSchedule


def test_constant_is_the_base_in_every_round():
    schedule = ConstantSchedule(kind="constant")
    assert [schedule.learning_rate(0.05, t, 3) for t in (1, 2, 3)] == [0.05, 0.05, 0.05]


def test_cosine_by_hand():
    # T = 5: progress 0, 1/4, 1/2, 3/4, 1; (1 + cos) / 2 = 1, 0.853553, 0.5, 0.146447, 0; from 0.1 to 0.02.
    schedule = CosineSchedule(kind="cosine", min_lr=0.02)
    rates = [schedule.learning_rate(0.1, t, 5) for t in range(1, 6)]
    assert rates == pytest.approx([0.1, 0.0882842712, 0.06, 0.0317157288, 0.02])


def test_cosine_over_one_round_is_the_base():
    assert CosineSchedule(kind="cosine", min_lr=0.02).learning_rate(0.1, 1, 1) == 0.1


def test_step_by_hand():
    # every = 2, factor = 1/2: rounds 1-2 at 0.8, 3-4 at 0.4, 5 at 0.2.
    schedule = StepSchedule(kind="step", every=2, factor=0.5)
    assert [schedule.learning_rate(0.8, t, 5) for t in range(1, 6)] == [0.8, 0.8, 0.4, 0.4, 0.2]


@given(
    base=st.floats(1e-6, 10),
    share=st.floats(0, 1),
    num_rounds=st.integers(2, 500),
)
@settings(deadline=None, max_examples=50)
def test_cosine_ends_exactly_and_never_rises(base, share, num_rounds):
    schedule = CosineSchedule(kind="cosine", min_lr=base * share)
    rates = [schedule.learning_rate(base, t, num_rounds) for t in range(1, num_rounds + 1)]
    assert rates[0] == base
    assert rates[-1] == schedule.min_lr
    rounding = 4e-16 * base
    assert all(later <= earlier + rounding for earlier, later in itertools.pairwise(rates))


@pytest.mark.parametrize("round_index", [0, 4])
def test_a_round_outside_the_run_is_our_own_mistake(round_index):
    with pytest.raises(AssertionError, match=f"round {round_index} of 3"):
        ConstantSchedule(kind="constant").learning_rate(0.1, round_index, 3)
