"""How this process becomes part of a Ray cluster: what is looked at before, and why it cannot.

Ray itself waits two minutes for a cluster that is not there, or for one that wants a token, and then ends the process.
So the cluster is asked before Ray is, for which there is no public way; nor is there for two other things below. A
version of Ray that has these parts no more is told of in a line, or left to its own words.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Any

import ray
import ray.exceptions
from ray.util import get_node_ip_address
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from blossom_ray.errors import RunError, first_line
from blossom_ray.runtime.address import HostPort, check_service, check_token, is_listening, parse_address

# The same code gives the same bits only with the same versions of these on all nodes.
_PACKAGES = ("blossom-ray", "torch", "numpy")
_NODE_TIMEOUT_S = 120.0


def join(address: str, source: str, options: dict[str, Any]) -> None:
    """Join the cluster at an address.

    Args:
        address: `auto` or `HOST:PORT`.
        source: What gave it, for messages.
        options: Keyword arguments for `ray.init`.

    Raises:
        InputError: It is no such address.
        RunError: There is no such cluster, it has other versions, it refuses us, or this machine is no node of it.
    """
    place = parse_address(address, source) or _found_here()
    stays_here = place.is_loopback and not is_listening(_seen_from_outside(place))
    check_service(place)
    _check_entry(place)
    with loopback(allowed=stays_here):
        try:
            ray.init(str(place), **options)
        except Exception as error:  # Ray has no class of its own for it
            raise _refused(place, error) from error
    _check_nodes()


def check_joined(address: str, source: str) -> None:
    """Find out whether the session that this process has is the one that is asked for.

    Raises:
        InputError: It is no such address.
        RunError: It is another one.
    """
    place = parse_address(address, source)
    if place is None:
        return
    joined = joined_place()
    if joined not in (place, _seen_from_outside(place)):
        raise RunError(
            f"this process is in the Ray session at {joined} already, not in that at {place}",
            "leave it first: ray.shutdown()",
        )


def joined_place() -> HostPort:
    """Where the control service of the session is that this process has."""
    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    return HostPort(host.strip("[]"), int(port))


@contextmanager
def loopback(*, allowed: bool = True) -> Iterator[None]:
    """Have Ray take a loopback address as it is, as it does on laptops; else it looks up one that others can reach.

    Ray's processes listen on loopback alone if that is their node's address. The switch is an environment variable
    that Ray reads when it is imported, which may be long ago.

    Raises:
        RunError: This version of Ray has no such switch, and would listen where others can reach it.
    """
    constants = _private("_private", "ray_constants")
    before = getattr(constants, "ENABLE_RAY_CLUSTER", None)
    if before is None:
        if allowed:
            raise RunError(
                f"Ray {ray.__version__} cannot be kept to the loopback address by this version of blossom-ray",
                "another version of either, or a cluster to join: --address HOST:PORT",
            )
        yield
        return
    constants.ENABLE_RAY_CLUSTER = before and not allowed
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = before


def use_token() -> bool:
    """Send the token that is at hand from now on; False if there is none, or RAY_AUTH_MODE says otherwise.

    A token is in RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token.

    Raises:
        InputError: What is at hand cannot be sent.
    """
    check_token()
    module = "_private.authentication.authentication_token_setup"
    enable = _private(module, "maybe_enable_token_auth_if_token_available")
    # Ray before 2.59 leaves it to RAY_AUTH_MODE.
    return enable is not None and bool(enable(warn_if_disabled=False))


def _private(module: str, name: str) -> Any:
    """A part of Ray that has no public name; None in a version that has it no more."""
    try:
        return getattr(import_module(f"ray.{module}"), name, None)
    except ImportError:
        return None


def _found_here() -> HostPort:
    """The cluster that was started on this machine."""
    find = _private("_private.services", "canonicalize_bootstrap_address")
    found = None
    if find is not None:
        with suppress(ConnectionError):  # Ray's word for none
            found = find("auto")
    place = None if found is None else parse_address(found)
    if place is None:
        raise RunError(
            "no Ray cluster was found on this machine (address auto)",
            "start one with: ray start --head, or give --address HOST:PORT; without --address a run is on its own",
        )
    return place


def _seen_from_outside(place: HostPort) -> HostPort:
    """The same place as Ray takes it where a loopback address is not to be taken as it is."""
    return HostPort(get_node_ip_address(), place.port) if place.host in ("localhost", "127.0.0.1", "::1") else place


def _check_entry(place: HostPort) -> None:
    """Find out whether the cluster lets us in. A token is sent only to one that asks for one."""
    client = _private("_raylet", "GcsClient")

    def ask() -> None:
        client(address=str(place)).internal_kv_get(b"CLUSTER_METADATA", b"cluster")

    try:
        # A Ray that cannot be asked so says in its own words what is wrong.
        with _quiet(), suppress(AttributeError, TypeError):
            try:
                ask()
            except ray.exceptions.AuthenticationError:
                if not use_token():
                    raise
                ask()
    except ray.exceptions.AuthenticationError as error:
        raise RunError(
            f"the Ray cluster at {place} asks for a token, and there is none here or a wrong one",
            "RAY_AUTH_MODE=token with RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token holds the cluster's",
        ) from error
    except ray.exceptions.RayError as error:
        raise RunError(
            f"no Ray cluster could be joined at {place}: {first_line(error)}",
            "the address is that of the control service: port 6379 unless told otherwise",
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what Ray's C++ code logs off standard error: the message that follows says it once, and better."""
    before = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


def _refused(place: HostPort, error: Exception) -> RunError:
    """Why Ray could not join a cluster."""
    match re.findall(r"(?:Ray|Python): (\S+)", str(error)):
        case [ray_there, python_there, ray_here, python_here]:
            return RunError(
                f"the Ray cluster at {place} has Ray {ray_there} on Python {python_there}, and here is Ray "
                f"{ray_here} on Python {python_here}",
                "install the same versions here, or use blossom-ray submit, which runs on the cluster's own",
            )
    return RunError(
        f"the Ray cluster at {place} could not be joined: {first_line(error)}",
        f"run this on a node of the cluster (ray start --address={place}), or from elsewhere: blossom-ray submit",
    )


def num_nodes() -> int:
    """Number of nodes that are alive."""
    return sum(bool(node["Alive"]) for node in ray.nodes())


def on_each_node(function: Callable[..., Any], *arguments: Any) -> Iterator[tuple[str, Any]]:
    """The name of each node with what a function returns there.

    A node that does not answer is left out: it may be on its way out.
    """
    nodes = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
    task: Any = ray.remote(num_cpus=0, max_retries=0)(function)
    strategies = (NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes)
    answers = [task.options(scheduling_strategy=strategy).remote(*arguments) for strategy in strategies]
    for name, answer in zip(nodes.values(), answers, strict=True):
        with suppress(ray.exceptions.RayError):
            yield name, ray.get(answer, timeout=_NODE_TIMEOUT_S)


def _check_nodes() -> None:
    """Find out whether every node has this package, and the libraries that make the bits, in our versions."""

    def versions(names: tuple[str, ...]) -> dict[str, str]:
        # Not a function of this module, which a node without the package could not import.
        from importlib.metadata import PackageNotFoundError, version

        found = dict.fromkeys(names, "none")
        for name in names:
            with suppress(PackageNotFoundError):
                # Builds for another device ("+cpu", "+cu130") are the same version.
                found[name] = version(name).partition("+")[0]
        return found

    if num_nodes() == 1:
        return
    ours = versions(_PACKAGES)
    different = []
    for name, theirs in on_each_node(versions, _PACKAGES):
        different += [
            f"{package} {theirs[package]} on {name}" for package in _PACKAGES if theirs[package] != ours[package]
        ]
    if different:
        here = ", ".join(f"{package} {version}" for package, version in ours.items())
        raise RunError(
            f"nodes of the cluster have other versions than here ({here}): {'; '.join(different)}",
            "install the same on every node, or use blossom-ray submit, which takes this package along",
        )
