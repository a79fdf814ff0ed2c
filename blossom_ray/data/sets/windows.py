"""What loaders of sensor recordings share: windows of equal length, and their standardisation."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from blossom_ray.data.dataset import FloatArray


def standardised(windows: npt.NDArray[np.float32 | np.int16]) -> FloatArray:
    """Each channel of each window brought to mean 0 and deviation 1; a constant channel becomes 0.

    Args:
        windows: (N, time, channels), in any unit. Not modified.

    Returns:
        The same shape, float32. Means and deviations are computed in float64.
    """
    result = np.empty(windows.shape, np.float32)
    for start in range(0, len(windows), _WINDOWS_AT_ONCE):
        values = windows[start : start + _WINDOWS_AT_ONCE].astype(np.float64)
        centred = values - values.mean(axis=1, keepdims=True)
        deviation = values.std(axis=1, keepdims=True)
        # Rounding may leave a constant channel with a tiny deviation, and dividing by that would blow it up.
        constant = np.ptp(values, axis=1, keepdims=True) == 0
        result[start : start + _WINDOWS_AT_ONCE] = np.where(constant, 0, centred / np.where(constant, 1, deviation))
    return result


# Float64 copies of a large data set all at once would take several times its size.
_WINDOWS_AT_ONCE = 1024
