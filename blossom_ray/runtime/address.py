"""Where a Ray cluster is, as the user says it: what an address may look like, and whether something answers there."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path

from blossom_ray.errors import InputError, RunError
from blossom_ray.text import quoted

_TIMEOUT_S = 5.0
_MOST_HOST_CHARACTERS = 253
_MOST_TOKEN_CHARACTERS = 4096
_EXPECTED = "auto, local or HOST:PORT (6379 unless the cluster was started with another port)"
# What every HTTP/2 client sends first (RFC 9113, section 3.4), with an empty SETTINGS frame; type 4 answers it.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
_FRAME_HEADER_BYTES, _SETTINGS = 9, 4


@dataclass(frozen=True)
class HostPort:
    """Where a service listens.

    Attributes:
        host: Name or IP address, without brackets.
        port: TCP port.
    """

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can mean it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def parse_address(address: str, source: str = "--address") -> HostPort | None:
    """A cluster's address; None for `auto` and `local`, which Ray resolves.

    Args:
        address: `auto`, `local` or `HOST:PORT`.
        source: What gave it, for messages.

    Raises:
        InputError: It is none of these, or the address of another service of the cluster.
    """
    if address in ("auto", "local"):
        return None
    scheme, has_scheme, rest = address.rpartition("://")
    if scheme == "ray":
        raise InputError(
            f"{source} is {quoted(address)}, and Ray Client passes no streams of results, which a run consists of; "
            f"expected auto or HOST:PORT on a node of the cluster, or from elsewhere: blossom-ray submit SCENARIO "
            f"--address http://{rest.partition(':')[0] or 'HOST'}:8265"
        )
    if scheme in ("http", "https"):
        raise InputError(
            f"{source} is {quoted(address)}, where jobs are submitted (blossom-ray submit); expected {_EXPECTED}"
        )
    host, _, port = rest.rpartition(":")
    is_port = re.fullmatch("[0-9]{1,5}", port) is not None and 0 < int(port) < 2**16
    has_brackets = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if has_brackets else host
    # Of `::1:6379` nobody can tell where the port begins.
    if has_scheme or not is_port or not is_host(host) or has_brackets != (":" in host):
        if "@" in address:
            raise InputError(f"{source} holds a name or password of a user; expected {_EXPECTED}")
        raise InputError(f"{source} is {quoted(address)}; expected {_EXPECTED}")
    return HostPort(host, int(port))


def is_host(host: str) -> bool:
    """Whether it is the name of a machine or an IP address, which a system's resolver can be asked for."""
    if ":" in host:
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            return False
        return True
    try:
        ascii_host = host.removesuffix(".").encode("idna").decode()
    except UnicodeError:
        return False
    return len(ascii_host) <= _MOST_HOST_CHARACTERS and bool(re.fullmatch(r"[\w-]+(\.[\w-]+)*", ascii_host, re.ASCII))


def check_token() -> None:
    """Find out whether the token that Ray would send can be sent: it ends the process over one that cannot.

    Raises:
        InputError: There is one, and it is empty or no visible ASCII characters.
    """
    source, token = _token()
    if token is not None and not re.fullmatch(f"[!-~]{{1,{_MOST_TOKEN_CHARACTERS}}}", token):
        raise InputError(f"{source} is no token; expected one line of visible ASCII characters, as the cluster has it")


def check_sent_token() -> None:
    """Find out whether the token can be sent, if RAY_AUTH_MODE says that one is.

    Raises:
        InputError: It cannot.
    """
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "token":
        check_token()


def _token() -> tuple[str, str | None]:
    """The first place that Ray takes a token from, and what it takes there; None if there is no such place."""
    token, name = os.environ.get("RAY_AUTH_TOKEN"), os.environ.get("RAY_AUTH_TOKEN_PATH")
    if token:
        return "RAY_AUTH_TOKEN", token.strip()
    path = Path(name) if name else Path("~/.ray/auth_token").expanduser()
    try:
        if path.is_file():
            with path.open("rb") as file:
                first = file.readline(_MOST_TOKEN_CHARACTERS + 2)
            return str(path), first.decode(errors="replace").strip()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); expected a file with a token") from error
    return ("RAY_AUTH_TOKEN_PATH", "") if name else ("RAY_AUTH_TOKEN", token)


def is_listening(place: HostPort, timeout_s: float = _TIMEOUT_S) -> bool:
    """Whether something takes connections there."""
    try:
        socket.create_connection((place.host, place.port), timeout=timeout_s).close()
    except OSError:
        return False
    return True


def check_service(place: HostPort) -> None:
    """Find out in seconds what Ray would take two minutes for, and then end the process.

    Raises:
        RunError: Nothing answers there, or what answers does not speak gRPC, as Ray's control service does.
    """
    try:
        with socket.create_connection((place.host, place.port), timeout=_TIMEOUT_S) as connection:
            connection.sendall(_PREFACE)
            answer = connection.recv(_FRAME_HEADER_BYTES)
    except TimeoutError:
        reason = f"no answer within {_TIMEOUT_S:g} s"
    except OSError as error:
        reason = error.strerror or str(error)
    else:
        if len(answer) > 3 and answer[3] == _SETTINGS:
            return
        reason = "what listens there is not the control service of a Ray cluster (port 6379 unless told otherwise)"
    raise RunError(
        f"no Ray cluster could be joined at {place}: {reason}",
        f"start one with: ray start --head --port={place.port}, or run on this machine alone: --address local",
    )
