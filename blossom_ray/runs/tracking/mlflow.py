"""Rounds as metrics of an MLflow run, on a tracking server or wherever MLflow's URI points."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException

from blossom_ray.core.records import Progress
from blossom_ray.core.section import plain_tree
from blossom_ray.errors import InputError, first_line
from blossom_ray.reading.scenario import Scenario
from blossom_ray.runs.tracking.trackers import Value, tracked_values

RUN_TAG = "blossom_ray.run"
"""The tag that holds our run id, by which a resumed run finds its MLflow run again."""

_STATUS = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
# MLflow takes no more at once, and no longer values.
_PARAMETERS_AT_ONCE, _PARAMETER_CHARACTERS = 100, 6000
# A server that does not answer is given up in seconds: by itself MLflow would try for minutes while the run waits.
_IMPATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}


class MlflowTracker:
    """A `Tracker` that writes metrics by round, and the resolved scenario as parameters.

    The experiment has the scenario's name, the run that of the run folder. MLflow has no `+`, brackets or a name that
    is part of another's path: `accuracy/acc+gyro` becomes `accuracy.acc gyro`, `fusion[acc+gyro]` `fusion:acc gyro`.

    Args:
        uri: Tracking URI; None for what `MLFLOW_TRACKING_URI` says, or else MLflow's default.
        scenario: What is run.
        run: The run's id.
    """

    def __init__(self, uri: str | None, scenario: Scenario, run: str) -> None:
        self._client = _client(uri)
        experiment = self._client.get_experiment_by_name(scenario.name)
        number = experiment.experiment_id if experiment else self._client.create_experiment(scenario.name)
        found = self._client.search_runs([number], f"tags.`{RUN_TAG}` = '{run}'", max_results=1)
        if found:
            self._run = found[0].info.run_id
            self._client.update_run(self._run, status="RUNNING")
        else:
            self._run = self._client.create_run(number, run_name=run, tags={RUN_TAG: run}).info.run_id
            parameters = [*_parameters(plain_tree(scenario, defaults=True))]
            for start in range(0, len(parameters), _PARAMETERS_AT_ONCE):
                self._client.log_batch(self._run, params=parameters[start : start + _PARAMETERS_AT_ONCE])

    def write(self, progress: Progress) -> None:
        """Write one round."""
        now_ms = time.time_ns() // 1_000_000
        self._client.log_batch(
            self._run,
            metrics=[
                Metric(metric_name(value), value.number, now_ms, progress.round_index)
                for value in tracked_values(progress)
            ],
        )

    def close(self, status: str) -> None:
        """End the MLflow run."""
        self._client.set_terminated(self._run, _STATUS[status])


def check_server(uri: str | None) -> None:
    """Find out whether MLflow can be written to.

    Raises:
        InputError: It cannot.
    """
    target = "mlflow" if uri is None else f"mlflow:{uri}"
    try:
        _client(uri).search_experiments(max_results=1)
    except (MlflowException, OSError, ImportError) as error:
        cause = first_line(error)
        raise InputError(
            f"--track {target}: MLflow cannot be used there: {cause}; expected the URI of a tracking server, such as "
            "mlflow:http://127.0.0.1:5000, or with the whole package mlflow a database, such as mlflow:sqlite:///mlflow.db"
        ) from error


def metric_name(value: Value) -> str:
    """The name of a value in MLflow's letters."""
    name = value.name.replace("/", ".").replace("+", " ").replace("[", ":").replace("]", "")
    name = re.sub(r"[^\w.: -]", "_", name, flags=re.ASCII)
    return f"{value.group}/{name}" if value.group else name


def _client(uri: str | None) -> MlflowClient:
    for name, setting in _IMPATIENCE.items():
        os.environ.setdefault(name, setting)
    return MlflowClient(tracking_uri=uri)


def _parameters(tree: Mapping[str, Any], above: str = "") -> Iterator[Param]:
    """Values by dotted path; a list is one value."""
    for key, value in tree.items():
        path = f"{above}{key}"
        if isinstance(value, Mapping) and value:
            yield from _parameters(value, f"{path}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            yield Param(re.sub(r"[^\w./: -]", "_", path, flags=re.ASCII), text[:_PARAMETER_CHARACTERS])
