"""A server optimizer of your own: Lion (Chen et al. 2023, arXiv:2302.06675) on the server, without weight decay.

    python examples/own_server_optimizer.py

In a scenario file, with this file in the working directory:

    server:
      optimizer: {kind: custom, factory: "own_server_optimizer:Lion", options: {lr: 0.003}}
"""

from collections.abc import Mapping

import numpy as np

from blossom_ray import Scenario, simulate


class Lion:
    """The sign of an interpolated momentum, for each block instance by itself.

    Args:
        lr: Length of the step of each parameter.
        beta1: Weight of the momentum in the direction of the step.
        beta2: Decay of the momentum.
    """

    def __init__(self, lr: float = 0.003, beta1: float = 0.9, beta2: float = 0.99) -> None:
        self.lr, self.beta1, self.beta2 = lr, beta1, beta2

    def init(self, num_parameters: int) -> dict[str, np.ndarray]:
        """The state before the first step: float64 arrays by name."""
        return {"momentum": np.zeros(num_parameters)}

    def step(
        self, state: Mapping[str, np.ndarray], current: np.ndarray, average: np.ndarray
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """From the current block (n,) and the clients' average (n,) to the new block and the new state."""
        delta, momentum = average - current, state["momentum"]
        direction = np.sign(self.beta1 * momentum + (1 - self.beta1) * delta)
        return current + self.lr * direction, {"momentum": self.beta2 * momentum + (1 - self.beta2) * delta}


SCENARIO = Scenario.model_validate(
    {
        "rounds": 5,
        "data": {"dataset": "synthetic", "samples": 600, "classes": 4},
        "clients": [{"count": 2, "modalities": ["acc"]}, {"count": 2, "modalities": ["acc", "gyro"]}],
        "model": {"encoders": {"acc": {"kind": "mlp", "dim": 16}, "gyro": {"kind": "mlp", "dim": 16}}},
        "server": {"optimizer": {"kind": "custom", "factory": Lion, "options": {"lr": 0.003}}},
        "training": {"optimizer": {"kind": "adamw", "lr": 0.005}},
        "execution": {"runtime": "local"},
    }
)

if __name__ == "__main__":
    run = simulate(SCENARIO)
    print(f"accuracy {run.final['accuracy']:.3f}")
    print(run.blocks.filter(round=5).select("block", "contributors", "update_norm"))
