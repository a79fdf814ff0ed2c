"""How this process becomes part of a Ray cluster: what is looked at before, and why it cannot.

Ray itself waits two minutes for a cluster that is not there, or for one that wants a token, and then ends the process.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
import ray.exceptions
from ray._private import ray_constants, services
from ray._private.utils import check_version_info, compute_version_info
from ray._raylet import GcsClient  # type: ignore[attr-defined] # compiled; its stub leaves the class out
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from blossom_ray.errors import RunError
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
    _check_cluster(place)
    try:
        with loopback(allowed=stays_here):
            ray.init(str(place), **options)
    except Exception as error:  # Ray has no class of its own for it
        raise RunError(
            f"the Ray cluster at {place} could not be joined: {str(error).strip().partition(chr(10))[0]}",
            f"run this on a node of the cluster (ray start --address={place}), or from elsewhere: blossom-ray submit",
        ) from error
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
    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    joined = {HostPort(host.strip("[]"), int(port))}
    if place not in joined and _seen_from_outside(place) not in joined:
        raise RunError(
            f"this process is in the Ray session at {host}:{port} already, not in that at {place}",
            "leave it first: ray.shutdown()",
        )


@contextmanager
def loopback(*, allowed: bool = True) -> Iterator[None]:
    """Have Ray take a loopback address as it is, as it does on laptops; else it looks up one that others can reach.

    Ray's processes listen on loopback alone if that is their node's address. The switch is an environment variable
    that Ray reads when it is imported, which may be long ago.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = before and not allowed
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _found_here() -> HostPort:
    """The cluster that was started on this machine."""
    try:
        found = services.canonicalize_bootstrap_address("auto")
    except ConnectionError:  # Ray's word for none
        found = None
    place = None if found is None else parse_address(found)
    if place is None:
        raise RunError(
            "no Ray cluster was found on this machine (address auto)",
            "start one with: ray start --head, or give --address HOST:PORT; without --address a run is on its own",
        )
    return place


def _seen_from_outside(place: HostPort) -> HostPort:
    return HostPort(services.resolve_ip_for_localhost(place.host), place.port)


def _check_cluster(place: HostPort) -> None:
    """Find out whether the cluster lets us in and has our versions of Ray and Python.

    A token (RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token) goes to a cluster that asks for one.
    """
    try:
        metadata = _metadata(place)
    except ray.exceptions.AuthenticationError as error:
        raise RunError(
            f"the Ray cluster at {place} asks for a token, and there is none here or a wrong one",
            "RAY_AUTH_MODE=token with RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token holds the cluster's",
        ) from error
    except ray.exceptions.RayError as error:
        raise RunError(
            f"no Ray cluster could be joined at {place}: {str(error).strip().partition(chr(10))[0]}",
            "the address is that of the control service: port 6379 unless told otherwise",
        ) from error
    try:
        check_version_info(metadata, "this machine")
    except RuntimeError as error:
        ours, theirs = compute_version_info(), (metadata["ray_version"], metadata["python_version"])
        raise RunError(
            f"the Ray cluster at {place} has Ray {theirs[0]} on Python {theirs[1]}, and here is Ray {ours[0]} on "
            f"Python {ours[1]}",
            "install the same versions here, or use blossom-ray submit, which runs on the cluster's own",
        ) from error


def use_token() -> bool:
    """Send the token that is at hand from now on; False if there is none, or RAY_AUTH_MODE says otherwise.

    Raises:
        InputError: What is at hand cannot be sent.
    """
    check_token()
    try:
        from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
    except ImportError:  # Ray before 2.59 leaves it to RAY_AUTH_MODE
        return False
    return bool(maybe_enable_token_auth_if_token_available(warn_if_disabled=False))


def _metadata(place: HostPort) -> dict[str, Any]:
    """What the cluster was started with. A token is sent only to one that asks for it."""
    with _quiet():
        try:
            return _asked(place)
        except ray.exceptions.AuthenticationError:
            if not use_token():
                raise
        return _asked(place)


def _asked(place: HostPort) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(GcsClient(address=str(place)).internal_kv_get(b"CLUSTER_METADATA", b"cluster"))
    return found


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


def _check_nodes() -> None:
    """Find out whether every node has this package, and the libraries that make the bits, in our versions.

    A node that does not answer is left alone: it may be on its way out.
    """

    def versions(names: tuple[str, ...]) -> dict[str, str]:
        # Not a function of this module, which a node without the package could not import.
        from importlib.metadata import PackageNotFoundError, version

        found = {}
        for name in names:
            try:
                # Builds for another device ("+cpu", "+cu130") are the same version.
                found[name] = version(name).partition("+")[0]
            except PackageNotFoundError:
                found[name] = "none"
        return found

    nodes = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
    if len(nodes) == 1:
        return
    task: Any = ray.remote(num_cpus=0, max_retries=0)(versions)
    strategies = (NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes)
    answers = [task.options(scheduling_strategy=strategy).remote(_PACKAGES) for strategy in strategies]
    ours = versions(_PACKAGES)
    different = []
    for name, answer in zip(nodes.values(), answers, strict=True):
        try:
            theirs = ray.get(answer, timeout=_NODE_TIMEOUT_S)
        except ray.exceptions.RayError:
            continue
        different += [
            f"{package} {theirs[package]} on {name}" for package in _PACKAGES if theirs[package] != ours[package]
        ]
    if different:
        here = ", ".join(f"{package} {version}" for package, version in ours.items())
        raise RunError(
            f"nodes of the cluster have other versions than here ({here}): {'; '.join(different)}",
            "install the same on every node, or use blossom-ray submit, which takes this package along",
        )
