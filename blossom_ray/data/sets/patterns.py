"""Random patterns over time, space or features, of which synthetic samples are made."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_NUM_WAVES = 3
_HIGHEST_FREQUENCY = 8


def patterns(kind: str, shape: tuple[int, ...], number: int, draw: np.random.Generator) -> npt.NDArray[np.float64]:
    """Patterns of root mean square 1, smooth along time and space.

    Args:
        kind: `sequence`: sums of sinusoids over time. `image`: sums of plane waves. `vector`: Gaussian values.
        shape: Shape of one pattern: (time, channels), (channels, height, width) or (features,).
        number: How many.
        draw: Source of random numbers.

    Returns:
        (number, *shape) float64.
    """
    match kind:
        case "sequence":
            drawn = _smooth_sequences(shape[0], (number, shape[1]), draw)
        case "image":
            drawn = _smooth_images(shape, number, draw)
        case _:
            drawn = draw.standard_normal((number, *shape))
    axes = tuple(range(1, drawn.ndim))
    return np.asarray(drawn / np.sqrt(np.square(drawn).mean(axis=axes, keepdims=True)))


def _smooth_sequences(num_steps: int, channels: tuple[int, int], draw: np.random.Generator) -> npt.NDArray[np.float64]:
    frequencies = draw.integers(1, _HIGHEST_FREQUENCY + 1, size=(channels[0], 1, channels[1], _NUM_WAVES))
    phases = draw.uniform(0, 2 * np.pi, size=frequencies.shape)
    time = np.arange(num_steps).reshape(1, -1, 1, 1) / num_steps
    return np.asarray(np.sin(2 * np.pi * frequencies * time + phases).sum(axis=-1))


def _smooth_images(shape: tuple[int, ...], number: int, draw: np.random.Generator) -> npt.NDArray[np.float64]:
    channels, height, width = shape
    size = (number, channels, 1, 1, _NUM_WAVES)
    down = draw.integers(0, _HIGHEST_FREQUENCY // 2 + 1, size=size)
    across = draw.integers(1, _HIGHEST_FREQUENCY // 2 + 1, size=size)
    phases = draw.uniform(0, 2 * np.pi, size=size)
    rows = np.arange(height).reshape(1, 1, -1, 1, 1) / height
    columns = np.arange(width).reshape(1, 1, 1, -1, 1) / width
    return np.asarray(np.cos(2 * np.pi * (down * rows + across * columns) + phases).sum(axis=-1))
