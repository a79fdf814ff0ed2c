"""What `execution.runtime: auto` stands for: a loop in this process for a small run, actors for all others.

It follows from the scenario, the number of its samples and whether there is a cluster, never from clocks: the same
command chooses the same. Numbers do not depend on it.
"""

from __future__ import annotations

import math
import os
import sys
from itertools import pairwise

from blossom_ray.core.factories import own_code
from blossom_ray.models.encoder_options import Encoder
from blossom_ray.reading.scenario import Scenario

SMALL_S = 15.0
"""Seconds of training on one core up to which a run is small: Ray's start takes as many of all cores together."""
# Fitted to runs on a core of a server: what a step takes however small it is, and what a multiply-add takes in it.
_STEP_S, _MULTIPLY_ADD_S = 3e-3, 1e-10


def settle_runtime(scenario: Scenario, *, has_cluster: bool) -> tuple[Scenario, str]:
    """The scenario with a runtime in the place of `auto`, and a note on it where that is this process.

    Args:
        scenario: With its groups of clients.
        has_cluster: Whether Ray runs already, or is named: clients are there then.
    """
    if scenario.execution.runtime != "auto":
        return scenario, ""
    seconds = math.inf if has_cluster or _asks_for_actors(scenario) else training_seconds(scenario)
    if seconds > SMALL_S:
        return scenario.override({"execution.runtime": "ray"}), ""
    note = f"small, about {max(1, round(seconds))} s of training on one core: it ran in one process, without Ray"
    return scenario.override({"execution.runtime": "local"}), f"{note} (execution.runtime: auto)"


def has_cluster(address: str | None = None) -> bool:
    """Whether Ray runs already: a session of this process, or a cluster that an address or `RAY_ADDRESS` names."""
    if (address or os.environ.get("RAY_ADDRESS") or "local") != "local":
        return True
    if "ray" not in sys.modules:
        return False
    from blossom_ray.runtime import cluster

    return cluster.is_running()


def training_seconds(scenario: Scenario) -> float:
    """A rough estimate of what all rounds train, in seconds of one core; infinity where nothing tells.

    Nothing does of own code and of what an algorithm adds, nor of data whose shapes show only once they are read.
    """
    encoders, training = scenario.model.encoders, scenario.training
    if scenario.algorithm.kind != "fedavg" or any(own_code(dict(scenario))):
        return math.inf
    seconds = 0.0
    for whole in scenario.federated:
        shapes = whole.data.input_shapes(whole.modalities)
        if shapes.keys() != {*whole.modalities}:
            return math.inf
        num_samples = training.num_examples(len(whole.open().targets().labels))
        work = sum(_multiply_adds(encoders[name], shape) for name, shape in shapes.items())
        seconds += _STEP_S * (num_samples / training.batch_size + len(whole.ids)) + _MULTIPLY_ADD_S * num_samples * work
    return scenario.rounds * seconds


def _asks_for_actors(scenario: Scenario) -> bool:
    execution = scenario.execution
    return execution.clients_per_actor != "auto" or execution.client_resources.num_gpus > 0


def _multiply_adds(encoder: Encoder, shape: tuple[int, ...]) -> float:
    """Of the layers of an encoder for one sample, its last linear layer aside."""
    match encoder.kind:
        case "mlp":
            widths = (math.prod(shape), *encoder.hidden, encoder.dim)
            return sum(map(math.prod, pairwise(widths)))
        case "conv1d" | "conv-gru":
            length, width, found = *shape, 0
            for channels in encoder.channels:
                found += length * width * channels * encoder.kernel_size
                length, width = length // 2, channels
            return found + (_gru(length, width, encoder.dim) if encoder.kind == "conv-gru" else 0)
        case "gru":
            return _gru(shape[0], shape[1], encoder.dim)
        case "embedding":
            return _gru(shape[0], encoder.width, encoder.width)
        case "conv2d":
            channels_in, size, found = shape[0], math.prod(shape[1:]), 0
            for channels, kernel in zip(encoder.channels, encoder.kernel_sizes, strict=True):
                size //= encoder.stride**2
                found += size * channels_in * channels * kernel**2
                size, channels_in = size // (4 if encoder.max_pool else 1), channels
            return found
    return math.inf


def _gru(length: int, width: int, dim: int) -> int:
    return length * 3 * dim * (width + dim)
