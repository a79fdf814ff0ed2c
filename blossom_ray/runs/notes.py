"""What a run's manifest notes of its rounds: scores that are not what they seem to be."""

from __future__ import annotations

import math
from collections.abc import Iterator

from blossom_ray.core.blocks import CENTRAL
from blossom_ray.core.phrases import listed
from blossom_ray.core.records import RoundRecord, Scoring
from blossom_ray.core.scores import Task, default_score
from blossom_ray.rounds import may_leave_untrained
from blossom_ray.runtime.preparation import Preparation
from blossom_ray.server import Server, mixed_statistics


def statistics_notes(preparation: Preparation, server: Server) -> Iterator[str]:
    """What to say of blocks whose running statistics are nobody's own."""
    if preparation.scenario.sharing == CENTRAL:
        return
    for instance in mixed_statistics(server, preparation.plan, preparation.population.representatives()):
        yield (
            f"{instance}: running statistics of normalisation are averaged over clients of different modality sets, "
            "which can spoil their scores; model.norm_statistics: same-modalities averages them within each modality "
            "set, local not at all"
        )


def undefined_note(record: RoundRecord, task: Task) -> str:
    """What to say of a round in which models gave outputs that are not finite; "" where all are."""
    score = default_score(task).name
    kinds = {
        Scoring.OWN_TEST: "their own test samples",
        Scoring.VALIDATION: "their own validation samples",
        Scoring.FINE_TUNED: "their own test samples after fine-tuning",
        Scoring.FINE_TUNED_VALIDATION: "their own validation samples after fine-tuning",
        Scoring.HELD_OUT: "the held-out set",
    }
    found = [
        where
        for scoring, where in kinds.items()
        if any(math.isnan(value) for name, value in record.metrics.items() if name.startswith(scoring.prefix + score))
    ]
    if not found:
        return ""
    scored = (*record.evaluation, *record.validation, *record.fine_tuned, *record.fine_tuned_validation)
    clients = sorted({each.client for each in scored if math.isnan(each.scores[score] or 0)})
    whose = f" of client {clients[0]}" + (f" and {len(clients) - 1} others" if clients[1:] else "") if clients else ""
    return (
        f"round {record.round_index}: outputs{whose} on {' and '.join(found)} are not finite, so these scores are "
        "undefined (NaN); a smaller training.optimizer.lr, or inputs of smaller scale"
    )


def untrained_note(preparation: Preparation, record: RoundRecord) -> str:
    """What to say of clients that were scored with parts of their own that were never trained; "" where there are none.

    Args:
        preparation: The prepared federation.
        record: A round that was scored.
    """
    if not may_leave_untrained(preparation):
        return ""
    profiles, plan = preparation.population.profiles, preparation.plan
    scored = record.evaluation or record.validation
    untrained = [profiles[entry.client] for entry in scored if entry.rounds_trained == 0]
    parts = sorted({part for profile in untrained for part in plan.own_parts(profile)})
    if not parts:
        return ""
    prefix = "" if record.evaluation else Scoring.VALIDATION.prefix
    metric = f"{prefix}{default_score(plan.task).name}_trained"
    without = f"; {metric} is the score without them" if metric in record.metrics else ""
    return (
        f"{len(untrained)} of {len(scored)} scored clients never trained: their own {listed(parts)} have "
        f"initial values{without}"
    )
