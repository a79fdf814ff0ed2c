"""How the console shows data sets: what is known of them, their numbers, and how they are divided over clients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import compress
from pathlib import Path

from rich.console import Group, RenderableType
from rich.text import Text

from blossom_ray.core.blocks import ClientProfile
from blossom_ray.data.sets.base import DatasetFacts
from blossom_ray.data.summary import ClientShare, DatasetSummary, ObservedRows, observed_lines
from blossom_ray.studies.tables import format_bytes, line, plain_table

MOST_CLIENTS_SHOWN = 50


def facts_text(name: str, facts: DatasetFacts, found: Path | None) -> Text:
    """A data set as a paragraph of lines, one for each thing that is known of it; the last is where it was found."""
    shapes = ", ".join(f"{modality} {shape}" for modality, shape in facts.shapes.items())
    lines = {
        "holds": facts.holds,
        "modalities": shapes or "as the scenario says",
        "classes": facts.classes,
        "task": " or ".join(facts.tasks),
        "held-out": facts.held_out,
        "file": facts.download,
        "from": facts.page,
        "licence": facts.licence,
        "needs": f'pip install "blossom-ray[{facts.extra}]"' if facts.extra else "",
        "found": "" if found is None else str(found),
    }
    text = line(f"{name}: {facts.title}", "bold").append("\n")
    for label, value in lines.items():
        if value:
            text.append(line(f"  {label:<11}{value}", "not bold")).append("\n")
    return text


def summary_view(title: str, summary: DatasetSummary, fingerprint: str) -> RenderableType:
    """Labels, modalities and size of a data set, the held-out set beside it."""
    held_out = summary.held_out
    titles = ("target", "mean") if summary.task == "regression" else ("class", "samples")
    labels = plain_table(*titles, "held-out")
    for index, (name, number) in enumerate(summary.labels.items()):
        other = "" if held_out is None else _number(held_out.labels[name])
        labels.add_row(f"{index} {name}", _number(number), other)
    labels.add_section()
    labels.add_row("all samples", f"{summary.num_samples:,}", "" if held_out is None else f"{held_out.num_samples:,}")
    if summary.num_subjects is not None:
        others = held_out.num_subjects if held_out is not None else None
        labels.add_row("subjects", f"{summary.num_subjects:,}", "" if others is None else f"{others:,}")
    parts = {"": summary} | ({} if held_out is None else {"held-out": held_out})
    gaps = {name: part for name, part in parts.items() if part.has_gaps}
    counted = (f"{name} observed".strip() for name in gaps)
    modalities = plain_table("modality", "shape", "lowest", "highest", "mean", "deviation", *counted)
    for modality, values in summary.modalities.items():
        numbers = (values.low, values.high, values.mean, values.deviation)
        counts = ((part.modalities[modality].num_observed, part.num_samples) for part in gaps.values())
        found = (number if observed is None else observed for observed, number in counts)
        cells = (*(f"{number:.4g}" for number in numbers), *map(_number, found))
        modalities.add_row(modality, str(values.shape), *cells)
    memory = summary.memory_bytes + (0 if held_out is None else held_out.memory_bytes)
    return Group(
        line(f"{title}: {summary.task}, {format_bytes(memory)} in memory", "bold"),
        labels,
        modalities,
        *(line(str(entry)) for entry in summary.left_out),
        line(f"fingerprint {fingerprint}"),
    )


def shares_view(
    found: Sequence[ClientShare],
    profiles: Sequence[ClientProfile],
    observed: Mapping[str, Mapping[str, ObservedRows]],
) -> RenderableType:
    """One row for each of the first clients: its modalities, its samples, and those of each class by its number.

    Where a modality is not observed in all rows, also in how many of each split it is.
    """
    shown = {
        "client": True,
        "name": any(share.name for share in found),
        "modalities": True,
        "role": any(profile.is_unseen for profile in profiles),
        "train": True,
        "validation": any(share.num_validation for share in found),
        "test": True,
        "subjects": found[0].num_subjects is not None,
    }
    classes = [str(index) for index in range(len(found[0].labels))]
    gaps = [(f"{name} {split}", rows) for name, own in observed.items() for split, rows in own.items()]
    table = plain_table(*compress(shown, shown.values()), *(title for title, _ in gaps), *classes)
    for place, (share, profile) in enumerate(list(zip(found, profiles, strict=True))[:MOST_CLIENTS_SHOWN]):
        role = "unseen" if profile.is_unseen else "train"
        who = (share.client, share.name, profile.modality_set, role)
        samples = (share.num_train, share.num_validation, share.num_test, share.num_subjects)
        counts = [*(rows.by_client[place] for _, rows in gaps), *share.labels.values()]
        table.add_row(*map(str, compress((*who, *samples), shown.values())), *map(_number, counts))
    title = line("clients, with their samples by class", "bold")
    rest = len(found) - MOST_CLIENTS_SHOWN
    more = [line(f"and {rest:,} more clients; --json has them all")] if rest > 0 else []
    return Group(title, table, *more, *map(line, observed_lines(observed)))


def _number(number: float) -> str:
    return f"{number:,}" if isinstance(number, int) else f"{number:.4g}"


def plain_summary(summary: DatasetSummary) -> Mapping[str, object]:
    """A summary as plain values, for JSON."""
    return {
        "task": summary.task,
        "samples": summary.num_samples,
        "labels": dict(summary.labels),
        "subjects": summary.num_subjects,
        "modalities": {
            name: {key: value for key, value in vars(values).items() if value is not None} | {"shape": [*values.shape]}
            for name, values in summary.modalities.items()
        },
        "memory_bytes": summary.memory_bytes,
        "left_out": [asdict(entry) for entry in summary.left_out],
        "held_out": None if summary.held_out is None else plain_summary(summary.held_out),
    }
