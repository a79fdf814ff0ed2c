"""What a source of PTB-XL records gives, whatever its files: labels, folds and patients at once, signals on demand.

`ptb_xl_official.py` and `ptb_xl_prepared.py` read files; `ptb_xl.py` chooses rows and makes a data set of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from blossom_ray.data.dataset import IntArray, LeftOut
from blossom_ray.data.files.cache import Arrays

ByteArray = npt.NDArray[np.uint8]

SUPERCLASSES = ("NORM", "MI", "STTC", "CD", "HYP")
LEADS = ("I", "II", "III", "AVR", "AVL", "AVF", "V1", "V2", "V3", "V4", "V5", "V6")
LEADS_OF = {"i_to_avf": slice(0, 6), "v1_to_v6": slice(6, 12)}
NUM_STEPS = 1000
NUM_RECORDS = 21_799
LARGEST_MEMBER_BYTES = 1_000_000_000


@dataclass(frozen=True)
class Records:
    """All records of a source, in its order.

    Attributes:
        superclasses: (N, 5) uint8: 1 where the record has the superclass, in the order of `SUPERCLASSES`.
        folds: (N,) int64: the official stratified fold, 1 to 10.
        patients: (N,) int64, or None where the source does not say.
        signals: Gives modality to (N, 1000, 6) int16.
        names: Of each record.
        left_out: What is not among them.
        scale: What a unit of `signals` stands for: 0.001 mV in the official files.
    """

    superclasses: ByteArray
    folds: IntArray
    patients: IntArray | None
    signals: Callable[[], Arrays]
    names: Sequence[str]
    left_out: tuple[LeftOut, ...]
    scale: float
