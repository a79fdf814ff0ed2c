"""A job's run folder at a URI, and home. The URIs are those of folders here; Arrow has one interface to all."""

import os
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from blossom_ray import Run, Scenario
from blossom_ray.errors import InputError, RunError
from blossom_ray.reading.writer import scenario_yaml
from blossom_ray.studies.jobs.packing import Package
from blossom_ray.studies.jobs.runs import fetch, submit
from blossom_ray.studies.jobs.storage import Mirror, below, check_out, download

pytestmark = pytest.mark.slow


class Cluster:
    """The jobs of a cluster that runs none."""

    def __init__(self, **metadata: str) -> None:
        self.metadata, self.command = metadata, ""

    def submit(self, job_id: str, entrypoint: str, **options: Any) -> None:
        self.command, self.metadata = entrypoint, options["metadata"]

    def get(self, job_id: str) -> SimpleNamespace:
        return SimpleNamespace(metadata=self.metadata, node_ip=None)


def fetched(out: str, home: Path) -> list[Path]:
    return fetch(Cluster(out=out), "j", home)


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "node"
    (folder / "small" / "run" / "checkpoints" / "000001").mkdir(parents=True)
    for name, content in {"rounds.arrows": b"1", "clients.arrows": b"", "checkpoints/000001/server": b"2"}.items():
        (folder / "small" / "run" / name).write_bytes(content)
    return folder


def test_a_folder_goes_to_a_uri_and_comes_home(run: Path, tmp_path: Path) -> None:
    (run / "small" / "run" / ".rounds.parquet.partial").write_bytes(b"in the making")
    uri = (tmp_path / "bucket" / "a b").as_uri()
    Mirror(run, uri).update()
    for names, checkpoints in (((), {"small/run/checkpoints/000001/server": b"2"}), (("checkpoints",), {})):
        home = tmp_path / f"home-{len(names)}"
        home.mkdir()
        download(uri, home, names)
        assert files(home) == {"small/run/rounds.arrows": b"1", "small/run/clients.arrows": b"", **checkpoints}
        modes = {(path.is_dir(), stat.S_IMODE(path.stat().st_mode)) for path in home.rglob("*")}
        assert modes == {(True, 0o700), (False, 0o600)}


def test_a_mirror_follows_its_folder(run: Path, tmp_path: Path) -> None:
    mirror = Mirror(run, (tmp_path / "bucket").as_uri())
    mirror.update()
    with (run / "small" / "run" / "rounds.arrows").open("ab") as file:
        file.write(b"2")
    (run / "small" / "run" / "checkpoints" / "000001" / "server").unlink()
    (run / "small" / "run" / "manifest.json").write_bytes(b"{}")
    mirror.update()
    found = {"small/run/rounds.arrows": b"12", "small/run/clients.arrows": b"", "small/run/manifest.json": b"{}"}
    assert files(tmp_path / "bucket") == found


def test_what_a_link_at_a_uri_leads_to_does_not_come_home(run: Path, tmp_path: Path) -> None:
    before = set(files(run))
    (tmp_path / "hush").write_bytes(b"hush")
    (run / "small" / "run" / "link").symlink_to(tmp_path / "hush")
    (run / "small" / "folder").symlink_to(tmp_path)
    os.mkfifo(run / "small" / "pipe")
    home = tmp_path / "home"
    home.mkdir()
    download(run.as_uri(), home, ())
    assert set(files(home)) == before


def test_a_job_runs_beside_a_mirror(small_scenario: Scenario, tmp_path: Path) -> None:
    """Its run comes home by `fetch`, and its exit code is the command's."""
    scenario = tmp_path / "scenario.yaml"
    local = small_scenario.override({"execution.runtime": "local", "rounds": 1})
    scenario.write_text(scenario_yaml(local), encoding="utf-8")
    uri = (tmp_path / "bucket" / "job").as_uri()
    beside = [sys.executable, "-m", "blossom_ray.studies.jobs.storage", str(tmp_path / "node"), uri]
    subprocess.run(
        [*beside, "simulate", str(scenario), "--out", str(tmp_path / "node")], check=True, capture_output=True
    )
    (folder,) = fetched(uri, tmp_path / "runs")
    home = Run.open(folder)
    assert (home.status, home.rounds.height, home.scenario) == ("finished", 2, local)
    refused = subprocess.run([*beside, "validate", str(tmp_path / "none.yaml")], capture_output=True, text=True)
    assert (refused.returncode, "none.yaml: does not exist" in refused.stderr) == (2, True)


def test_a_mirror_that_fails_is_told_and_fails_the_job(tmp_path: Path) -> None:
    (tmp_path / "node").mkdir()
    (tmp_path / "node" / "rounds.arrows").write_bytes(b"1")
    (tmp_path / "file").write_bytes(b"")
    uri = (tmp_path / "file" / "job").as_uri()
    command = [sys.executable, "-m", "blossom_ray.studies.jobs.storage", str(tmp_path / "node"), uri, "--version"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: the run cannot be copied to {uri}: ")


@pytest.mark.parametrize(
    ("out", "place", "command"),
    [
        ("~/jobs", "~/jobs/JOB", "-m blossom_ray simulate blossom-ray-job.yaml --out ~/jobs/JOB"),
        (
            "file:///shared/my%20jobs",
            "file:///shared/my%20jobs/JOB",
            "-m blossom_ray simulate blossom-ray-job.yaml --out '/shared/my jobs/JOB'",
        ),
        (
            "s3://bucket?region=x",
            "s3://bucket/JOB?region=x",
            "-m blossom_ray.studies.jobs.storage ~/blossom-ray-jobs/JOB 's3://bucket/JOB?region=x' "
            "simulate blossom-ray-job.yaml --out ~/blossom-ray-jobs/JOB",
        ),
    ],
)
def test_where_a_job_writes(out: str, place: str, command: str, small_scenario: Scenario, tmp_path: Path) -> None:
    cluster = Cluster()
    job = submit(cluster, small_scenario, Package(tmp_path), out=out)
    assert cluster.metadata["out"] == place.replace("JOB", job)
    assert cluster.command.endswith(f"exec python {command.replace('JOB', job)}")


def test_a_shared_folder_that_is_not_here(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"^job j has its run at file:///none/such/j, and there is no /none/such on"):
        fetched("file:///none/such/j", tmp_path)
    assert fetched((tmp_path / "j").as_uri(), tmp_path) == []


@pytest.mark.parametrize("out", ["runs", "~/runs", "file:///shared", "s3://bucket/x?region=y", "abfs://c@a.net/x"])
def test_a_place_for_runs(out: str) -> None:
    check_out(out)
    assert below(out, "j").partition("?")[0].endswith("/j")


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("s3://key:hush@bucket/x", "--out holds a password; expected a URI without one"),
        ("http://host/x", "--out is a URI of http; expected a folder, or one of file, s3, gs"),
        ("s3://[bucket", "--out is no URI .*; expected one such as s3://bucket/runs"),
    ],
)
def test_no_place_for_runs(out: str, message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}") as caught:
        check_out(out)
    assert "hush" not in str(caught.value)
