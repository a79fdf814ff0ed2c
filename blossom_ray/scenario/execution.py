"""The `execution` section: where and how the clients run."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from blossom_ray.core.section import Positive, Section


class ClientResources(Section):
    """What Ray reserves for one client that has an actor of its own."""

    num_cpus: Annotated[float, Field(ge=0.0001, le=1_000_000_000, allow_inf_nan=False)] = 0.2
    """Fraction of a CPU core."""
    num_gpus: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Fraction of a GPU; also the cap on its memory. 0: the CPU is used."""


class Execution(Section):
    """Where and how the clients run. Nothing here but `chunk_size` touches the numbers."""

    runtime: Literal["ray", "local"] = "ray"
    """`ray`: actors. `local`: a loop in this process, for breakpoints and tests."""
    clients_per_actor: Literal["auto"] | Positive = "auto"
    """Clients that share an actor process. `auto`: one while the cluster has room, packed beyond that."""
    client_resources: ClientResources = ClientResources()
    """What Ray reserves per client that has an actor of its own."""
    chunk_size: Positive = 32
    """Clients whose updates are summed together before the sums are added up. It fixes the order of the sums, and
    so the last bits of the results."""
    shards: Literal["auto", "memory-map", "object-store"] = "auto"
    """How clients' data reach the actors. `auto`: memory-mapped files on one machine, the object store on several."""
    timeout_s: Annotated[float, Field(gt=0, le=1_000_000_000, allow_inf_nan=False)] = 1800.0
    """Seconds that one chunk of clients may take before the run is stopped."""
