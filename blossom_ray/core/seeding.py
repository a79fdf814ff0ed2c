"""Where every random draw of a run comes from: `(seed, purpose, round, client)`.

There is no global generator. Two draws with different keys are independent; the same key gives the same draw on
every machine, in every process and in every order.
"""

from __future__ import annotations

import zlib
from enum import IntEnum, unique

import numpy as np


@unique
class Purpose(IntEnum):
    """What a draw is for. The numbers are part of every run's results: add to them, never renumber."""

    DATA = 1
    PARTITION = 2
    MATCHING = 3
    SPLIT = 4
    INITIAL_BLOCK = 5
    COHORT = 6
    TRAINING = 7
    EVALUATION_COHORT = 8
    HELD_OUT = 9
    FINE_TUNING = 10
    MODALITY_DROPOUT = 11
    CENTRAL_TRAINING = 12
    VALIDATION = 13
    SELECTION = 14
    DRAWN_EXTRA = 15
    TRANSFORM = 16
    FINE_TUNING_TRANSFORM = 17
    OBSERVATION = 18
    UNSEEN = 19
    DATASET = 20
    BOOTSTRAP = 100  # from here on: what looks at results and changes none


def generator(seed: int, purpose: Purpose, round_index: int = 0, client_index: int = 0) -> np.random.Generator:
    """The generator for one purpose, round and client.

    The key always has four numbers, since NumPy seeds `[7, 3]` and `[7, 3, 0]` alike.

    Args:
        seed: The seed that the purpose follows from, >= 0: one of the scenario's `Seeds`.
        purpose: What the draw is for.
        round_index: The round, or 0 where the draw belongs to none. Other counters (an attempt) may stand here.
        client_index: The client, or 0. Another stable number, such as `stable_number(name)`, may stand here.
    """
    return np.random.default_rng([seed, int(purpose), round_index, client_index])


def named_seed(seed: int, name: str) -> int:
    """The seed of what is drawn about a data set with a name, 63 bits; about one without, the seed itself."""
    return int(generator(seed, Purpose.DATASET, 0, stable_number(name)).integers(2**63)) if name else seed


def torch_seed(seed: int, purpose: Purpose, round_index: int = 0, client_index: int = 0) -> int:
    """A seed for `torch.manual_seed` (63 bits) from the same four numbers."""
    return int(generator(seed, purpose, round_index, client_index).integers(2**63))


def stable_number(name: str) -> int:
    """A number of 32 bits that depends on the text alone (CRC-32 of its UTF-8 bytes)."""
    return zlib.crc32(name.encode())
