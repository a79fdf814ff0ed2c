"""The clients' learning rate as a pure function of the round: nothing to store, nothing to lose."""

from __future__ import annotations

import math

from blossom_ray.clients.options import ConstantSchedule, CosineSchedule, Schedule, StepSchedule


def learning_rate(schedule: Schedule, base: float, round_index: int, num_rounds: int) -> float:
    """The learning rate of one round.

    Args:
        schedule: The scenario's `training.schedule`.
        base: The learning rate of the clients' optimizer, > 0.
        round_index: The round t, 1..num_rounds.
        num_rounds: Number of rounds T of the whole run.

    Returns:
        `constant`: base. `step`: base * factor^floor((t - 1) / every). `cosine`: half a cosine from exactly
        base in round 1 to exactly `min_lr` in round T; base where T is 1.

    Source: Loshchilov and Hutter 2017 (arXiv:1608.03983), equation 5, without restarts.
    """
    assert 1 <= round_index <= num_rounds, f"round {round_index} of {num_rounds}"
    match schedule:
        case ConstantSchedule():
            return base
        case StepSchedule():
            return base * schedule.factor ** ((round_index - 1) // schedule.every)
        case CosineSchedule():
            progress = (round_index - 1) / max(num_rounds - 1, 1)
            remaining = (1 + math.cos(math.pi * progress)) / 2
            # As a mixture both ends come out exactly; min + (base - min) * remaining may miss base by a bit.
            return remaining * base + (1 - remaining) * schedule.min_lr
