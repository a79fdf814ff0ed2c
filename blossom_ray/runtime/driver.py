"""The loop on Ray: the driver actor, and the stream of what it yields.

Of this package `actors.py`, `cluster.py`, `driver.py`, `joining.py`, `prometheus.py` and `zygote.py` alone import Ray.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from blossom_ray.data.dataset import Dataset
from blossom_ray.data.sets.custom import CustomData, keep_built, take_built
from blossom_ray.errors import DriverLostError
from blossom_ray.reading.scenario import Scenario
from blossom_ray.runtime import forks
from blossom_ray.runtime.actors import ActorRuntime, spawn_clients
from blossom_ray.runtime.base import Runtime
from blossom_ray.runtime.cluster import HeadNode, offered_room, ray_errors
from blossom_ray.runtime.cluster import session as session_of_ray
from blossom_ray.runtime.preparation import Preparation
from blossom_ray.runtime.prometheus import RunMetrics

Loop = Callable[[Scenario, Callable[[Preparation], Runtime], Callable[[], bool], int], Iterator[Any]]
"""What a driver runs: `run` of `runs/loop.py`, with its folders."""
# Items of the event stream that may wait for whoever watches: the loop does not run far ahead of the run folder.
_EVENTS_AHEAD = 2


class DriverActor:
    """Runs the loop on the cluster and streams what it yields.

    Args:
        scenario: The scenario.
        loop: What is run.
        run_id: What those who watch know the run by.
        shared: A folder that the nodes of all clients must see, if there is any.
        folder: The working directory of whoever started the run; a cluster's processes are born elsewhere.
    """

    def __init__(self, scenario: Scenario, loop: Loop, run_id: str, shared: Path | None, folder: Path) -> None:
        os.chdir(folder)
        self._scenario, self._loop, self._run_id, self._shared = scenario, loop, run_id, shared
        self._is_stopping = False

    def keep(self, name: str, dataset: Dataset) -> None:
        """Take over what own code of a data set has built in the process that checked the scenario."""
        section = self._scenario.data_sets[name]
        assert isinstance(section, CustomData), "no other data set is built"
        keep_built(section, dataset)

    def events(self) -> Iterator[Any]:
        """Run to the end, or until `stop`."""
        actors = spawn_clients(self._scenario, stacks=self._scenario.training.may_stack)

        def start(preparation: Preparation) -> Runtime:
            # With `training.engine: auto` it shows only now whether clients are stacked, or may have an actor each.
            stacks = bool(preparation.stacked_chunks())
            actors.extend(spawn_clients(self._scenario, len(actors), stacks=stacks))
            runtime = ActorRuntime(preparation, actors)
            if self._shared is not None:
                runtime.check_shared(self._shared)
            # A record of a thousand clients sets the garbage collector off, and modules are most of what it looks at.
            gc.freeze()
            return runtime

        at_once = min(len(actors), max(1, int(offered_room().num_cpus)))
        metrics = RunMetrics(self._scenario, self._run_id)
        for event in self._loop(self._scenario, start, lambda: self._is_stopping, at_once):
            metrics.record(event)
            yield event

    def stop(self) -> None:
        """Have the run end after the round in progress. Answered while `events` runs, in a thread of its own."""
        self._is_stopping = True


def stream(
    scenario: Scenario,
    loop: Loop,
    run_id: str,
    stopping: Callable[[], bool] = lambda: False,
    *,
    shared: Path | None = None,
    address: str | None = None,
) -> Generator[Any, None, None]:
    """Run a loop in a driver actor and yield what it yields.

    Joins the Ray session that this process already has, or the cluster at `address`, or starts one on this machine
    and stops it at the end. Closing the generator kills the run's actors.

    Args:
        scenario: The scenario.
        loop: What is run; it is sent to the driver actor.
        run_id: What those who watch know the run by.
        stopping: Asked every second or so; True ends the run after the round in progress.
        shared: A folder that the nodes of all clients must see, if there is any.
        address: The cluster's, as in `cluster.session`.

    Raises:
        InputError: It is no such address.
        RunError: A client, an actor or Ray failed.
        BlossomError: What the loop raises.
    """
    with session_of_ray(address):
        head = HeadNode()
        head.check()  # without it, Ray would begin a driver for a minute, and then end this process
        driver_type: Any = ray.remote(num_cpus=0, max_restarts=0)(DriverActor)
        # On this node, which has the folders. A second thread answers `stop` while the first one runs the loop.
        # Whoever starts the run says whether its actors are forked.
        environment = {} if forks.are_on() else {"env_vars": {forks.SWITCH: "0"}}
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        driver = driver_type.options(max_concurrency=2, scheduling_strategy=here, runtime_env=environment).remote(
            scenario, loop, run_id, shared, Path.cwd()
        )
        try:
            with ray_errors("the driver actor", DriverLostError):
                for name, section in scenario.data_sets.items():
                    if (built := take_built(section)) is not None:
                        # A call of its own, so that the object store lets go of it.
                        ray.get(driver.keep.remote(name, built))
                        del built
                method = driver.events.options(
                    num_returns="streaming", _generator_backpressure_num_objects=_EVENTS_AHEAD
                )
                items, told = method.remote(), False
                while True:
                    ready, _ = ray.wait([items], timeout=1.0, fetch_local=False)
                    if stopping() and not told:
                        driver.stop.remote()
                        told = True
                    if not ready:
                        head.check()
                    else:
                        try:
                            item = next(items)
                        except StopIteration:
                            break
                        yield ray.get(item)
        finally:
            # Its client actors go with it: an actor does not outlive its owner.
            if head.is_there():
                ray.kill(driver)
