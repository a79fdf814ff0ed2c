"""pfl-research on W1: its federated averaging in one process, weighted by datapoints.

    python benchmarks/peers/pfl_research.py FOLDER OUTCOME.npz --rounds 3

It scores every user before and after training in its first iteration, so that round is not comparable; no other is
scored. pfl goes through a user's samples in order: they are handed to it in the order of round 1, in every round. It
does not report the training loss.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import MinimizeReuseUserSampler
from pfl.hyperparam.base import NNTrainHyperParams
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn

from workload import (
    BATCH_SIZE,
    LEARNING_RATE,
    Outcome,
    TwoModalityMlp,
    Watch,
    Workload,
    parser_of_contender,
)


class PflModel(TwoModalityMlp):
    """The model with the two methods that pfl asks for."""

    num_steps = 0

    def loss(self, first: Tensor, second: Tensor, targets: Tensor, eval: bool = False) -> Tensor:
        """Mean cross-entropy; a call for training is a step."""
        self.num_steps += not eval
        return nn.functional.cross_entropy(self(first, second), targets)

    def metrics(self, first: Tensor, second: Tensor, targets: Tensor, eval: bool = True) -> dict[str, float]:
        """Nothing to report."""
        return {}


class Laps(TrainingProcessCallback):
    """Time of each iteration, and the parameters after the first."""

    def __init__(self) -> None:
        self.watch = Watch()
        self.average: dict[str, np.ndarray] = {}

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: PyTorchModel, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        """Take the time of a round."""
        self.watch.lap()
        if central_iteration == 0:
            state = model.pytorch_model.state_dict()
            self.average = {name: tensor.numpy().copy() for name, tensor in state.items()}
        return False, Metrics()


def main() -> None:
    arguments = parser_of_contender(__doc__).parse_args()
    torch.set_num_threads(1)
    workload = Workload.open(arguments.folder)
    model = PflModel()
    model.load_state_dict({name: torch.from_numpy(array) for name, array in workload.initial.items()})

    @cache
    def user(client: int) -> Dataset:
        order = workload.orders[0, client]
        arrays = (workload.first, workload.second, workload.labels)
        return Dataset([torch.from_numpy(array[client][order]) for array in arrays])

    users = FederatedDataset(user, MinimizeReuseUserSampler(list(range(workload.num_clients))))
    backend = SimulatedBackend(users, users, postprocessors=[WeightByDatapoints()])
    laps = Laps()
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=arguments.rounds,
            evaluation_frequency=10**6,
            train_cohort_size=workload.num_clients,
            val_cohort_size=0,
        ),
        backend,
        PyTorchModel(model, torch.optim.SGD, torch.optim.SGD(model.parameters(), lr=1.0)),
        NNTrainHyperParams(
            local_num_epochs=1, local_learning_rate=LEARNING_RATE, local_batch_size=BATCH_SIZE, local_max_grad_norm=None
        ),
        callbacks=[laps],
        send_metrics_to_platform=False,
    )
    num_steps, watch = model.num_steps // arguments.rounds, laps.watch
    Outcome(watch.seconds, watch.cpu_seconds, None, num_steps, laps.average).save(arguments.outcome)


if __name__ == "__main__":
    main()
