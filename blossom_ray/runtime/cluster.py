"""What is Ray's own: sessions, what the cluster offers, and its exceptions in our words."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
import ray.exceptions
from ray._private import ray_constants

from blossom_ray.errors import ActorLostError, ActorTimeoutError, RunError
from blossom_ray.runtime.placement import Room

# What a call raises when the process or node that it ran on is gone.
LOST = (
    ray.exceptions.RayActorError,
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.ObjectLostError,
)


@contextmanager
def session() -> Iterator[None]:
    """A Ray session: the one that is there, the cluster that `RAY_ADDRESS` names, or one that ends with this block.

    A session of its own listens on the loopback address alone.

    Raises:
        RunError: Ray did not start, or no cluster answers at `RAY_ADDRESS`.
    """
    if ray.is_initialized():
        yield
        return
    # No calls home from a simulation; set it to 1 to send Ray's usage statistics.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    in_main_thread = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    _start(os.environ.get("RAY_ADDRESS", "local"))
    if in_main_thread and before is not None:
        # Ray takes SIGTERM over; whoever handled it before knows how to end a run.
        signal.signal(signal.SIGTERM, before)
    try:
        yield
    finally:
        ray.shutdown()


def _start(address: str) -> None:
    """Join the cluster at an address, or start one of this machine alone for `local`."""
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address == "local":
            with _loopback():
                ray.init("local", include_dashboard=False, _node_ip_address="127.0.0.1", **options)
        else:
            ray.init(address, **options)
    except (RuntimeError, ConnectionError, OSError, ValueError, ray.exceptions.RayError) as error:
        if address == "local":
            raise RunError(
                f"Ray did not start: {error}\nhint: RAY_TMPDIR names the folder of its sockets and logs; it needs a "
                "short path with free space"
            ) from error
        raise RunError(
            f"no Ray cluster could be joined at {address}: {error}\nhint: unset RAY_ADDRESS to run on this machine "
            "alone"
        ) from error


@contextmanager
def _loopback() -> Iterator[None]:
    """Have Ray take a loopback address as it is, as it does on laptops; else it looks up one that others can reach.

    Ray's processes listen on loopback alone if that is their node's address. The switch is an environment variable
    that Ray reads when it is imported, which may be long ago.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def offered_room() -> Room:
    """What the cluster offers."""
    offered = ray.cluster_resources()
    return Room(offered.get("CPU", 0.0), offered.get("GPU", 0.0), offered.get("memory", 0.0))


def num_nodes() -> int:
    """Number of nodes that are alive."""
    return sum(bool(node["Alive"]) for node in ray.nodes())


def get(ref: Any, timeout_s: float | None = None) -> Any:
    """A client actor's answer, with failures in our words."""
    with ray_errors("a client actor"):
        return ray.get(ref, timeout=timeout_s)


@contextmanager
def ray_errors(who: str, lost: type[ActorLostError] = ActorLostError) -> Iterator[None]:
    """Turn Ray's exceptions into ours; what our own code raised in an actor comes out as it was."""
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, Exception):
            raise error.cause from None
        raise RunError(f"{who} failed: {error}") from error
    except ray.exceptions.GetTimeoutError as error:
        raise ActorTimeoutError(f"{who} gave no answer in time") from error
    except ray.exceptions.RayActorError as error:
        raise lost(f"{who} {first_line(error)}") from error
    except ray.exceptions.RayError as error:
        raise RunError(f"{who} failed: {type(error).__name__}: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """One cause in one line, as a phrase after the name of what failed."""
    text = str(error)
    if "OOM" in text or isinstance(error, ray.exceptions.OutOfMemoryError):
        return "was killed because the machine ran out of memory"
    if isinstance(error, ray.exceptions.RayActorError):
        return "died: its process ended unexpectedly" if "worker process" in text else "died"
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return f"failed: {type(error).__name__}: {lines[0] if lines else 'no message'}"


def has_succeeded(ref: Any) -> bool:
    """Whether a result is there already."""
    try:
        ray.get(ref, timeout=0)
    except ray.exceptions.RayError:
        return False
    return True
