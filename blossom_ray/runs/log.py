"""The log of a run, `log.jsonl` in its folder: one JSON object per line, through the standard library's logging.

Every line has `time`, `level`, `event`, `message`, `scenario` and `run`, the run id; what else stands in it depends on
the event and is listed in `docs/watching.md`. The same goes to whatever handlers a program has given to the logger
`blossom_ray.run`, or to the root logger, as text.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path
from typing import Any

from blossom_ray.core.records import Failure, RoundRecord
from blossom_ray.core.scores import SCORES, LearnedTask, task_prefix
from blossom_ray.errors import first_line
from blossom_ray.storage import appending, writing

LOG_FILE = "log.jsonl"
LOGGER = "blossom_ray.run"
_STEP_BYTES = 2**16


class RunLog:
    """Writes the log of one run; lines go behind those of earlier attempts at the same run.

    Args:
        folder: The run's folder, whose name is the run id.
        scenario: The scenario's name.
        learned: What its clients learn, by the name of the task.

    Every method raises `StorageError` where the disk is full, and `RunFolderError` where the file cannot be written.
    """

    def __init__(self, folder: Path, scenario: str, learned: Mapping[str, LearnedTask]) -> None:
        self._folder, self._scenario = folder, scenario
        self._names: list[str] = []
        for name, task in learned.items():
            start = task_prefix(name)
            scores = [f"{start}{score}" for score in ("loss", *(score.name for score in SCORES[task.kind]))]
            self._names += [f"{start}train_loss", *scores, *(f"validation/{score}" for score in scores)]
        self._logger = logging.getLogger(LOGGER)
        if self._logger.level == logging.NOTSET:
            self._logger.setLevel(logging.INFO)
        self._handler = _LineHandler(folder)
        self._logger.addHandler(self._handler)

    def event(self, event: str, message: str, level: int = logging.INFO, **values: Any) -> None:
        """Write a line.

        Args:
            event: What happened, in a word.
            message: The same for people, in one line.
            level: A level of `logging`.
            values: JSON values that belong to it.
        """
        common = {"event": event, "message": message, "scenario": self._scenario, "run": self._folder.name}
        fields = {**common, **values}
        extra = {"run_folder": self._folder, "fields": fields}
        with writing(self._folder / LOG_FILE):
            self._logger.log(level, "%s: %s", self._folder.name, message, extra=extra)

    def started(self, last_round: int | None) -> None:
        """The run begins, or goes on after the last round that it has."""
        if last_round is None:
            self.event("start", "begins", round=None)
        else:
            self.event("start", f"goes on, with rounds up to {last_round}", round=last_round)

    def prepared(self, facts: dict[str, Any]) -> None:
        """Data, engines and placement are known.

        Args:
            facts: What the manifest gets before the first round.
        """
        data = facts["data"]
        counts = [(data["num_train"], "training"), (data["num_validation"], "validation"), (data["num_test"], "test")]
        told = ", ".join(f"{count} {split} samples" for count, split in counts if count)
        self.event("data", told, **data)
        placement = {key: facts[key] for key in ("runtime", "actors", "engines")}
        self.event("placement", f"runtime {facts['runtime']}, {facts['actors']} actors", **placement)
        for note in facts["notes"]:
            self.event("note", note, logging.WARNING)

    def round(self, record: RoundRecord) -> None:
        """A round is done; its failures have lines of their own, before it."""
        index = record.round_index
        for failure in record.failures:
            self._failure(index, failure)
        blocks = record.blocks
        values: dict[str, Any] = {
            "num_clients": len(record.cohort),
            "num_evaluated": record.num_evaluated,
            "seconds": dict(record.seconds),
            "bytes_down": sum(block.bytes_down for block in blocks),
            "bytes_up": sum(block.bytes_up for block in blocks),
            "metrics": {name: record.metrics[name] for name in self._names if name in record.metrics},
        }
        told = [f"{name} {value:.4g}" for name, value in [*values["metrics"].items()][:3]]
        self.event("round", ", ".join([f"round {index}", *told]), round=index, **values)
        if (stopped := record.stopped) is not None:
            best = f"round {stopped.best_round} is the best by {stopped.metric}"
            self.event("stopped", f"stops after round {index}, {best} ({stopped.reason})", **asdict(stopped))

    def checkpoint(self, round_index: int) -> None:
        """A checkpoint is whole."""
        self.event("checkpoint", f"checkpoint of round {round_index} is whole", round=round_index)

    def driver_lost(self, last_round: int | None, cause: str) -> None:
        """The driver actor is gone."""
        self.event("failure", f"the driver was lost: {cause}", logging.WARNING, round=last_round, phase="driver")

    def ended(self, status: str, last_round: int | None, error: Exception | None) -> None:
        """The run has ended.

        Args:
            status: As in the manifest.
            last_round: The last complete round.
            error: Why it failed, if it did.
        """
        if error is None:
            self.event("end", f"{status} after round {last_round}", status=status, round=last_round)
            return
        reason = {"error": type(error).__name__, "cause": str(error)}
        self.event("end", f"{status}: {first_line(error)}", logging.ERROR, status=status, round=last_round, **reason)

    def close(self) -> None:
        """Let go of the file."""
        self._logger.removeHandler(self._handler)
        self._handler.close()

    def _failure(self, round_index: int, failure: Failure) -> None:
        self.event(
            "failure",
            f"round {round_index}, {failure.phase}: {failure.cause}; {failure.action}",
            logging.WARNING,
            round=round_index,
            phase=failure.phase,
            clients=list(failure.clients),
            actor=failure.actor,
            cause=failure.cause,
            action=failure.action,
        )


class _LineHandler(logging.Handler):
    """Appends the events of one run to its file.

    An error is not printed and forgotten, as handlers do, but raised: the run's owner says what it means.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder, self._path = folder, folder / LOG_FILE
        self._is_checked = False

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, if it is about this run."""
        if getattr(record, "run_folder", None) != self._folder:
            return
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            **vars(record)["fields"],
        }
        with appending(self._path) as descriptor, open(descriptor, "ab", closefd=False) as file:
            if not self._is_checked:
                _drop_half_line(descriptor)
                self._is_checked = True
            file.write(f"{json_line(line)}\n".encode())


def _drop_half_line(descriptor: int) -> None:
    """Take out what a process that died, or a full disk, left of a last line."""
    end = os.fstat(descriptor).st_size
    while end:
        start = max(0, end - _STEP_BYTES)
        line_break = os.pread(descriptor, end - start, start).rfind(b"\n")
        if line_break >= 0:
            end = start + line_break + 1
            break
        end = start
    os.ftruncate(descriptor, end)


def json_line(values: Mapping[str, Any]) -> str:
    """An object as JSON without line breaks; infinity and NaN, which JSON does not have, become null."""
    # The one control character that is left as it is.
    return json.dumps(_finite(values), allow_nan=False).replace("\x7f", r"\u007f")


def _finite(value: Any) -> Any:
    match value:
        case float():
            return value if isfinite(value) else None
        case Mapping():
            return {key: _finite(item) for key, item in value.items()}
        case list() | tuple():
            return [_finite(item) for item in value]
        case _:
            return value
