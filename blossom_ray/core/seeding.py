"""Where every random draw of a run comes from: `(seed, purpose, round, client)`.

There is no global generator. Two draws with different keys are independent; the same key gives the same draw on
every machine, in every process and in every order.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from enum import IntEnum, unique
from itertools import count, pairwise, permutations

import numpy as np
import numpy.typing as npt
from numpy.random.bit_generator import ISeedSequence


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


def generators(
    seed: int, purpose: Purpose, clients: Sequence[int] | npt.NDArray[np.int64], round_index: int = 0
) -> Iterator[np.random.Generator]:
    """What `generator` gives for each of many clients, which for a thousand takes a tenth of the time.

    Args:
        seed: As in `generator`.
        purpose: What the draws are for.
        clients: Their ids, in any order, each below 2**32.
        round_index: The round.
    """
    if len(clients) < _FEW:
        yield from (generator(seed, purpose, round_index, int(client)) for client in clients)
        return
    for words in _seed_words([seed, int(purpose), round_index], np.asarray(clients)):
        yield np.random.Generator(np.random.PCG64(_Words(words)))  # type: ignore[arg-type]  # it takes every ISeedSequence


def named_seed(seed: int, name: str) -> int:
    """The seed of what is drawn about a data set with a name, 63 bits; about one without, the seed itself."""
    return int(generator(seed, Purpose.DATASET, 0, stable_number(name)).integers(2**63)) if name else seed


def torch_seed(seed: int, purpose: Purpose, round_index: int = 0, client_index: int = 0) -> int:
    """A seed for `torch.manual_seed` (63 bits) from the same four numbers."""
    return int(generator(seed, purpose, round_index, client_index).integers(2**63))


def torch_seeds(seed: int, purpose: Purpose, clients: Sequence[int], round_index: int) -> list[int]:
    """What `torch_seed` gives for each of many clients."""
    return [int(draw.integers(2**63)) for draw in generators(seed, purpose, clients, round_index)]


def stable_number(name: str) -> int:
    """A number of 32 bits that depends on the text alone (CRC-32 of its UTF-8 bytes)."""
    return zlib.crc32(name.encode())


_Uint32s = npt.NDArray[np.uint32]
_POOL, _FEW = 4, 16


class _Words(ISeedSequence):
    """Gives words that are known in the place of those that `numpy.random.SeedSequence` would compute."""

    def __init__(self, words: npt.NDArray[np.uint64]) -> None:
        self._words = words

    def generate_state(self, *_: object) -> npt.NDArray[np.uint64]:
        return self._words


def _seed_words(common: Sequence[int], last: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """What `SeedSequence([*common, each]).generate_state(4, np.uint64)` is for each of `last`, (n, 4).

    Source: `numpy/random/bit_generator.pyx`, whose numbers stay as they are (NEP 19); after O'Neill 2015, "Developing a
    seed_seq alternative".
    """
    parts = [number >> at & 0xFFFFFFFF for number in common for at in range(0, number.bit_length() or 1, 32)]
    words = [*(np.array([part], np.uint32) for part in parts), last.astype(np.uint32)]
    constants = _constants(0x43B0D7E5, 0x931E8875)
    pool = [_hashed(word, constants) for word in words[:_POOL]]
    for source, place in permutations(range(_POOL), 2):
        pool[place] = _mixed(pool[place], _hashed(pool[source], constants))
    for word in words[_POOL:]:
        pool = [_mixed(each, _hashed(word, constants)) for each in pool]
    constants = _constants(0x8B51F9DD, 0x58F38DED)
    return np.stack([_hashed(pool[place % _POOL], constants) for place in range(2 * _POOL)], axis=1).view(np.uint64)


def _hashed(words: _Uint32s, constants: Iterator[tuple[int, int]]) -> _Uint32s:
    before, after = next(constants)
    return _folded((words ^ np.uint32(before)) * np.uint32(after))


def _mixed(words: _Uint32s, others: _Uint32s) -> _Uint32s:
    return _folded(words * np.uint32(0xCA01F9DD) - others * np.uint32(0x4973F715))


def _folded(words: _Uint32s) -> _Uint32s:
    return words ^ (words >> np.uint32(16))


def _constants(first: int, factor: int) -> Iterator[tuple[int, int]]:
    """Each constant of a hash and the next one."""
    return pairwise(first * pow(factor, power, 2**32) % 2**32 for power in count())
