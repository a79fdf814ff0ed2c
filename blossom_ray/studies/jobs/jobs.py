"""Ray's Jobs API as we use it: submit, list, follow, stop. Its errors in our words.

Of a cluster, only the dashboard's port (8265) has to be reached; everything goes over HTTP.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient
from ray.runtime_env import RuntimeEnv
from ray.util.state import list_nodes
from ray.util.state.exception import RayStateApiException

from blossom_ray.errors import InputError, RunError, first_line
from blossom_ray.runtime.address import check_sent_token, is_host
from blossom_ray.runtime.joining import use_token
from blossom_ray.text import quoted

API_ADDRESS = "RAY_API_SERVER_ADDRESS"
# They tell of every upload and connection on standard error.
_LOGGERS = ("ray", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk")
_POLL_S = 0.5
# Between the end of a job's log and its last status.
_SETTLING_S = 60.0


@dataclass(frozen=True)
class Job:
    """A job as the cluster knows it.

    Attributes:
        id: What it was submitted as.
        status: `PENDING`, `RUNNING`, `SUCCEEDED`, `FAILED` or `STOPPED`.
        metadata: What it was submitted with; jobs of ours have `blossom_ray`, our version.
        message: What Ray says of the status.
        started: When it was submitted, in seconds since 1970, or None.
        ended: When it ended, or None.
        node_ip: The node of its driver, or None as long as it has none.
        exit_code: What its command returned, or None.
    """

    id: str
    status: str
    metadata: Mapping[str, str]
    message: str = ""
    started: float | None = None
    ended: float | None = None
    node_ip: str | None = None
    exit_code: int | None = None

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will happen."""
        return JobStatus(self.status).is_terminal()


class Jobs:
    """The jobs of a cluster.

    Args:
        address: `http://HOST:8265`; None: what RAY_API_SERVER_ADDRESS or RAY_ADDRESS says. RAY_JOB_HEADERS holds more
            HTTP headers, as JSON. A token that is at hand goes to a cluster that asks for one.

    Raises:
        InputError: It is no such address.
        RunError: No Jobs API answers there, or it refuses us.
    """

    def __init__(self, address: str | None = None) -> None:
        self.address = parse_address(address)
        with self._errors():
            try:
                self._client = self._connect()
            except AuthenticationError:
                if not use_token():
                    raise
                self._client = self._connect()

    def submit(self, job_id: str, entrypoint: str, **options: Any) -> None:
        """Submit a shell command under a new id, with options as of `JobSubmissionClient.submit_job`.

        Raises:
            RunError: The cluster refuses it.
        """
        with self._errors():
            self._client.submit_job(submission_id=job_id, entrypoint=entrypoint, **options)

    def all(self) -> list[Job]:
        """All jobs that were submitted, the newest first; not drivers that joined the cluster."""
        with self._errors():
            found = [_job(details) for details in self._client.list_jobs() if details.submission_id]
        return sorted(found, key=lambda job: -(job.started or 0.0))

    def get(self, job_id: str) -> Job:
        """One job.

        Raises:
            InputError: There is none of this id.
        """
        with self._errors():
            try:
                return _job(self._client.get_job_info(job_id))
            except RuntimeError as error:
                if "does not exist" not in str(error):
                    raise
        known = ", ".join(job.id for job in self.all()[:5]) or "none"
        raise InputError(f"there is no job {job_id!r} at {self.address}; expected one of its jobs, such as {known}")

    def logs(self, job_id: str) -> str:
        """What a job has printed so far."""
        with self._errors():
            return str(self._client.get_job_logs(job_id))

    def follow(self, job_id: str, write: Callable[[str], object]) -> Job:
        """Pass on what a job prints, from its beginning to its end; the job as it then is."""

        async def tail() -> None:
            async for lines in self._client.tail_job_logs(job_id):
                write(lines)

        with self._errors():
            asyncio.run(tail())
        return self.ended(job_id, _SETTLING_S)

    def ended(self, job_id: str, patience_s: float) -> Job:
        """The job once it has ended.

        Raises:
            RunError: It has not within so many seconds.
        """
        give_up = time.monotonic() + patience_s
        while not (job := self.get(job_id)).has_ended:
            if time.monotonic() > give_up:
                raise RunError(
                    f"job {job_id} has not ended within {patience_s:g} s: it is {job.status}. {job.message}".rstrip(),
                    "look at it with: blossom-ray jobs logs",
                )
            time.sleep(_POLL_S)
        return job

    def stop(self, job_id: str) -> bool:
        """Ask a job to end; whether it was running."""
        self.get(job_id)
        with self._errors():
            return bool(self._client.stop_job(job_id))

    def node_ips(self) -> set[str]:
        """Addresses of the nodes that are alive."""
        with self._errors(), _use_address(self.address):
            # "Missing output" are the nodes that are filtered out, too.
            nodes = list_nodes(
                address=self.address,
                filters=[("state", "=", "ALIVE")],
                limit=10_000,
                raise_on_missing_output=False,
            )
        return {str(node.node_ip) for node in nodes}

    def _connect(self) -> JobSubmissionClient:
        for name in _LOGGERS:
            logging.getLogger(name).setLevel(logging.ERROR)
        headers = None
        if text := os.environ.get("RAY_JOB_HEADERS"):
            with suppress(ValueError, RecursionError):
                headers = json.loads(text)
            if not isinstance(headers, dict) or not all(isinstance(value, str) for value in headers.values()):
                raise InputError(
                    'RAY_JOB_HEADERS is no JSON object of texts; expected HTTP headers, such as {"Name": "value"}'
                )
        check_sent_token()
        with _use_address(self.address):
            return JobSubmissionClient(self.address, headers=headers)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except AuthenticationError as error:
            raise RunError(
                f"the Ray cluster at {self.address} asks for a token, and there is none here or a wrong one",
                "RAY_AUTH_MODE=token with RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token holds the cluster's",
            ) from error
        except (OSError, requests.exceptions.RequestException) as error:
            raise RunError(
                f"no Jobs API of a Ray cluster answers at {self.address}: {first_line(error)}",
                "it is the dashboard's address, port 8265 unless told otherwise: ray start --head --dashboard-host=...",
            ) from error
        except (RuntimeError, ValueError, RayStateApiException) as error:
            raise RunError(f"the Jobs API at {self.address} refused: {first_line(error)}") from error


def parse_address(address: str | None) -> str:
    """Where a Jobs API is said to be; None: what RAY_API_SERVER_ADDRESS or RAY_ADDRESS says.

    Raises:
        InputError: It is no such address, or holds a password.
    """
    source = "--address"
    if address is None:
        source = API_ADDRESS if API_ADDRESS in os.environ else "RAY_ADDRESS"
        address = os.environ.get(source)
        if not address:
            raise InputError(f"--address is missing, and {API_ADDRESS} is not set; expected http://HOST:8265")
    expected = "expected http://HOST:8265, the cluster's dashboard"
    try:
        url = urlsplit(address)
        is_url = address.startswith(("http://", "https://")) and is_host(url.hostname or "") and url.port != 0
    except ValueError:
        is_url = False
    if "@" in address:
        raise InputError(f"{source} holds a name or password of a user; {expected}, and RAY_JOB_HEADERS or a token")
    if not is_url or not address.isprintable() or " " in address or "?" in address or "#" in address:
        raise InputError(f"{source} is {quoted(address)}; {expected}")
    return address.rstrip("/")


def check_with_ray(environment: Mapping[str, Any]) -> None:
    """Find out before a job is sent whether Ray takes a runtime environment.

    Raises:
        InputError: It does not.
    """
    try:
        json.dumps(RuntimeEnv(**environment))
    except (TypeError, ValueError, OSError) as error:
        raise InputError(f"--runtime-env: {first_line(error)}; expected a runtime environment of Ray") from error


@contextmanager
def _use_address(address: str) -> Iterator[None]:
    """Have Ray use this address: it prefers what these variables say to what it is told."""
    names = (API_ADDRESS, "RAY_ADDRESS")
    before = {name: os.environ[name] for name in names if name in os.environ}
    os.environ.update(dict.fromkeys(names, address))
    try:
        yield
    finally:
        for name in names:
            del os.environ[name]
        os.environ.update(before)


def _job(details: JobDetails) -> Job:
    return Job(
        id=str(details.submission_id),
        status=str(details.status.value),
        metadata=details.metadata or {},
        message=details.message or "",
        started=None if details.start_time is None else details.start_time / 1000,
        ended=None if not details.end_time else details.end_time / 1000,
        node_ip=None if details.driver_info is None else details.driver_info.node_ip_address,
        exit_code=details.driver_exit_code,
    )
