"""A sharing scheme of your own: a scope for each block, no code.

    python examples/own_sharing.py

Two hospitals: all share the encoder of the ECG, each hospital has a fusion of its own, and each client its own head.
The encoder of the lab values is shared among clients with exactly the same modalities. In a scenario file:

    clients:
      - {count: 2, modalities: [ecg], group: north}
      - {count: 2, modalities: [ecg, lab], group: south}
    sharing: {encoder/ecg: shared, encoder/*: same-modalities, fusion: group, head: private}
"""

from blossom_ray import Scenario, personalization_gain, simulate

SCENARIO = Scenario.model_validate(
    {
        "rounds": 5,
        "data": {
            "dataset": "synthetic",
            "samples": 800,
            "classes": 4,
            "modalities": {"ecg": {"shape": [32, 2]}, "lab": {"kind": "vector", "shape": [8]}},
            "partition": {"kind": "dirichlet", "alpha": 0.5},
        },
        "clients": [
            {"count": 2, "modalities": ["ecg"], "group": "north"},
            {"count": 1, "modalities": ["ecg", "lab"], "group": "north"},
            {"count": 2, "modalities": ["ecg", "lab"], "group": "south"},
        ],
        "model": {"encoders": {"ecg": {"kind": "gru", "dim": 16}, "lab": {"kind": "mlp", "dim": 16}}},
        "sharing": {"encoder/ecg": "shared", "encoder/*": "same-modalities", "fusion": "group", "head": "private"},
        "training": {"optimizer": {"kind": "adamw", "lr": 0.005}},
        "execution": {"runtime": "local"},
    }
)

if __name__ == "__main__":
    run, full_model = simulate(SCENARIO), simulate(SCENARIO.override({"sharing": "full-model"}))
    print(run.blocks.filter(round=5).select("block", "scope", "key", "contributors"))
    gain = personalization_gain(run.final["accuracy"], full_model.final["accuracy"])
    print(f"accuracy {full_model.final['accuracy']:.3f} -> {run.final['accuracy']:.3f}: {gain:+.1f} %")
