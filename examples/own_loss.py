"""A loss and a batch transform of your own: generalised cross-entropy (Zhang and Sabuncu 2018, arXiv:1805.07836).

    python examples/own_loss.py

In a scenario file, with this file in the working directory:

    training:
      loss: {kind: custom, factory: "own_loss:GeneralisedCrossEntropy", options: {q: 0.7}}
      transform:
        acc: {kind: custom, factory: "own_loss:Drift", options: {std: 0.1}}
"""

import torch
from torch import Tensor

from blossom_ray import Scenario, simulate


class GeneralisedCrossEntropy:
    """(1 - p^q) / q, p the probability of the true class: between cross-entropy (q near 0) and the error (q = 1).

    Args:
        q: The nearer to 1, the less a wrong label can do.
    """

    def __init__(self, q: float = 0.7) -> None:
        self.q = q

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Logits (B, C) and classes (B,) of one client to a loss for each sample, (B,)."""
        probability = outputs.softmax(dim=1).gather(1, targets.unsqueeze(1)).squeeze(1)
        return (1 - probability**self.q) / self.q


class Drift:
    """A slow drift is added to each channel of a sequence, as of a sensor that warms up.

    Args:
        std: Standard deviation of the drift at the end.
    """

    def __init__(self, std: float = 0.1) -> None:
        self.std = std

    def __call__(self, batch: Tensor, generator: torch.Generator) -> Tensor:
        """(B, T, C) float32 to the same shape; what is random is drawn from the generator."""
        size = self.std * torch.randn(len(batch), 1, batch.shape[2], generator=generator, device=batch.device)
        return batch + size * torch.linspace(0, 1, batch.shape[1], device=batch.device).view(1, -1, 1)


SCENARIO = Scenario.model_validate(
    {
        "rounds": 5,
        "data": {"dataset": "synthetic", "samples": 600, "classes": 4},
        "clients": [{"count": 2, "modalities": ["acc"]}, {"count": 2, "modalities": ["acc", "gyro"]}],
        "model": {"encoders": {"acc": {"kind": "mlp", "dim": 16}, "gyro": {"kind": "mlp", "dim": 16}}},
        "training": {
            "optimizer": {"kind": "adamw", "lr": 0.005},
            "loss": {"kind": "custom", "factory": GeneralisedCrossEntropy, "options": {"q": 0.7}},
            "transform": {"acc": {"kind": "custom", "factory": Drift, "options": {"std": 0.1}}},
        },
        "execution": {"runtime": "local"},
    }
)

if __name__ == "__main__":
    run = simulate(SCENARIO)
    print(run.rounds.select("round", "train_loss", "loss", "accuracy"))
