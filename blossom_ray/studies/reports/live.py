"""A figure that grows with a run, in a notebook."""

from __future__ import annotations

import io
import math
import sys
import time
from collections.abc import Callable, Collection, Generator, Iterable
from typing import Any

from matplotlib.figure import Figure

from blossom_ray.core.records import RoundRecord
from blossom_ray.core.scores import TASKS, default_score, split_scoring
from blossom_ray.errors import InputError
from blossom_ray.studies.comparison.scores import ALL
from blossom_ray.studies.reports.charts import Curve, curves, figure_style
from blossom_ray.studies.tables import modality_suffixes
from blossom_ray.text import quoted

_DOTS_PER_INCH = 110


def live_figure(
    records: Iterable[RoundRecord],
    *,
    score: str | None = None,
    every_s: float = 1.0,
    show: Callable[[Figure], None] | None = None,
) -> Generator[RoundRecord, None, None]:
    """Pass on the records of a run, and keep a figure of its score by modality set up to date.

    In a notebook the figure is an output of the cell that is redrawn in its place. Elsewhere, unless `show` says what
    to do with it, there is none and the records just pass, so a script may keep the call.

    Args:
        records: From `simulate(..., stream=True)`. Closing the result closes them, which ends the run.
        score: A column of the table `rounds`, without a modality set, such as `macro_f1_present`; None for what the
            task is judged by.
        every_s: Seconds between two drawings at least; the last round is drawn in any case.
        show: Gets each new figure, instead of the notebook.

    Yields:
        The records as they come.

    Raises:
        InputError: `score` is none of the run's columns.

    Examples:
        >>> from blossom_ray import Scenario, live_figure, simulate
        >>> scenario = Scenario.load("scenarios/quickstart.yaml")
        >>> for record in live_figure(simulate(scenario, stream=True)):
        ...     pass
    """
    shown = show or _notebook()
    judges = [default_score(task).name for task in TASKS]
    curve_of: dict[str, list[tuple[int, float]]] = {}
    drawn_s, num_waiting = -math.inf, 0
    try:
        for record in records:
            if shown is not None and record.num_evaluated:
                # On test splits where they are scored.
                score = score or _judge(record, judges)
                _add(curve_of, record, score)
                num_waiting += 1
                if time.monotonic() - drawn_s >= every_s:
                    shown(_figure(curve_of, score))
                    drawn_s, num_waiting = time.monotonic(), 0
            yield record
    finally:
        if isinstance(records, Generator):
            records.close()
        if shown is not None and score is not None and num_waiting:
            shown(_figure(curve_of, score))


def _judge(record: RoundRecord, judges: Collection[str]) -> str:
    """What the task, the first one of several, is judged by, told by the columns."""
    for start in ("", "validation/"):
        for name in record.metrics:
            scoring, rest = split_scoring(name)
            if scoring == start and rest.rpartition("/")[2] in judges:
                return name
    raise InputError("the round has no score; expected one that was scored")


def _add(curve_of: dict[str, list[tuple[int, float]]], record: RoundRecord, score: str) -> None:
    if score not in record.metrics:
        known = ", ".join(name for name in record.metrics if "/" not in name.removeprefix("validation/"))
        raise InputError(f"score is {quoted(score)}; expected one of {known}")
    prefix = score[: score.rfind("/") + 1]
    for suffix in ("", *modality_suffixes(record.metrics, prefix)):
        if f"{score}{suffix}" in record.metrics:
            points = curve_of.setdefault(suffix.lstrip("/") or ALL, [])
            points.append((record.round_index, record.metrics[f"{score}{suffix}"]))


def _figure(curve_of: dict[str, list[tuple[int, float]]], score: str) -> Figure:
    lines = [Curve(label, *zip(*points, strict=True)) for label, points in curve_of.items()]
    with figure_style():
        last, value = curve_of[ALL][-1]
        return curves({f"round {last}: {value:.4g}": lines}, x_label="round", y_label=score)


def _notebook() -> Callable[[Figure], None] | None:
    """What shows a figure as one output of a notebook's cell; None outside of a notebook."""
    shell: Any = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is None or not hasattr(shell, "kernel"):
        return None
    from IPython.display import Image, display

    handle: Any = None

    def show(figure: Figure) -> None:
        nonlocal handle
        stream = io.BytesIO()
        with figure_style():
            # On the white that axes and words are made for: a dark notebook would swallow them.
            figure.savefig(stream, format="png", dpi=_DOTS_PER_INCH, facecolor="white")
        picture = Image(data=stream.getvalue(), width=round(96 * figure.get_figwidth()))
        if handle is None:
            handle = display(picture, display_id=True)
        else:
            handle.update(picture)

    return show
