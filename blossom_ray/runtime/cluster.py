"""What is Ray's own: sessions, what the cluster offers, and its exceptions in our words."""

from __future__ import annotations

import atexit
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import ray
import ray.exceptions

from blossom_ray.errors import ActorLostError, ActorTimeoutError, RunError, StorageError, first_line
from blossom_ray.runtime import forks
from blossom_ray.runtime.address import check_sent_token, is_listening
from blossom_ray.runtime.joining import check_joined, join, joined_place, loopback, num_nodes, on_each_node
from blossom_ray.runtime.placement import Room, allowed_cpus
from blossom_ray.scenario.sections import ClientResources

# What a call raises when the process or node that it ran on is gone.
_GONE = (
    ray.exceptions.RayActorError,
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.ObjectLostError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.LocalRayletDiedError,
)
# What Ray says of a worker that its memory monitor killed. It names "OOM" as one guess of several for any SIGKILL.
_OUT_OF_MEMORY = "running low on memory"
_HEAD_ATTEMPTS, _HEAD_TIMEOUT_S, _HEAD_PAUSE_S = 3, 5.0, 0.5
START_LIMIT = "RAY_raylet_start_wait_time_s"
"""Variable with the seconds that Ray gives its node to come up; it takes 30 without."""
_LONG_START_S = 240
_TIMED_OUT = "timed out during startup"
# How a node starts its dashboard's server, its autoscaler, and what prints workers' logs, which `_start` turns off.
_LEFT_OUT = ("start_api_server", "start_monitor", "start_log_monitor")
_STARTS = "start_ray_processes"
_SEEN_WITHIN_S = 5
_END_TIMEOUT_S = 10.0
_LOGS = "Ray's logs tell more: session_latest/logs under RAY_TMPDIR (/tmp/ray if it is not set)"

# Head nodes that were lost: with one, this process ends by `_leave`.
_HEADLESS: list[HeadNode] = []


@contextmanager
def session(address: str | None = None) -> Iterator[None]:
    """A Ray session: the one that is there, a cluster that is joined, or one that ends with this block.

    A session of its own listens on the loopback address alone.

    Args:
        address: `auto` or `HOST:PORT` of a cluster, `local` for a session of its own; None: what `RAY_ADDRESS` says,
            `local` where it says nothing.

    Raises:
        InputError: It is no such address.
        RunError: Ray did not start, there is no such cluster, it refuses us or has other versions; or this process
            is in another session.
    """
    source = "RAY_ADDRESS" if address is None else "--address"
    if ray.is_initialized():
        if address is not None:
            check_joined(address, source)
        yield
        return
    # No calls home from a simulation; set it to 1 to send Ray's usage statistics.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    in_main_thread = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    try:
        _start(address or os.environ.get("RAY_ADDRESS") or "local", source)
    except SystemExit as end:
        if end.code == signal.SIGTERM and callable(before):
            before(signal.SIGTERM, None)
        raise
    finally:
        if in_main_thread and before is not None:
            # Ray takes SIGTERM over; whoever handled it before knows how to end a run.
            signal.signal(signal.SIGTERM, before)
    head = HeadNode()
    try:
        yield
    finally:
        if head.is_there():
            ray.shutdown()
        else:
            # Without its head node Ray can neither say goodbye nor be unloaded, and ends this process in a minute.
            atexit.unregister(ray.shutdown)
            atexit.register(_leave, RunError.exit_code)
            _HEADLESS.append(head)


def leave_without_head(exit_code: int) -> None:
    """Have this process end with an exit code of its own choice if a session's head node is gone, else do nothing.

    Such a process is ended without unloading Ray, which would crash, and so never gets to use its exit code.
    """
    if not _HEADLESS:
        return
    atexit.unregister(_leave)
    atexit.register(_leave, exit_code)


def _leave(exit_code: int) -> None:
    """End this process at once; what is printed is printed first."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


class HeadNode:
    """The node with the cluster's control service, without which Ray ends every process that has to do with it."""

    def __init__(self) -> None:
        self._place = joined_place()

    def is_there(self) -> bool:
        """Whether the control service takes connections; asked a few times, since one may fail under load."""
        for _ in range(_HEAD_ATTEMPTS):
            if is_listening(self._place, _HEAD_TIMEOUT_S):
                return True
            time.sleep(_HEAD_PAUSE_S)
        return False

    def check(self) -> None:
        """Find out that the head node is gone before Ray does.

        Raises:
            RunError: It is gone.
        """
        if not self.is_there():
            raise RunError(
                f"the head node of the Ray cluster at {self._place} died or cannot be reached",
                "blossom-ray resume RUN (the run folder) goes on from the last checkpoint, on another cluster or alone",
            )


def _start(address: str, source: str) -> None:
    """Join the cluster at an address, or start one of this machine alone for `local`."""
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    check_sent_token()
    if address != "local":
        join(address, source, options)
        return
    with loopback():
        for is_second_try in (False, True):
            try:
                _start_alone(options)
            except Exception as error:  # a node that does not come up is a plain one
                if is_second_try or _TIMED_OUT not in str(error):
                    raise _no_session(error) from error
            else:
                return
            # A machine that is busy now may take a multiple; whoever has chosen a limit has that one again.
            os.environ.setdefault(START_LIMIT, str(_LONG_START_S))


@contextmanager
def _quick_start() -> Iterator[None]:
    """Have a node that is started meanwhile do without those of its processes that serve others, not this run.

    `ray.init` waits one and a half seconds for the first one, and has no switch for any. Nor has it one for how often
    it looks whether the node is there, once a second. A version of Ray that has these elsewhere goes its own way.
    """
    node: Any = getattr(sys.modules.get("ray._private.node"), "Node", None)
    before = {name: getattr(node, name) for name in (*_LEFT_OUT, _STARTS) if hasattr(node, name)}

    def start(self: Any) -> None:
        before[_STARTS](self)
        with suppress(Exception):  # then Ray looks for itself
            services: Any = sys.modules["ray._private.services"]
            services.wait_for_node(self.gcs_address, self._plasma_store_socket_name, _SEEN_WITHIN_S)

    for name in before:
        setattr(node, name, start if name == _STARTS else lambda *_, **__: None)
    try:
        yield
    finally:
        for name, method in before.items():
            setattr(node, name, method)


def _start_alone(options: dict[str, Any]) -> None:
    """Start a session of this machine alone; one that fails leaves no process behind."""
    before = set(psutil.Process().children())
    try:
        # Ray would count cores that this process may not run on.
        options |= {"num_cpus": allowed_cpus(), "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
        with forks.launching() as resources, _quick_start():
            ray.init("local", resources=resources, **options)
    except BaseException:
        ray.shutdown()
        # Ray knows nothing of a node that did not come up.
        _end([each for each in psutil.Process().children() if each not in before])
        raise


def _end(processes: list[psutil.Process]) -> None:
    """End those of these processes that are Ray's, with their children."""
    ours = str(Path(ray.__file__).parent)
    ended = []
    for process in processes:
        with suppress(psutil.Error):
            if any(ours in word for word in process.cmdline()):
                ended += [process, *process.children(recursive=True)]
    for process in ended:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(ended, timeout=_END_TIMEOUT_S)


def _no_session(error: Exception) -> RunError:
    """Why there is no Ray session: one cause, one hint."""
    reason = first_line(error)
    if _TIMED_OUT in reason:
        return RunError(
            f"Ray did not start within its time limit, {os.environ[START_LIMIT]} s in a second try",
            f"on a busy machine wait for other work to end, or give it longer: {START_LIMIT}=600; a run that was begun "
            "goes on with: blossom-ray resume RUN (the run folder)",
        )
    return RunError(
        f"Ray did not start: {reason}",
        "RAY_TMPDIR names the folder of its sockets and logs; it needs a short path with free space",
    )


def is_running() -> bool:
    """Whether this process is part of a Ray session."""
    return bool(ray.is_initialized())


def offered_room() -> Room:
    """What the cluster offers."""
    offered = ray.cluster_resources()
    return Room(offered.get("CPU", 0.0), offered.get("GPU", 0.0), offered.get("memory", 0.0))


def is_own_session() -> bool:
    """Whether the session was started for this run, with workers that are forked and settings that go with them."""
    return forks.RESOURCE in ray.cluster_resources()


def client_environment(resources: ClientResources) -> dict[str, str]:
    """The runtime environment in which a client actor is forked; empty where it needs none for that, or is not forked.

    Actors on GPUs are not. In a cluster that is joined, all nodes must have Python where this one has it; if they do
    not, forks are off in this process from now on.
    """
    if is_own_session():
        return {"py_executable": sys.executable} if resources.num_gpus > 0 else {}
    if resources.num_gpus > 0 or not forks.are_on():
        return {}
    is_chosen = ray.get_runtime_context().runtime_env.keys() & {"py_executable", "image_uri", "container"}
    places = on_each_node(lambda: sys.executable) if num_nodes() > 1 else ()
    if is_chosen or any(place != sys.executable for _, place in places):
        os.environ[forks.SWITCH] = "0"
        return {}
    return {"py_executable": forks.py_executable()}


def probe() -> Room:
    """Start a session and a process that imports torch, and end both again; what the cluster offers.

    Raises:
        RunError: Ray did not start, or its process did not.
    """

    def import_torch() -> str:
        import torch

        return str(torch.__version__)

    with session():
        get(ray.remote(num_cpus=0.2)(import_torch).remote(), timeout_s=120)
        return offered_room()


def get(ref: Any, timeout_s: float | None = None) -> Any:
    """A client actor's answer, with failures in our words.

    Raises:
        ActorLostError: The actor, its node or what it had sent is gone; the cause is a phrase that follows its name.
        ActorTimeoutError: It gave no answer in time; the cause is such a phrase.
        BlossomError: What our own code raised in the actor, as it was.
    """
    try:
        return ray.get(ref, timeout=timeout_s)
    except ray.exceptions.GetTimeoutError as error:
        raise overdue(timeout_s or 0.0) from error
    except ray.exceptions.RayError as error:
        raise _translated(error, ActorLostError) from error


def overdue(timeout_s: float) -> ActorTimeoutError:
    """The error for an actor that gave no answer for so long."""
    return ActorTimeoutError(
        f"gave no result for {timeout_s:g} s (execution.timeout_s)",
        "a longer execution.timeout_s, or smaller chunks of clients (execution.chunk_size)",
    )


@contextmanager
def ray_errors(who: str, lost: type[ActorLostError] = ActorLostError) -> Iterator[None]:
    """Turn Ray's exceptions into ours; what our own code raised in an actor comes out as it was.

    Args:
        who: The actor's name, before the cause of its loss.
        lost: The error for its loss.
    """
    try:
        yield
    except ray.exceptions.RayError as error:
        ours = _translated(error, lost)
        if isinstance(ours, lost):
            ours = lost(f"{who} {ours.cause}", ours.hint)
        raise ours from error


def _translated(error: Exception, lost: type[ActorLostError]) -> Exception:
    """The error of ours that says what an exception of Ray means, one cause and one hint."""
    match error:
        case ray.exceptions.RayTaskError():
            if isinstance(error.cause, ray.exceptions.RayError):
                return _translated(error.cause, lost)
            return error.cause if isinstance(error.cause, Exception) else RunError(f"an actor failed: {error}")
        case ray.exceptions.OutOfDiskError() | ray.exceptions.ObjectStoreFullError():
            return StorageError(
                "Ray's object store is full, and so is the disk to which it spills",
                "make space under RAY_TMPDIR (/tmp/ray if it is not set), or train fewer clients at once "
                "(server.clients_per_round)",
            )
        case _ if isinstance(error, _GONE):
            return lost(*_why_lost(error))
        case _:
            return RunError(f"Ray failed: {type(error).__name__}: {first_line(error)}", _LOGS)


def _why_lost(error: Exception) -> tuple[str, str]:
    """Why an actor is gone, as a phrase that follows its name, and what one can do about it."""
    text = str(error)
    if isinstance(error, ray.exceptions.OutOfMemoryError) or _OUT_OF_MEMORY in text:
        return "was killed because the machine ran out of memory", (
            "fewer actors (a larger execution.clients_per_actor), a smaller training.batch_size, or more memory"
        )
    if isinstance(error, ray.exceptions.NodeDiedError) or "node has died" in text:
        return "went with its node, which died or cannot be reached", "bring the node back, or resume without it"
    if isinstance(error, ray.exceptions.ObjectLostError):
        return f"lost what it had sent ({type(error).__name__})", _LOGS
    return "died: its process ended unexpectedly", _LOGS


def has_succeeded(ref: Any) -> bool:
    """Whether a result is there already."""
    try:
        ray.get(ref, timeout=0)
    except ray.exceptions.RayError:
        return False
    return True
