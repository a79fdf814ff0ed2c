"""Joining a cluster, and a Ray that has other insides than the one that was built against."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import ray

from blossom_ray.errors import RunError
from blossom_ray.runtime.address import HostPort
from blossom_ray.runtime.cluster import session
from blossom_ray.runtime.joining import join, loopback, use_token

MISMATCH = """Version mismatch: The cluster was started with:
    Ray: 2.0.0
    Python: 3.8.1
This process on Ray Node was started with:
    Ray: 2.60.0
    Python: 3.11.9
"""


@pytest.fixture
def place() -> Iterator[HostPort]:
    """Where something speaks HTTP/2, as a cluster does."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1024)
                connection.sendall(b"\x00\x00\x00\x04\x00\x00\x00\x00\x00")

        thread = threading.Thread(target=serve)
        thread.start()
        yield HostPort("127.0.0.1", server.getsockname()[1])
        thread.join()


@contextmanager
def started_by(init: Callable[..., object]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ray.init", init)
        patch.setattr("ray.is_initialized", lambda: False)
        yield


@pytest.mark.parametrize(
    ("raised", "cause", "hint"),
    [
        (RuntimeError(MISMATCH), "has Ray 2.0.0 on Python 3.8.1, and here is Ray 2.60.0 on Python 3.11.9", "install"),
        (ConnectionError("\nno node\nmore"), "could not be joined: no node", "run this on a node of the cluster"),
    ],
)
def test_a_ray_that_cannot_be_asked_before_says_itself_why_it_refuses(
    place: HostPort, raised: Exception, cause: str, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(*_: object, **__: object) -> None:
        raise raised

    monkeypatch.delattr("ray._raylet.GcsClient")
    with started_by(init), pytest.raises(RunError) as caught:
        join(str(place), "--address", {})
    assert caught.value.cause == f"the Ray cluster at {place} {cause}"
    assert caught.value.hint.startswith(hint)


def test_no_session_is_open_to_others_where_ray_cannot_be_kept_to_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(*_: object, **__: object) -> None:
        pytest.fail("Ray was started")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delattr("ray._private.ray_constants.ENABLE_RAY_CLUSTER")
    message = f"^Ray {ray.__version__} cannot be kept to the loopback address by this version of blossom-ray\nhint: "
    with started_by(init), pytest.raises(RunError, match=message), session():
        pass
    with loopback(allowed=False):  # what every Ray does
        pass


def test_a_ray_that_does_not_say_where_its_cluster_is_finds_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("ray._private.services.canonicalize_bootstrap_address")
    with pytest.raises(RunError, match=r"^no Ray cluster was found on this machine.*\nhint: .*--address HOST:PORT"):
        join("auto", "--address", {})


def test_a_ray_without_a_way_to_begin_to_send_a_token_sends_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0123")
    module = "ray._private.authentication.authentication_token_setup"
    monkeypatch.delattr(f"{module}.maybe_enable_token_auth_if_token_available")
    assert not use_token()
