"""A fusion of your own: the largest of the modalities' projections, unit by unit.

    python examples/own_fusion.py

In a scenario file, with this file in the working directory:

    model:
      fusion: {kind: custom, factory: "own_fusion:MaxFusion", options: {dim: 32}}
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from blossom_ray import Scenario, simulate


class MaxFusion(nn.Module):
    """A linear projection per modality, then the maximum over the modalities that are there.

    Args:
        embedding_dims: Width of each modality's embedding; all modalities of the federation.
        dim: Width of the fused representation.
    """

    def __init__(self, embedding_dims: Mapping[str, int], dim: int = 32) -> None:
        super().__init__()
        self.projections = nn.ModuleDict({name: nn.Linear(width, dim) for name, width in embedding_dims.items()})

    def forward(self, embeddings: Mapping[str, Tensor]) -> Tensor:
        """(B, width) by modality to (B, dim); with `model.missing: mask` only what the client owns is there."""
        projected = [self.projections[name](embedding) for name, embedding in embeddings.items()]
        return torch.stack(projected).amax(dim=0)


SCENARIO = Scenario.model_validate(
    {
        "rounds": 5,
        "data": {"dataset": "synthetic", "samples": 600, "classes": 4},
        "clients": [
            {"count": 2, "modalities": ["acc"]},
            {"count": 2, "modalities": ["gyro"]},
            {"count": 2, "modalities": ["acc", "gyro"]},
        ],
        "model": {
            "encoders": {"acc": {"kind": "mlp", "dim": 16}, "gyro": {"kind": "mlp", "dim": 16}},
            "fusion": {"kind": "custom", "factory": MaxFusion, "options": {"dim": 16}},
        },
        "training": {"optimizer": {"kind": "adamw", "lr": 0.005}},
        "execution": {"runtime": "local"},
    }
)

if __name__ == "__main__":
    run = simulate(SCENARIO)
    for owned in ("acc", "gyro", "acc+gyro"):
        print(f"{owned}: accuracy {run.final[f'accuracy/{owned}']:.3f}")
