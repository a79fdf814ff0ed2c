"""A round record as one JSON object: the line that `--json` prints per round. `docs/watching.md` lists its keys."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, fields
from typing import Any

from blossom_ray.core.records import BlockRound, RoundRecord


def round_json(record: RoundRecord) -> dict[str, Any]:
    """Everything that a record holds, as JSON values; the summary metrics stand beside the other keys."""
    return {
        "round": record.round_index,
        **record.metrics,
        "learning_rate": record.learning_rate,
        "seconds": dict(record.seconds),
        "cohort": list(record.cohort),
        "blocks": [_block(block) for block in record.blocks],
        "training": _plain(record.training),
        "evaluation": _plain(record.evaluation),
        "validation": _plain(record.validation),
        "fine_tuned": _plain(record.fine_tuned),
        "fine_tuned_validation": _plain(record.fine_tuned_validation),
        "classes": _plain(record.classes),
        "failures": _plain(record.failures),
        "actors": _plain(record.actors),
        "stopped": None if record.stopped is None else asdict(record.stopped),
    }


def _block(block: BlockRound) -> dict[str, Any]:
    (values,) = _plain([block])
    instance = values.pop("instance")
    return {"block": instance.name, "scope": str(instance.scope), "key": instance.key, **values}


def _plain(entries: Iterable[Any]) -> list[dict[str, Any]]:
    return [{field.name: getattr(entry, field.name) for field in fields(entry)} for entry in entries]
