"""The Ray session of a run: what it opens on the machine."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from ray import exceptions

from blossom_ray.errors import ActorLostError, ClientError, RunError, StorageError
from blossom_ray.runtime.cluster import START_LIMIT, HeadNode, _quick_start, ray_errors, session

pytestmark = pytest.mark.slow


def test_a_cluster_that_is_not_there_is_named() -> None:
    # In a process of its own: this one may have joined the session of other tests.
    code = "from blossom_ray.runtime.cluster import session\nwith session(): pass"
    environment = os.environ | {"RAY_ADDRESS": "127.0.0.1:1"}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=240)
    message = ended.stderr.partition("blossom_ray.errors.RunError: ")[2]
    assert message.startswith("no Ray cluster could be joined at 127.0.0.1:1: Connection refused")
    assert message.count("\nhint: ") == 1


@pytest.mark.parametrize(
    ("raised", "cause", "hint"),
    [
        (
            Exception("The current node timed out during startup. This could happen because the GCS is overloaded."),
            "Ray did not start within its time limit, 240 s in a second try",
            "on a busy machine wait for other work to end, or give it longer: RAY_raylet_start_wait_time_s=600",
        ),
        (OSError("AF_UNIX path length cannot exceed 107 bytes"), "Ray did not start: AF_UNIX path", "RAY_TMPDIR names"),
    ],
)
def test_a_session_that_does_not_start_has_one_cause_and_one_hint(
    monkeypatch: pytest.MonkeyPatch, raised: Exception, cause: str, hint: str
) -> None:
    def init(*_: object, **__: object) -> None:
        raise raised

    started_by(init, monkeypatch)
    with pytest.raises(RunError) as caught, session():
        pass
    assert caught.value.cause.startswith(cause)
    assert caught.value.hint.startswith(hint)


def test_a_node_is_waited_for_while_it_starts_and_rays_own_ways_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[object] = []

    class Node:
        gcs_address, _plasma_store_socket_name = "127.0.0.1:1", "store"
        start_monitor = start_ray_processes = lambda self: done.append("started")

    def wait_for_node(*arguments: object) -> None:
        done.append(arguments)
        raise TimeoutError

    monkeypatch.setitem(sys.modules, "ray._private.node", SimpleNamespace(Node=Node))
    monkeypatch.setitem(sys.modules, "ray._private.services", SimpleNamespace(wait_for_node=wait_for_node))
    before = dict(vars(Node))
    with _quick_start():
        Node().start_monitor()
        assert not done
        Node().start_ray_processes()
        assert done == ["started", ("127.0.0.1:1", "store", 5)]
    assert dict(vars(Node)) == before
    # A version of Ray that has none of it.
    monkeypatch.setitem(sys.modules, "ray._private.node", SimpleNamespace(Node=object))
    with _quick_start():
        pass


SLOW = Exception("The current node timed out during startup. This could happen because the GCS is overloaded.")


def started_by(init: Callable[..., object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have sessions start by this function, in an environment that says nothing of it."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    # What is set on the way is undone as well.
    monkeypatch.setenv(START_LIMIT, "")
    monkeypatch.delenv(START_LIMIT)
    monkeypatch.setattr("ray.init", init)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    monkeypatch.setattr("ray.is_initialized", lambda: False)


@pytest.mark.parametrize(("chosen", "limits"), [(None, [None, "240"]), ("77", ["77", "77"])])
def test_a_node_that_does_not_come_up_in_time_gets_a_second_try(
    monkeypatch: pytest.MonkeyPatch, chosen: str | None, limits: list[str | None]
) -> None:
    seen = []

    def init(*_: object, **__: object) -> None:
        seen.append(os.environ.get(START_LIMIT))
        if len(seen) == 1:
            raise SLOW

    started_by(init, monkeypatch)
    if chosen is not None:
        monkeypatch.setenv(START_LIMIT, chosen)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(gcs_address=address))
        with session():
            pass
    assert seen == limits


@pytest.mark.parametrize("raised", [SLOW, OSError("AF_UNIX path length"), KeyboardInterrupt()])
def test_a_start_that_fails_leaves_no_process_of_rays(monkeypatch: pytest.MonkeyPatch, raised: BaseException) -> None:
    def child(*arguments: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", *arguments])

    started = []

    def init(*_: object, **__: object) -> None:
        started.append(child(f"{Path(ray.__file__).parent}/raylet"))
        started.append(other := child())
        others.append(other)
        raise raised

    others = [child(f"{Path(ray.__file__).parent}/of-another-session")]
    started_by(init, monkeypatch)
    try:
        with pytest.raises((RunError, KeyboardInterrupt)), session():
            pass
        assert [each for each in started if each not in others and each.poll() is None] == []
        assert [each.poll() for each in others] == [None] * len(others)
    finally:
        for each in [*started, *others]:
            each.kill()
            each.wait()


GUESSES = """The actor died unexpectedly before finishing this task.
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker
unexpectedly exits with a connection error code 2. Some common causes include: (1) the process was killed by the OOM
killer due to high memory usage, (2) ray stop --force was called, or (3) the worker crashed unexpectedly."""
NODE = """The actor died unexpectedly before finishing this task.
The actor died because its node has died. Node Id: 83d5255d: health check failed due to missing too many heartbeats"""


@pytest.mark.parametrize(
    ("error", "expected", "cause"),
    [
        (exceptions.RayActorError("1", GUESSES), ActorLostError, "A died: its process ended unexpectedly"),
        (exceptions.RayActorError("1", NODE), ActorLostError, "A went with its node, which died or cannot be reached"),
        (exceptions.NodeDiedError("gone"), ActorLostError, "A went with its node, which died or cannot be reached"),
        (exceptions.OutOfMemoryError("x"), ActorLostError, "A was killed because the machine ran out of memory"),
        (exceptions.ObjectLostError("1", None, ""), ActorLostError, "A lost what it had sent (ObjectLostError)"),
        (exceptions.OutOfDiskError("x"), StorageError, "Ray's object store is full, and so is the disk to which it sp"),
        (exceptions.ObjectStoreFullError("x"), StorageError, "Ray's object store is full, and so is the disk to whic"),
        (exceptions.RaySystemError("first\nsecond"), RunError, "Ray failed: RaySystemError: System error: first"),
    ],
)
def test_what_ray_says_is_one_cause_and_one_hint(error: Exception, expected: type[RunError], cause: str) -> None:
    with pytest.raises(expected) as caught, ray_errors("A"):
        raise error
    assert type(caught.value) is expected
    assert caught.value.cause.startswith(cause)
    assert caught.value.hint
    assert str(caught.value).count("\n") == 1


def test_what_our_own_code_raised_in_an_actor_comes_out_as_it_was() -> None:
    own = ClientError(3, 7, "ValueError: no", "look", "Traceback")
    with pytest.raises(ClientError) as caught, ray_errors("A"):
        raise exceptions.RayTaskError("train", "Traceback", own)
    assert caught.value is own
    nested = exceptions.RayTaskError("events", "Traceback", exceptions.OutOfDiskError("x"))
    with pytest.raises(StorageError, match="object store is full"), ray_errors("A"):
        raise nested


def test_a_head_node_that_is_gone_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        listener.listen()
        monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(gcs_address=f"127.0.0.1:{port}"))
        head = HeadNode()
        assert head.is_there()
        head.check()
    assert not head.is_there()
    with pytest.raises(RunError, match=f"the head node of the Ray cluster at 127.0.0.1:{port} died or cannot be") as e:
        head.check()
    assert e.value.hint.startswith("blossom-ray resume RUN")
