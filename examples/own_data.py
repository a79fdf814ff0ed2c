"""Data of your own, made or decoded by a function.

    python examples/own_data.py

In a scenario file, with this file in the working directory:

    data: {dataset: custom, factory: "own_data:machines", options: {samples: 500}}

Data that lie in a Parquet or Arrow file, or in arrays, need no such function: see docs/own-data.md.
"""

import numpy as np

from blossom_ray import Dataset, Scenario, simulate


def machines(samples: int, seed: int = 0) -> Dataset:
    """Vibration and temperature of machines, some of which are worn.

    Args:
        samples: Number of recordings.
        seed: Same seed, same data.

    Returns:
        Modalities `vibration` (64, 1) and `temperature` (4,), float32; two classes; ten machines as subjects.
    """
    draw = np.random.default_rng(seed)
    is_worn = draw.integers(0, 2, samples)
    hum = np.sin(np.arange(64) / 3) * (1 + is_worn[:, None])
    vibration = hum + draw.normal(size=(samples, 64))
    temperature = 0.5 * is_worn[:, None] + draw.normal(size=(samples, 4))
    return Dataset(
        inputs={
            "vibration": vibration[:, :, None].astype(np.float32),
            "temperature": temperature.astype(np.float32),
        },
        labels=is_worn,
        class_names=("sound", "worn"),
        subjects=draw.integers(0, 10, samples),
    )


SCENARIO = Scenario.model_validate(
    {
        "rounds": 5,
        "data": {
            "dataset": "custom",
            "factory": machines,
            "options": {"samples": 500},
            "partition": {"kind": "subject"},
        },
        "clients": [
            {"count": 2, "modalities": ["vibration"]},
            {"count": 3, "modalities": ["vibration", "temperature"]},
        ],
        "model": {"encoders": {"vibration": {"kind": "gru", "dim": 16}, "temperature": {"kind": "mlp", "dim": 16}}},
        "training": {"optimizer": {"kind": "adamw", "lr": 0.005}},
        "execution": {"runtime": "local"},
    }
)

if __name__ == "__main__":
    run = simulate(SCENARIO)
    print(
        f"accuracy {run.final['accuracy']:.3f} over {run.final['accuracy_p10']:.3f} .. {run.final['accuracy_p90']:.3f}"
    )
