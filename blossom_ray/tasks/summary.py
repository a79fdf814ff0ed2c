"""What the clients' scores in one round come to, together and by class; the personalization gain. Scores: `tasks/`."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce

import numpy as np
import numpy.typing as npt

from blossom_ray.core.evaluations import ClientEvaluation, EvaluationColumns, SetScores
from blossom_ray.core.records import ClassScores
from blossom_ray.errors import DataError
from blossom_ray.tasks.base import Tally, TaskRules

PERCENTILES = (10, 50, 90)


def summarize(
    evaluations: Sequence[ClientEvaluation | SetScores],
    modality_sets: Sequence[str],
    pooled: Mapping[str, float | None],
) -> dict[str, float]:
    """Summarize the clients' scores of one round.

    Args:
        evaluations: One entry per scored client, in order of id: of all of its samples, or of some.
        modality_sets: The modality set of each of them, such as `acc+gyro`.
        pooled: The scores of the sum of their tallies.

    Returns:
        For `loss` and each score, over the clients that have it: under its own name the mean over clients weighted
        by test samples;
        `<name>_p10`, `<name>_p50`, `<name>_p90`, the spread over clients (unweighted, linear interpolation;
        NaN beside an infinite loss);
        `<name>_pooled`, the pooled score (not for `loss`, whose weighted mean is the pooled one);
        `<name>/<modality set>`, the weighted mean within each set, sets in sorted order. A value that no client
        defines is absent; so are all without evaluations.

    Raises:
        DataError: The clients of a modality set have no test samples at all.
    """
    if not evaluations:
        return {}
    sets = np.array(modality_sets)
    if isinstance(evaluations, EvaluationColumns):
        weights = evaluations.num_examples.astype(np.float64)
    else:
        weights = np.array([evaluation.num_examples for evaluation in evaluations], dtype=np.float64)
    summary: dict[str, float] = {}
    for name in ("loss", *pooled):
        values, has_value = _values(evaluations, name)
        if not has_value.any():
            continue
        summary[name] = _weighted_mean(values, weights[has_value])
        pooled_value = pooled.get(name)
        if pooled_value is not None:
            summary[f"{name}_pooled"] = pooled_value
        # A diverged client's loss is infinite, and NaN is NumPy's answer between it and its neighbour.
        with np.errstate(invalid="ignore"):
            percentiles = np.percentile(values, PERCENTILES)
        for percent, value in zip(PERCENTILES, percentiles, strict=True):
            summary[f"{name}_p{percent}"] = float(value)
        for modality_set in sorted(set(sets[has_value].tolist())):
            is_member = sets[has_value] == modality_set
            summary[f"{name}/{modality_set}"] = _weighted_mean(values[is_member], weights[has_value][is_member])
    return summary


def trained_summary(
    evaluations: Sequence[ClientEvaluation], modality_sets: Sequence[str], names: Iterable[str]
) -> dict[str, float]:
    """The weighted means of `summarize` over those clients that have trained at least once.

    Args:
        evaluations: As for `summarize`.
        modality_sets: As for `summarize`.
        names: Names of the scores.

    Returns:
        `<name>_trained` and `<name>_trained/<modality set>`; nothing where it is not known of each client whether it
        has trained.
    """
    trained: Sequence[ClientEvaluation]
    if isinstance(evaluations, EvaluationColumns):
        if (evaluations.rounds_trained < 0).any():
            return {}
        found = np.flatnonzero(evaluations.rounds_trained)
        places, trained = found.tolist(), evaluations.at(found)
    else:
        if any(evaluation.rounds_trained is None for evaluation in evaluations):
            return {}
        places = [place for place, evaluation in enumerate(evaluations) if evaluation.rounds_trained]
        trained = [evaluations[place] for place in places]
    sets = [modality_sets[place] for place in places]
    summary = summarize(trained, sets, dict.fromkeys(names))
    ends = ("", *(f"/{modality_set}" for modality_set in sorted(set(sets))))
    return {
        f"{name}_trained{end}": summary[f"{name}{end}"]
        for name in ("loss", *names)
        for end in ends
        if f"{name}{end}" in summary
    }


MOST_SETS = 16
"""The most sets of modalities whose samples a summary tells apart."""


def observed_summary(
    evaluations: Sequence[ClientEvaluation],
    modality_sets: Sequence[str],
    tallies: Mapping[str, Tally],
    rules: TaskRules,
) -> dict[str, float]:
    """What the scores come to of samples that have the same modalities, whatever else their clients own.

    Args:
        evaluations: As for `summarize`. Those without `by_set` are of clients no sample of which lacks a modality.
        modality_sets: As for `summarize`.
        tallies: The sums of their tallies, by the modalities of the samples.
        rules: Those of the task.

    Returns:
        For `loss` and each score `<name>@<set>` and `<name>_pooled@<set>`, as `summarize` has them, and
        `num_examples@<set>`, of the sets that most samples have; nothing where no sample lacks a modality.
    """
    if not any(evaluation.by_set for evaluation in evaluations):
        return {}
    summary: dict[str, float] = {}
    most = sorted(tallies, key=lambda name: (-tallies[name].num_examples, name))[:MOST_SETS]
    for name in sorted(most):
        own = [
            evaluation.by_set[name] if evaluation.by_set else evaluation
            for evaluation, owned in zip(evaluations, modality_sets, strict=True)
            if (name in evaluation.by_set if evaluation.by_set else name == owned)
        ]
        pooled = rules.scores(tallies[name])
        found = summarize(own, [name] * len(own), pooled)
        kept = ("loss", *pooled, *(f"{score}_pooled" for score in pooled))
        summary |= {f"{score}@{name}": found[score] for score in kept if score in found}
        summary[f"num_examples@{name}"] = tallies[name].num_examples
    return summary


def total(tallies: Iterable[Tally]) -> Tally:
    """The tally of all samples of at least one tally."""
    return reduce(operator.add, tallies)


def class_scores(
    scoring: str, tallies: Mapping[str, Tally], rules: TaskRules, names: Sequence[str], *, with_total: bool
) -> tuple[ClassScores, ...]:
    """Scores and confusion of each class.

    Args:
        scoring: As in `ClassScores`.
        tallies: By modality set.
        rules: Those of the task.
        names: Names of the classes.
        with_total: Whether the clients of all sets together are among them.

    Returns:
        By modality set in sorted order, then class; nothing for a set in which a model gave outputs that are not
        finite.
    """
    ordered = dict(sorted(tallies.items()))
    if with_total:
        ordered[""] = total(tallies.values())
    found: list[ClassScores] = []
    for modalities, tally in ordered.items():
        counts = rules.classes(tally)
        if counts is None:
            continue
        recall, precision, f1, auroc = counts.recall, counts.precision, counts.f1, counts.auroc
        # All sets together are the sum of the others: no rows of their own.
        confusion = counts.confusion if modalities else None
        for index, name in enumerate(names):
            found.append(
                ClassScores(
                    scoring=scoring,
                    modalities=modalities,
                    index=index,
                    name=name,
                    num_true=int(counts.true[index]),
                    num_predicted=int(counts.predicted[index]),
                    num_correct=int(counts.correct[index]),
                    recall=_defined(recall[index]),
                    precision=_defined(precision[index]),
                    f1=_defined(f1[index]),
                    auroc=None if auroc is None else _defined(auroc[index]),
                    predicted_as={} if confusion is None else _nonzero(confusion[index]),
                )
            )
    return tuple(found)


def personalization_gain(score: float, full_model_score: float) -> float:
    """100 (s - s_FM) / s_FM: by how many percent private blocks beat full-model aggregation.

    Args:
        score: The scheme's score s.
        full_model_score: The score of `full-model` on the same federation (same seed).

    Returns:
        Percent; NaN where the full model scores 0 and the ratio means nothing.
    """
    if full_model_score == 0:
        return math.nan
    return 100 * (score - full_model_score) / full_model_score


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _nonzero(counts: npt.NDArray[np.int64]) -> dict[int, int]:
    return {int(place): int(counts[place]) for place in np.flatnonzero(counts)}


def _values(
    evaluations: Sequence[ClientEvaluation | SetScores], name: str
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """The values of those that have one, and which these are, (n,)."""
    if isinstance(evaluations, EvaluationColumns):
        return evaluations.loss if name == "loss" else evaluations.scores[name], np.ones(len(evaluations), bool)
    # NaN is a diverged client's value; only None is no value.
    found = [each.loss if name == "loss" else each.scores[name] for each in evaluations]
    has_value = np.array([value is not None for value in found])
    return np.array([value for value in found if value is not None], dtype=np.float64), has_value


def _weighted_mean(values: npt.NDArray[np.float64], weights: npt.NDArray[np.float64]) -> float:
    # fsum rounds once, so the sum does not depend on how a Python or NumPy version adds floats.
    total = math.fsum(weights)
    if total == 0:
        raise DataError("the scored clients have no test samples; expected at least one")
    return math.fsum(values * weights) / total
