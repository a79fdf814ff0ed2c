"""An encoder of your own: the spectrum of each channel, then one linear layer.

    python examples/own_encoder.py

In a scenario file, with this file in the working directory:

    model:
      encoders:
        acc: {kind: custom, factory: "own_encoder:SpectrumEncoder", options: {dim: 32}}
"""

import torch
from torch import Tensor, nn

from blossom_ray import Scenario, simulate


class SpectrumEncoder(nn.Module):
    """Magnitudes of the Fourier transform over time, then a linear layer.

    Args:
        input_shape: (T, C) of one sample: T steps of C channels.
        dim: Width of the embedding.
    """

    def __init__(self, input_shape: tuple[int, ...], dim: int = 32) -> None:
        super().__init__()
        num_steps, num_channels = input_shape
        self.linear = nn.Linear((num_steps // 2 + 1) * num_channels, dim)

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, T, C) float32 to embeddings (B, dim)."""
        magnitudes = torch.fft.rfft(inputs, dim=1).abs()
        return self.linear(magnitudes.log1p().flatten(start_dim=1))


SCENARIO = Scenario.model_validate(
    {
        "rounds": 5,
        "data": {"dataset": "synthetic", "samples": 600, "classes": 4},
        "clients": [{"count": 2, "modalities": ["acc"]}, {"count": 2, "modalities": ["acc", "gyro"]}],
        "model": {
            "encoders": {
                "acc": {"kind": "custom", "factory": SpectrumEncoder, "options": {"dim": 16}},
                "gyro": {"kind": "mlp", "dim": 16},
            }
        },
        "training": {"optimizer": {"kind": "adamw", "lr": 0.005}},
        "execution": {"runtime": "local"},
    }
)

if __name__ == "__main__":
    run = simulate(SCENARIO)
    print(f"accuracy {run.final['accuracy']:.3f}, parameters {run.manifest['parameters']}")
