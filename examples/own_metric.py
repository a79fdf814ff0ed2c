"""A metric of your own: the expected calibration error (Guo et al. 2017, arXiv:1706.04599).

    python examples/own_metric.py

In a scenario file, with this file in the working directory:

    evaluation:
      metrics:
        calibration_error: {function: "own_metric:calibration_error", lower_is_better: true, is_share: true}

It is a column of the tables `rounds` and `clients`, and `blossom-ray compare runs --metric calibration_error` knows it.
"""

import numpy as np

from blossom_ray import Scenario, simulate


def calibration_error(labels: np.ndarray, outputs: np.ndarray, *, num_bins: int = 10) -> float:
    """How far confidence and accuracy lie apart, mean over bins of confidence weighted by their samples.

    Args:
        labels: (N,) int64, the classes of one client's test samples.
        outputs: (N, C) float32, the logits that its model gives.
        num_bins: Bins of equal width between 0 and 1.

    Returns:
        0..1; 0 where in each bin as many predictions are right as their confidence says.
    """
    exponentials = np.exp(outputs.astype(np.float64) - outputs.max(axis=1, keepdims=True))
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    confidence, is_right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    bins = np.minimum((confidence * num_bins).astype(int), num_bins - 1)
    gaps = [abs((confidence[bins == k] - is_right[bins == k]).sum()) for k in range(num_bins)]
    return float(sum(gaps) / len(labels))


SCENARIO = Scenario.model_validate(
    {
        "rounds": 5,
        "data": {"dataset": "synthetic", "samples": 600, "classes": 4},
        "clients": [{"count": 2, "modalities": ["acc"]}, {"count": 2, "modalities": ["acc", "gyro"]}],
        "model": {"encoders": {"acc": {"kind": "mlp", "dim": 16}, "gyro": {"kind": "mlp", "dim": 16}}},
        "evaluation": {
            "metrics": {"calibration_error": {"function": calibration_error, "lower_is_better": True, "is_share": True}}
        },
        "training": {"optimizer": {"kind": "adamw", "lr": 0.005}},
        "execution": {"runtime": "local"},
    }
)

if __name__ == "__main__":
    run = simulate(SCENARIO)
    columns = ["calibration_error", "calibration_error_p10", "calibration_error_p90", "calibration_error/acc+gyro"]
    print(run.rounds.select("round", "accuracy", *columns))
