"""What a sample costs on this machine, by modality set and engine: timed on a few batches before the first round.

The choice of `training.engine: auto` follows from it, and where clients are placed. Timing uses a model and engines of
its own: no client's state is read or changed, and no generator is drawn from that a round draws from.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property

import numpy as np

from blossom_ray.algorithms.seam import has
from blossom_ray.clients.compiled.library import missing_library
from blossom_ray.clients.compiled.program import compiling_obstacle
from blossom_ray.clients.engines import Engine, make_engine
from blossom_ray.clients.job import ClientTask, LocalJob, LocalPass
from blossom_ray.clients.local_training import one_thread
from blossom_ray.clients.options import EngineName
from blossom_ray.clients.stacked.support import training_obstacle
from blossom_ray.clients.stacked.trial import stacking_obstacle
from blossom_ray.clients.workspace import Workspace, client_workspace
from blossom_ray.core.factories import own_code
from blossom_ray.errors import ClientError
from blossom_ray.reading.scenario import Scenario
from blossom_ray.runtime.placement import actor_of_client, largest_load
from blossom_ray.runtime.preparation import Preparation

# Batches of a client that are timed: what it costs beside them, such as loading its blocks, is spread over so many.
_NUM_BATCHES = 5
# One after the other, clients cost the same each: some of the chunk tell what all of it would take.
_SEQUENTIAL_FRACTION = 0.25
# The first step of an engine sets up memory and kernels; it takes this many samples of each client, untimed.
_WARM_UP_SAMPLES = 2


def choose_engines(
    preparation: Preparation, num_workers: int = 1, chosen: Mapping[str, EngineName] | None = None
) -> Preparation:
    """Settle the engine of every modality set, and find out what a sample costs where placement asks for it.

    A set whose model cannot be stacked takes the sequential engine, one that cannot train with compiled kernels stacks,
    and a note says why; own code is tried for that.
    Sets are timed where an engine is to be chosen (`training.engine: auto`), and on Ray where there are several, which
    placement has to weigh against each other. On GPUs, which this process may not have, nothing is timed: what can be
    stacked is. Nor is own code that is not to be stacked or cannot be: it may fail or hang, and that is to happen in
    an actor, which can be replaced.

    Args:
        preparation: The prepared federation.
        num_workers: Actors that compute at once.
        chosen: What this run has chosen before, which it keeps.
    """
    scenario, asked = preparation.scenario, preparation.plan.engines
    is_own_code = has_own_code(scenario) or preparation.plan.author is not None
    on_ray, on_gpu = scenario.execution.runtime == "ray", uses_gpu(scenario)
    probes = {name: ChunkProbe(preparation, name) for name in scenario.modality_sets}
    engines: dict[str, EngineName] = dict(asked or chosen or {})
    for name, probe in probes.items():
        possible: EngineName = "sequential"
        reason = probe.obstacle if (is_own_code or not engines) and asked.get(name) != "sequential" else None
        if reason is None and engines.get(name) == "compiled":
            possible, reason = "vectorized", probe.compiling_obstacle
        if reason is not None:
            note = f"engine of {name}: {possible}, since {reason}"
            preparation = replace(preparation, notes=(*preparation.notes, note))
            if engines:
                engines[name] = possible
    if engines and (on_gpu or not on_ray or is_own_code or len(scenario.modality_sets) == 1):
        return _with_engines(preparation, engines)
    if on_gpu:
        return _with_engines(preparation, {name: probe.engines[-1] for name, probe in probes.items()})
    if is_own_code and all(probe.obstacle for probe in probes.values()):
        return _with_engines(preparation, dict.fromkeys(probes, "sequential"))
    seconds = {
        name: _training_seconds(probe, (engines[name],) if engines else probe.engines) for name, probe in probes.items()
    }
    preparation = replace(preparation, seconds_per_sample=seconds)
    return _with_engines(preparation, engines or _fastest(preparation, num_workers))


def _with_engines(preparation: Preparation, engines: Mapping[str, EngineName]) -> Preparation:
    return replace(preparation, plan=replace(preparation.plan, engines=engines))


def _fastest(preparation: Preparation, num_workers: int) -> dict[str, EngineName]:
    """The engines with which a round of all clients takes least.

    Not simply the faster one of each set: a stacked chunk stays in one actor, and the others may have nothing to do
    meanwhile. From the faster ones on, sets go back to one client after the other as long as the round gets shorter.
    """
    chunks, execution = preparation.population.chunks, preparation.scenario.execution

    def round_seconds(engines: Mapping[str, EngineName]) -> float:
        settled = _with_engines(preparation, engines)
        costs, stacked = settled.costs(), settled.stacked_chunks()
        return largest_load(actor_of_client(execution, chunks, costs, num_workers, stacked=stacked), costs)

    best: dict[str, EngineName] = {
        name: min(times, key=times.__getitem__, default="sequential")
        for name, times in preparation.seconds_per_sample.items()
    }
    least = round_seconds(best)
    improves = True
    while improves:
        improves = False
        for name in [name for name, engine in best.items() if engine != "sequential"]:
            parted: dict[str, EngineName] = {**best, name: "sequential"}
            if round_seconds(parted) < least:
                best, least, improves = parted, round_seconds(parted), True
    return best


def uses_gpu(scenario: Scenario) -> bool:
    """Whether clients compute on GPUs."""
    return scenario.execution.runtime == "ray" and scenario.execution.client_resources.num_gpus > 0


def has_own_code(scenario: Scenario) -> bool:
    """Whether clients train with code of the user's."""
    return any(where.startswith(("model.", "training.")) for where, _, _ in own_code(dict(scenario)))


class ChunkProbe:
    """The first chunk of a modality set, with initial blocks, to be timed in this process.

    Args:
        preparation: The prepared federation.
        modality_set: Such as `acc+gyro`.
    """

    def __init__(self, preparation: Preparation, modality_set: str) -> None:
        self._preparation, self._plan = preparation, preparation.plan
        population, execution = preparation.population, preparation.scenario.execution
        chunk = next(c for c in population.chunks if population.profiles[c.clients[0]].modality_set == modality_set)
        # A chunk of all clients is wider where few of them train in a round.
        self._clients = chunk.clients[: execution.chunk_size]

    @cached_property
    def obstacle(self) -> str | None:
        """Why these clients cannot be stacked; None where they can."""
        if has(self._plan.author, "local"):
            return "the algorithm trains by its own local, one client after the other"
        return training_obstacle(self._plan.training) or stacking_obstacle(self._workspace)

    @cached_property
    def compiling_obstacle(self) -> str | None:
        """Why these clients, which can be stacked, cannot train with compiled kernels; None where they can."""
        plan = self._plan
        if uses_gpu(self._preparation.scenario):
            return "clients compute on GPUs"
        if has(plan.author, "loss"):
            return "the algorithm adds to the loss"
        if plan.sparse:
            return f"samples may lack {', '.join(sorted(plan.sparse))}"
        return compiling_obstacle(self._workspace, plan.training) or missing_library()

    @cached_property
    def engines(self) -> tuple[EngineName, ...]:
        """Those that can compute it, the sequential one first."""
        execution = self._preparation.scenario.execution
        together = execution.runtime == "local" or execution.clients_per_actor != 1
        stacks = together and len(self._clients) > 1 and self.obstacle is None
        if not stacks:
            return ("sequential",)
        return ("sequential", "vectorized", *(() if self.compiling_obstacle else ("compiled",)))

    @cached_property
    def _workspace(self) -> Workspace:
        return client_workspace(self._plan, self._preparation.population.profiles[self._clients[0]])

    def training_seconds(self, engine: EngineName) -> float:
        """Seconds that a training sample takes, seen once.

        Raises:
            ClientError: A client's own code raised.
        """
        section, names = self._plan.training, frozenset(self._workspace.trained)
        mu = section.proximal_mu
        once = LocalPass(1, names, anchored=names if mu else frozenset(), mu=mu)
        job = LocalJob(section, section.optimizer.lr, (once,), self._plan.seed, 0)

        def train(computes: Engine, tasks: list[ClientTask]) -> None:
            computes.train(tasks, job)

        return self._seconds(engine, train, section.batch_size, test=False)

    def evaluation_seconds(self, engine: EngineName) -> float:
        """Seconds that scoring a test sample takes.

        Raises:
            ClientError: A client's own code raised.
        """
        batch_size = self._plan.evaluation_batch_size

        def evaluate(computes: Engine, tasks: list[ClientTask]) -> None:
            computes.evaluate(tasks, batch_size, round_index=0)

        return self._seconds(engine, evaluate, batch_size, test=True)

    def _seconds(
        self, engine: EngineName, action: Callable[[Engine, list[ClientTask]], None], batch_size: int, *, test: bool
    ) -> float:
        clients = self._clients
        if engine == "sequential":
            clients = clients[: math.ceil(_SEQUENTIAL_FRACTION * len(clients))]
        with one_thread(), self._preparation.open_shards() as shards:
            tasks = []
            for client in clients:
                shard = shards.shard(client)
                inputs, labels, observed = shard.test() if test else shard.train()
                tasks.append(ClientTask(client, self._workspace.initial_blocks, inputs, labels, observed=observed))
            computes = make_engine(engine, self._workspace)
            action(computes, [_first(task, _WARM_UP_SAMPLES) for task in tasks])
            timed = [_first(task, _NUM_BATCHES * batch_size) for task in tasks]
            # The thread's own time: actors that are starting on the same cores do not count.
            started = time.thread_time()
            action(computes, timed)
            seconds = time.thread_time() - started
        return seconds / sum(len(task.labels) for task in timed)


def _training_seconds(probe: ChunkProbe, engines: tuple[EngineName, ...]) -> dict[EngineName, float]:
    """Seconds per sample by engine; empty where training fails, which is the round's to deal with."""
    try:
        return {engine: probe.training_seconds(engine) for engine in engines}
    except ClientError:
        return {}


def _first(task: ClientTask, num_samples: int) -> ClientTask:
    inputs: dict[str, np.ndarray] = {name: values[:num_samples] for name, values in task.inputs.items()}
    observed = {name: has[:num_samples] for name, has in task.observed.items()}
    return replace(task, inputs=inputs, labels=task.labels[:num_samples], observed=observed)
