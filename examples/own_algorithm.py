"""An algorithm of your own: SCAFFOLD (Karimireddy et al. 2020, arXiv:1910.06378), option II.

    python examples/own_algorithm.py

In a scenario file, with this file in the working directory:

    algorithm: {kind: custom, factory: "own_algorithm:Scaffold"}
"""

from typing import Any

from blossom_ray import Scenario, simulate
from blossom_ray.algorithms.seam import Client, Extra, Layout, Pass, Sent, ServerView, Tree


class Scaffold:
    """Clients descend along g - c_k + c: c_k is the mean step of a client's last round, c the mean of all c_k."""

    def extras(self, layout: Layout) -> dict[str, Extra]:
        """c, as the blocks are shared, and each client's own c_k; both begin with zeros."""
        return {"c": Extra(layout.averaged), "own": Extra(layout.averaged, scope="private")}

    def passes(self, k: Client) -> list[Pass]:
        """One pass along g + c - c_k."""
        return [Pass(offset=k["c"] - k["own"])]

    def finish(self, k: Client) -> dict[str, Any]:
        """c_k+ = c_k - c + (x - y) / (K eta); its change is sent."""
        change = (k.mean_step - k["c"]) * k.stepped
        return {"own": k["own"] + change, "c": Sent(change)}

    def server(self, s: ServerView) -> dict[str, Tree]:
        """To c comes the mean change over all clients, of which those that were not drawn have none."""
        return {"c": s.current["c"] + s.total["c"] / s.holders["c"]}


SCENARIO = Scenario.model_validate(
    {
        "rounds": 5,
        "sharing": "full-model",
        "data": {
            "dataset": "synthetic",
            "samples": 600,
            "classes": 4,
            "partition": {"kind": "dirichlet", "alpha": 0.3},
        },
        "clients": [{"count": 4, "modalities": ["acc"]}, {"count": 4, "modalities": ["acc", "gyro"]}],
        "model": {"encoders": {"acc": {"kind": "mlp", "dim": 16}, "gyro": {"kind": "mlp", "dim": 16}}},
        "algorithm": Scaffold(),
        "training": {"optimizer": {"kind": "sgd", "lr": 0.05}, "local_epochs": 3},
        "execution": {"runtime": "local"},
    }
)

if __name__ == "__main__":
    averaged = simulate(SCENARIO.override({"algorithm": {"kind": "fedavg"}}))
    print(f"averaging: accuracy {averaged.final['accuracy']:.3f}")
    run = simulate(SCENARIO)
    print(f"scaffold: accuracy {run.final['accuracy']:.3f}")
