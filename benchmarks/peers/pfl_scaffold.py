"""pfl-research's FedAvg and SCAFFOLD on the federations of `scaffold.py`, which starts this script.

    python benchmarks/peers/pfl_scaffold.py FOLDER

pfl goes through a user's samples in order; here in the order of each epoch that the federation gives.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints, WeightByUser
from pfl.algorithm import scaffold
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.user_state import InMemoryUserStateStorage
from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn

from federation import Federation, Mlp, flat, run_contender

# The difference of models is new minus received, where the paper has received minus new.
LINE, TURNED = "lambda w: w / (K * model_params", "lambda w: -w / (K * model_params"
WEIGHTS = {"samples": WeightByDatapoints, "uniform": WeightByUser}


def mended() -> SimpleNamespace:
    """The module of pfl's SCAFFOLD with the sign of that line turned."""
    source = inspect.getsource(scaffold)
    if source.count(LINE) != 1:
        raise SystemExit(f"pfl.algorithm.scaffold no longer has the line {LINE}")
    names: dict[str, Any] = {"__name__": scaffold.__name__}
    exec(compile(source.replace(LINE, TURNED), "scaffold.py", "exec"), names)
    return SimpleNamespace(**names)


class PflModel(Mlp):
    """The model with the two methods that pfl asks for."""

    def loss(self, features: Tensor, targets: Tensor, eval: bool = False) -> Tensor:
        """Mean cross-entropy."""
        return nn.functional.cross_entropy(self(features), targets)

    def metrics(self, features: Tensor, targets: Tensor, eval: bool = True) -> dict[str, float]:
        """Nothing to report."""
        return {}


class Ordered(Dataset):
    """A user's samples, in another given order in each epoch."""

    def __init__(self, raw_data: tuple[Tensor, ...], user: str, orders: list[Tensor], batch_size: int) -> None:
        super().__init__(raw_data, user_id=user)
        self._orders, self._batch_size = iter(orders), batch_size

    def iter(self, batch_size: int | None) -> Iterator[list[Tensor]]:
        """Batches of the next epoch; all samples at once where pfl scores, which it does in its first iteration."""
        if batch_size != self._batch_size:
            yield list(self.raw_data)
            return
        for rows in torch.split(next(self._orders), batch_size):
            yield [data[rows] for data in self.raw_data]


class Parameters(TrainingProcessCallback):
    """The parameters after each iteration."""

    def __init__(self) -> None:
        self.found: list[np.ndarray] = []

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: PyTorchModel, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        """Copy them."""
        self.found.append(flat(model.pytorch_model))
        return False, Metrics()


def run(algorithm: Any, parameters: Any, federation: Federation, weighting: str) -> Iterator[np.ndarray]:
    """The parameters after each round."""
    num_rounds, cohort_size = federation.cohorts.shape
    visits = iter(range(len(federation.visits)))

    def user(visit: int) -> Dataset:
        client, orders = federation.visits[visit]
        return Ordered(federation.samples(client), str(client), orders, federation.batch_size)

    users = FederatedDataset(user, lambda: next(visits))
    model = PflModel()
    model.load_state_dict(federation.model().state_dict())
    after = Parameters()
    algorithm().run(
        parameters(
            central_num_iterations=num_rounds,
            evaluation_frequency=num_rounds,
            train_cohort_size=cohort_size,
            val_cohort_size=0,
        ),
        SimulatedBackend(users, users, postprocessors=[WEIGHTS[weighting]()]),
        PyTorchModel(model, torch.optim.SGD, torch.optim.SGD(model.parameters(), lr=1.0)),
        NNTrainHyperParams(
            local_num_epochs=federation.epochs,
            local_learning_rate=federation.learning_rate,
            local_batch_size=federation.batch_size,
            local_max_grad_norm=None,
        ),
        NNEvalHyperParams(local_batch_size=1_000_000),
        callbacks=[after],
        send_metrics_to_platform=False,
    )
    return iter(after.found)


def run_scaffold(module: Any, federation: Federation, weighting: str) -> Iterator[np.ndarray]:
    """SCAFFOLD with option II."""
    parameters = partial(
        module.SCAFFOLDParams,
        population=len(federation.sizes),
        use_gradient_as_control_variate=False,
        user_state_storage=InMemoryUserStateStorage(),
    )
    return run(module.SCAFFOLD, parameters, federation, weighting)


if __name__ == "__main__":
    run_contender(
        __doc__,
        {
            "pfl fedavg": partial(run, FederatedAveraging, NNAlgorithmParams),
            "pfl scaffold": partial(run_scaffold, scaffold),
            "pfl scaffold, sign mended": partial(run_scaffold, mended()),
        },
    )
