"""Addresses of clusters: what they may look like, and what answers there."""

import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from blossom_ray import Scenario, simulate, sweep
from blossom_ray.errors import InputError, RunError
from blossom_ray.runtime.address import HostPort, check_service, check_token, is_listening, parse_address
from blossom_ray.text import quoted


@pytest.mark.parametrize(
    ("address", "place", "text"),
    [
        ("head:6379", HostPort("head", 6379), "head:6379"),
        ("127.0.0.1:1", HostPort("127.0.0.1", 1), "127.0.0.1:1"),
        ("[::1]:65535", HostPort("::1", 65535), "[::1]:65535"),
        ("host_1.example.:1", HostPort("host_1.example.", 1), "host_1.example.:1"),
        ("münchen.example:1", HostPort("münchen.example", 1), "münchen.example:1"),
    ],
)
def test_an_address_is_a_host_and_a_port(address: str, place: HostPort, text: str) -> None:
    assert parse_address(address) == place
    assert str(place) == text


@pytest.mark.parametrize("address", ["auto", "local"])
def test_ray_finds_these_itself(address: str) -> None:
    assert parse_address(address) is None


@pytest.mark.parametrize(
    "address",
    [
        "", "head", "head:", ":6379", "head:0", "head:65536", "head:six", "head:-1", "head:٣", "redis://head:6379",
        "head:" + "9" * 100, "..:1", "a..b:1", ".a:1", "a" * 64 + ":1", "a." * 127 + "a:1", "a b:1", "a\x1b[31m:1",
        "a\n:1", "a/b:1", "::1:6379", "fe80::1", "[::1:1", "::1]:1", "[head]:1", "[127.0.0.1]:1", "[]:1", "[:::]:1",
    ],
)  # fmt: skip
def test_what_is_no_address_is_told_what_would_be(address: str) -> None:
    with pytest.raises(InputError, match=r"^RAY_ADDRESS is '.*; expected auto, local or HOST:PORT") as caught:
        parse_address(address, "RAY_ADDRESS")
    assert quoted(address) in str(caught.value)


def test_a_very_long_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(InputError, match=r"expected auto") as caught:
        parse_address("head:" + "9" * 100_000)
    assert len(str(caught.value)) < 400


def test_a_password_is_not_repeated() -> None:
    with pytest.raises(InputError, match=r"^--address holds a name or password of a user; expected auto") as caught:
        parse_address("user:hush@head:6379")
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("token", ["", " ", "a\nb", "a b", "a\tb", "тайна", "x\x7f", "x" * 5000])
@pytest.mark.parametrize("place", ["RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "~"])
def test_a_token_that_cannot_be_sent_is_refused_before_ray_has_it(
    token: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / ".ray" / "auth_token"
    file.parent.mkdir()
    if place == "RAY_AUTH_TOKEN":
        monkeypatch.setenv(place, token)
    else:
        # Of a file, Ray takes the first line.
        file.write_text(token.replace("\n", " "), encoding="utf-8")
    if place == "RAY_AUTH_TOKEN_PATH":
        monkeypatch.setenv(place, str(file))
    expected = place if place == "RAY_AUTH_TOKEN" else re.escape(str(file))
    with pytest.raises(InputError, match=f"^{expected} is no token; expected one line of visible ASCII characters"):
        check_token()
    monkeypatch.setenv("RAY_AUTH_TOKEN", "  good-0123\n")
    check_token()


def test_no_token_is_none_to_complain_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    check_token()
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(InputError, match=r"^RAY_AUTH_TOKEN_PATH is no token"):
        check_token()


def test_ray_client_is_refused_with_what_to_use_instead() -> None:
    with pytest.raises(InputError, match=r"Ray Client passes no streams.*--address http://head:8265$"):
        parse_address("ray://head:10001")


@pytest.mark.parametrize("address", ["http://head:8265", "https://head"])
def test_where_jobs_are_submitted_is_no_cluster_to_join(address: str) -> None:
    with pytest.raises(InputError, match=r"where jobs are submitted \(blossom-ray submit\); expected auto, local or"):
        parse_address(address)


@pytest.mark.parametrize(
    ("host", "expected"),
    [("localhost", True), ("127.9.9.9", True), ("::1", True), ("head", False), ("10.0.0.1", False)],
)
def test_loopback(host: str, expected: bool) -> None:
    assert HostPort(host, 1).is_loopback == expected


@contextmanager
def answering(answer: bytes) -> Iterator[HostPort]:
    """A service that says this to whoever has said something."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1024)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield HostPort("127.0.0.1", server.getsockname()[1])
        thread.join()


def test_what_speaks_http_2_may_be_a_cluster() -> None:
    with answering(b"\x00\x00\x00\x04\x00\x00\x00\x00\x00") as place:
        check_service(place)


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"", b"\x00"])
def test_what_speaks_something_else_is_none(answer: bytes) -> None:
    with answering(answer) as place, pytest.raises(RunError, match="is not the control service of a Ray cluster") as e:
        check_service(place)
    assert (
        e.value.hint
        == f"start one with: ray start --head --port={place.port}, or run on this machine alone: --address local"
    )


def test_where_nothing_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        place = HostPort("127.0.0.1", server.getsockname()[1])
        assert is_listening(place)
    assert not is_listening(place)
    with pytest.raises(RunError, match=f"^no Ray cluster could be joined at {place}: Connection refused"):
        check_service(place)


def _simulated(scenario: Scenario) -> object:
    return simulate(scenario, address="auto")


def _swept(scenario: Scenario) -> object:
    return list(sweep(scenario, address="auto"))


@pytest.mark.parametrize("run", [_simulated, _swept])
def test_a_run_without_ray_has_no_address(small_scenario: Scenario, run: Callable[[Scenario], object]) -> None:
    with pytest.raises(
        InputError, match=r"--address is 'auto', and execution\.runtime is local; expected one of the two"
    ):
        run(small_scenario)
