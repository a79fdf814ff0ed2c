"""A plan as tables: clients, actors and memory, traffic, seconds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table

from blossom_ray.cli.console.rounds import title
from blossom_ray.reading.scenario import Scenario
from blossom_ray.studies.tables import format_bytes, format_seconds, line, plain_table

if TYPE_CHECKING:
    from blossom_ray.studies.plan import Plan


def plan_view(scenario: Scenario, plan: Plan, where: str) -> RenderableType:
    """The whole plan; `where` is what offers the room, such as "this machine; Ray is not started"."""
    return Group(
        line(title(scenario)),
        _clients(plan),
        _placement(plan, where),
        _traffic(plan),
        *_time(scenario, plan),
        *(line(f"note: {note}") for note in plan.notes),
    )


def plan_values(plan: Plan) -> dict[str, Any]:
    """The plan as plain values, for JSON."""
    return {
        "sets": {name: vars(found) for name, found in plan.sets.items()},
        "clients_per_round": plan.clients_per_round,
        "actors": plan.actors,
        "most_clients_per_actor": plan.most_clients_per_actor,
        "room": vars(plan.room),
        "most_actors": plan.most_actors,
        "clients_per_actor": {value: vars(packing) for value, packing in plan.packings.items()},
        "memory_bytes": vars(plan.memory),
        "blocks": {str(instance): vars(traffic) for instance, traffic in plan.blocks.items()},
        "seconds_per_round": None if plan.seconds is None else vars(plan.seconds),
        "shard_bytes": plan.shard_bytes,
        "decoded": {
            name: [{**kept._asdict(), "folder": str(kept.folder)} for kept in parts]
            for name, parts in plan.decoded.items()
        },
        "notes": [*plan.notes],
    }


def _clients(plan: Plan) -> Table:
    table = plain_table("modalities", "clients", "chunks", "samples", "parameters", "engine", "us/sample")
    for name, found in plan.sets.items():
        seconds = found.seconds_per_sample.get(found.engine)
        counts = (found.clients, found.chunks, found.train_samples, found.parameters)
        time = "" if seconds is None else f"{1e6 * seconds:.0f}"
        table.add_row(name, *(f"{count:,}" for count in counts), found.engine, time)
    return table


def _placement(plan: Plan, where: str) -> Table:
    memory, room = plan.memory, plan.room
    num_clients = sum(found.clients for found in plan.sets.values())
    rows = [("a round", f"{plan.clients_per_round:,} of {num_clients:,} clients")]
    if plan.actors:
        rows += [
            ("room", f"{room}, {where}"),
            ("actors", f"{plan.actors:,}, at most {plan.most_clients_per_actor:,} clients in one"),
            ("an actor each", f"for up to {plan.most_actors:,} clients"),
        ]
        for value, packing in plan.packings.items():
            outcome = f"{packing.actors:,} actors" if packing.actors is not None else f"refused: {packing.refusal}"
            rows.append((f"clients_per_actor: {value}", outcome))
        rows.append(("largest actor", f"{format_bytes(memory.largest_actor)}, without activations"))
        rows.append(("object store", f"up to {format_bytes(memory.object_store)}"))
    rows += [("driver" if plan.actors else "this process", format_bytes(memory.driver))]
    rows += [("all together", format_bytes(memory.total)), ("shards", f"{format_bytes(plan.shard_bytes)} on disk")]
    for name, parts in plan.decoded.items():
        for kept in parts:
            when = f"{kept.num_new:,} of them made now" if kept.num_new else "all there before"
            rows.append(
                (name, f"{kept.num_samples:,} samples, {when}: {format_bytes(kept.num_bytes)} in {kept.folder}")
            )
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for label, value in rows:
        table.add_row(label, line(value))
    return table


def _traffic(plan: Plan) -> Table:
    table = plain_table("block", "scope", "clients", "values", "down/round", "up/round")
    for instance, found in plan.blocks.items():
        down, up = format_bytes(found.bytes_down), format_bytes(found.bytes_up)
        table.add_row(str(instance), found.scope, f"{found.holders:,}", f"{found.values:,}", down, up)
    table.add_section()
    totals = (sum(found.bytes_down for found in plan.blocks.values()), sum(b.bytes_up for b in plan.blocks.values()))
    table.add_row("all", "", "", "", *map(format_bytes, totals))
    return table


def _time(scenario: Scenario, plan: Plan) -> Iterator[RenderableType]:
    if plan.seconds is None:
        yield line("time: unknown; --probe times a few batches of each modality set")
        return
    train, evaluate = plan.seconds.train, plan.seconds.evaluate
    most = "at most " if scenario.stop is not None else ""
    yield line(
        f"time: {format_seconds(train + evaluate)} of arithmetic a round ({format_seconds(train)} training, "
        f"{format_seconds(evaluate)} evaluation), {format_seconds(scenario.rounds * (train + evaluate))} for "
        f"{most}{scenario.rounds} rounds; the start, Ray's calls, averaging and tables come on top"
    )
    for name, found in plan.sets.items():
        fastest = min(found.seconds_per_sample, key=found.seconds_per_sample.__getitem__)
        ratio = found.seconds_per_sample[found.engine] / found.seconds_per_sample[fastest]
        if fastest != found.engine:
            yield line(f"{name}: training.engine: {fastest} takes {ratio:.1f} times less time per sample here")
