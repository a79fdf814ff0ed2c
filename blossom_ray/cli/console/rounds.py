"""A round and its run in tables and lines: scores by modality set, traffic by block, actors, failures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from rich.table import Table

from blossom_ray.core.records import ActorRound, Failure, RoundRecord, Stopped
from blossom_ray.core.scores import Task, find_score, of_task
from blossom_ray.reading.scenario import Scenario
from blossom_ray.studies.tables import format_bytes, format_score, modality_suffixes, plain_table, shown_scores

BARS = "▁▂▃▄▅▆▇█"
ASCII_BARS = "_.-=+*#@"
CURVE_WIDTH = 12


def title(scenario: Scenario) -> str:
    """One line on what is run: `quickstart, private-head-fusion, 10 clients, 20 rounds`."""
    sharing = scenario.sharing
    if isinstance(sharing, dict):
        sharing_text = " + ".join(f"{block} {scope}" for block, scope in sharing.items())
    else:
        sharing_text = sharing
    most = "at most " if scenario.stop is not None else ""
    unseen = f" ({scenario.num_unseen} unseen)" if scenario.num_unseen else ""
    return f"{scenario.name}, {sharing_text}, {scenario.num_clients} clients{unseen}, {most}{scenario.rounds} rounds"


def stopped_line(stopped: Stopped, scenario: Scenario) -> str:
    """Why a run with `stop` ended, and its best round, in a line."""
    how = "stopped early after" if stopped.reason == "patience" else "ended with"
    if stopped.best_round is None or stopped.value is None:
        return f"{how} round {stopped.round}; no round has a finite {stopped.metric}"
    score = find_score(stopped.metric, scenario.own_scores) or scenario.judge[1]
    best = f"the best {stopped.metric}, {format_score(score, stopped.value)}, is that of round {stopped.best_round}"
    return f"{how} round {stopped.round}; {best}"


def split_prefix(metrics: Mapping[str, float]) -> str:
    """What the names of the scores begin with that are shown first: those on test splits, where these were scored."""
    return "" if "loss" in metrics else "validation/"


def score_tables(
    metrics: Mapping[str, float],
    scenario: Scenario,
    curves: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
    bars: str = BARS,
) -> Iterator[Table]:
    """The tables of all tasks that have scores in a round, as `score_table` has them; curves by task."""
    for task, section in scenario.learned.items():
        own = of_task(metrics, task)
        if "loss" in own or "validation/loss" in own:
            own_clients = (one for one in scenario.profiles() if task in one.tasks and not one.is_unseen)
            members = Counter(profile.modality_set for profile in own_clients)
            own_curves = None if curves is None else curves.get(task, {})
            yield score_table(own, members, section.kind, own_curves, bars, title=task or "modalities")


def score_table(
    metrics: Mapping[str, float],
    num_clients: Mapping[str, int],
    task: Task,
    curves: Mapping[str, Sequence[float]] | None = None,
    bars: str = BARS,
    *,
    title: str = "modalities",
) -> Table:
    """Scores of an evaluated round by modality set, then over all clients, then what else its summary has.

    That is: over the clients that have trained, where others are scored with blocks of their own that never were;
    on validation splits; after fine-tuning; on the held-out set; over the clients that never train.
    In a round that scores validation splits alone, all of them are of these.

    If there are `curves`, they are a last column: values of the task's first score so far by modality set as
    `modality_suffixes` gives it, "" for all clients, drawn in `bars`, from low to high. The title heads
    the first column.
    """
    scores = shown_scores(task)
    columns = [title, "clients", *(score.label for score in scores), "loss"]
    table = plain_table(*columns, *([] if curves is None else ["curve"]))

    first = split_prefix(metrics)

    def add(label: str, clients: str, prefix: str, suffix: str) -> None:
        values = [format_score(score, metrics.get(f"{prefix}{score.name}{suffix}")) for score in scores]
        cells = [clients, *values, f"{metrics[f'{prefix}loss{suffix}']:.3f}"]
        if curves is not None:
            cells.append(sparkline(curves.get(suffix, ()) if prefix == first else (), bars))
        table.add_row(label, *cells)

    for suffix in modality_suffixes(metrics, first):
        add(suffix[1:], str(num_clients[suffix[1:]]), first, suffix)
    table.add_section()
    everyone = str(sum(num_clients.values()))
    for label, prefix in (
        ("all clients", ""),
        ("validation", "validation/"),
        ("fine-tuned", "fine_tuned/"),
        ("validation, fine-tuned", "validation/fine_tuned/"),
        ("averaged model", "plain/"),
    ):
        if f"{prefix}loss" in metrics:
            add(label, everyone, prefix, "")
        if (
            prefix == first
            and metrics.get(f"{prefix}loss_trained", metrics[f"{prefix}loss"]) != metrics[f"{prefix}loss"]
        ):
            add("that trained", "", prefix, "_trained")
    table.add_section()
    for suffix in modality_suffixes(metrics, first, "@"):
        add(f"samples with {suffix[1:]}", "", first, suffix)
    table.add_section()
    for suffix in modality_suffixes(metrics, "held_out/"):
        add(f"held-out {suffix[1:]}", "", "held_out/", suffix)
    table.add_section()
    for label, prefix in (("unseen", "unseen/"), ("unseen, fine-tuned", "unseen/fine_tuned/")):
        suffixes = modality_suffixes(metrics, prefix)
        for suffix in ("", *(suffixes if len(suffixes) > 1 else ())):
            if f"{prefix}loss" in metrics:
                add(f"{label} {suffix[1:]}".rstrip(), "", prefix, suffix)
    return table


def block_table(record: RoundRecord) -> Table:
    """One row per block instance: who trained it, what was sent, how far the server moved it."""
    table = plain_table("block", "scope", "clients", "down", "up", "update")
    for block in record.blocks:
        who = (str(block.instance), str(block.instance.scope), str(block.contributors))
        table.add_row(*who, format_bytes(block.bytes_down), format_bytes(block.bytes_up), f"{block.update_norm:.3g}")
    return table


def block_summary(record: RoundRecord) -> str:
    """The traffic of a round in a line."""
    blocks = record.blocks
    down, up = sum(block.bytes_down for block in blocks), sum(block.bytes_up for block in blocks)
    return f"{_counted(len(blocks), 'block')}: down {format_bytes(down)}, up {format_bytes(up)}"


def actor_table(record: RoundRecord, replaced: Mapping[int, int]) -> Table:
    """One row per client actor: its clients, how often it was replaced, its share of the round's time, its memory."""
    table = plain_table("actor", "clients", "state", "busy", "memory")
    for actor in record.actors:
        times = replaced[actor.actor]
        state = f"replaced {times}x" if times else "up"
        memory = "-" if actor.memory_bytes is None else format_bytes(actor.memory_bytes)
        table.add_row(str(actor.actor), str(actor.num_clients), state, _percent(_busy(record, actor)), memory)
    return table


def actor_summary(record: RoundRecord, replaced: Mapping[int, int]) -> str:
    """The actors in a line: how many, how many of them replaced, and mean and range of what `actor_table` has."""
    parts = [_counted(len(record.actors), "actor")]
    if times := sum(replaced.values()):
        parts.append(f"replaced {times}x")
    busy = [share for actor in record.actors if (share := _busy(record, actor)) is not None]
    if busy:
        parts.append(f"busy {_percent(min(busy))} to {_percent(max(busy))}")
    memory = [actor.memory_bytes for actor in record.actors if actor.memory_bytes is not None]
    if memory:
        parts.append(f"memory {format_bytes(sum(memory))}, at most {format_bytes(max(memory))} each")
    return ", ".join(parts)


def failure_line(round_index: int, failure: Failure) -> str:
    """A failure in a line: `round 3, training, actor 2, client 7 and 4 others: died: ...; repeated`."""
    where = [f"round {round_index}", failure.phase]
    if failure.actor is not None:
        where.append(f"actor {failure.actor}")
    if failure.clients:
        first, *others = failure.clients
        where.append(f"client {first}" + (f" and {_counted(len(others), 'other')}" if others else ""))
    return f"{', '.join(where)}: {failure.cause.splitlines()[0]}; {failure.action}"


def sparkline(values: Sequence[float], bars: str = BARS) -> str:
    """The whole history in at most `CURVE_WIDTH` bars, from its lowest to its highest value."""
    if not values:
        return ""
    num_bars = min(len(values), CURVE_WIDTH)
    shown = [values[i * (len(values) - 1) // max(num_bars - 1, 1)] for i in range(num_bars)]
    low, span = min(shown), max(shown) - min(shown)
    return "".join(bars[round((value - low) / span * (len(bars) - 1)) if span else 0] for value in shown)


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _busy(record: RoundRecord, actor: ActorRound) -> float | None:
    """The share of the round's wall time that an actor computed, None where there is no time to speak of."""
    total = record.seconds.get("total", 0.0)
    return actor.seconds / total if total else None


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"
