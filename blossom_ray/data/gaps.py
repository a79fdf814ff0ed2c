"""Rows without a value of a modality: all of a client that does not own it, or some, in which it was not observed."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from blossom_ray.data.stored import Rows, StoredRows

BoolArray = npt.NDArray[np.bool_]


def in_torn_clients(missing: BoolArray, owners: npt.NDArray[np.int64] | None) -> BoolArray:
    """Whether each row (N,) is of a client that has a modality in some of its rows and lacks it in others.

    Args:
        missing: (N,): whether each row lacks it.
        owners: (N,): whose each row is; None: nobody's, so that every missing value is one of a single row.
    """
    if owners is None:
        return np.full(len(missing), missing.any())
    num_missing = np.bincount(owners, missing)
    is_torn: BoolArray = (num_missing > 0) & (num_missing < np.bincount(owners))
    return is_torn[owners]


def fill_gaps(
    inputs: Mapping[str, Rows],
    missing: Mapping[str, BoolArray],
    owners: npt.NDArray[np.int64] | None = None,
) -> tuple[dict[str, Rows], dict[str, BoolArray]]:
    """Inputs and observed rows as a `Dataset` has them.

    Args:
        inputs: Modality to (N, *shape), whatever stands where it is missing. Not modified.
        missing: By modality whether each row (N,) lacks it.
        owners: (N,): whose each row is, or None.
    """
    filled, observed = dict(inputs), {}
    for modality, lacks in missing.items():
        if lacks.any():
            has_gaps = bool(in_torn_clients(lacks, owners).any())
            values, fill = inputs[modality], 0 if has_gaps else np.nan
            if isinstance(values, StoredRows):
                filled[modality] = values.without(lacks, fill)
            else:
                filled[modality] = own = values.copy()
                own[lacks] = fill
            if has_gaps:
                observed[modality] = ~lacks
    return filled, observed
