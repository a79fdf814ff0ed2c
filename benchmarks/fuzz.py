"""Bad input by the thousand, with fresh seeds: scenarios, archives, data sets, run folders, checkpoints.

    python benchmarks/fuzz.py --minutes 8 --report fuzz.md

The cases and the checks are those of `tests/fuzz`. Each batch runs in a process of its own, so a crash of the
interpreter costs one batch and is counted as a failure. Peak memory is the largest resident set that a batch's
process had; it includes the interpreter and the packages of that kind (PyTorch for run folders).
"""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import resource
import secrets
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

REPOSITORY = Path(__file__).parent.parent
TIMEOUT_OF_A_BATCH_S = 600
ADDRESS_SPACE_BYTES = 8 * 2**30
MIB = 2**20


@dataclass(frozen=True)
class Kind:
    """One kind of case: where its strategy and its check stand, and how many cases a process gets."""

    label: str
    module: str
    strategy: str
    check: str
    batch_size: int


KINDS = (
    Kind("scenario files and `--set`, as `validate` reads them", "test_fuzz_scenarios", "cases", "check_scenario", 500),
    Kind("UCI-HAR archives", "test_fuzz_data", "archive_cases", "check_archive", 1000),
    Kind("data sets of one's own", "test_fuzz_data", "dataset_cases", "check_dataset", 3000),
    Kind("run folders, read", "test_fuzz_runs", "cases", "check_reading", 500),
    Kind("run folders and checkpoints, resumed", "test_fuzz_runs", "cases", "check_resuming", 150),
)


@dataclass
class Tally:
    """What became of the cases of one kind."""

    num_cases: int = 0
    longest_s: float = 0.0
    peak_bytes: int = 0
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)

    def add(self, found: dict[str, Any]) -> None:
        """Count one batch."""
        self.num_cases += found["num_cases"]
        self.longest_s = max(self.longest_s, found["longest_s"])
        self.peak_bytes = max(self.peak_bytes, found["peak_bytes"])
        self.failures += found["failures"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, help="when the last batch is begun")
    parser.add_argument("--report", type=Path, help="Markdown file for the table; default: standard output")
    parser.add_argument("--batch", nargs=2, type=int, metavar=("KIND", "SEED"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.batch:
        print(json.dumps(run_batch(KINDS[arguments.batch[0]], arguments.batch[1])))
        return
    ends = time.monotonic() + 60 * arguments.minutes
    tallies = [Tally() for _ in KINDS]
    while time.monotonic() < ends:
        # The kind that has had least time goes next, so that each gets its share.
        number = min(range(len(KINDS)), key=lambda index: tallies[index].seconds)
        started = time.monotonic()
        tallies[number].add(batch_in_a_process(number))
        tallies[number].seconds += time.monotonic() - started
    text = report(tallies)
    if arguments.report:
        arguments.report.write_text(text, encoding="utf-8")
    else:
        print(text)
    failures = [failure for tally in tallies for failure in tally.failures]
    print("\n\n".join(failures), file=sys.stderr)
    raise SystemExit(bool(failures))


def batch_in_a_process(number: int) -> dict[str, Any]:
    """Run one batch with a seed from the system; a process that dies is one failure."""
    seed = secrets.randbits(63)
    command = [sys.executable, __file__, "--batch", str(number), str(seed)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_OF_A_BATCH_S)
    except subprocess.TimeoutExpired:
        end, errors = f"took more than {TIMEOUT_OF_A_BATCH_S} s", ""
    else:
        if done.returncode == 0:
            found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
            return found
        end, errors = f"ended with {done.returncode}", done.stderr[-2000:]
    failure = f"{KINDS[number].label}: the batch of seed {seed} {end}\n{errors}"
    return {"num_cases": 0, "longest_s": 0.0, "peak_bytes": 0, "failures": [failure]}


def run_batch(kind: Kind, seed: int) -> dict[str, Any]:
    """Run the cases of one seed in this process."""
    import hypothesis

    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, ADDRESS_SPACE_BYTES))
    warnings.simplefilter("error")
    sys.path[:0] = [str(REPOSITORY / "tests"), str(REPOSITORY / "tests" / "fuzz")]
    module = importlib.import_module(kind.module)
    check = getattr(module, kind.check)
    tally = Tally()

    with TemporaryDirectory(prefix="blossom-ray-fuzz-") as name:

        @hypothesis.seed(seed)
        @hypothesis.settings(
            max_examples=kind.batch_size,
            database=None,
            deadline=None,
            phases=[hypothesis.Phase.generate],
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(getattr(module, kind.strategy))
        def run_case(case: object) -> None:
            started = time.monotonic()
            try:
                check(case, Path(name))
            except Exception:
                # Kept, and on to the next case: one run is to find all that there is.
                tally.failures.append(f"{kind.label}, seed {seed}: {case!r}\n{traceback.format_exc()}")
            tally.num_cases += 1
            tally.longest_s = max(tally.longest_s, time.monotonic() - started)

        if hasattr(module, "originals"):
            module.originals()  # made once for all cases, and no part of the first one's time
        run_case()
    if hasattr(module, "remove_originals"):
        module.remove_originals()
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "num_cases": tally.num_cases,
        "longest_s": tally.longest_s,
        "peak_bytes": peak_bytes,
        "failures": tally.failures,
    }


def report(tallies: Sequence[Tally]) -> str:
    """The table, with date, versions and machine."""
    names = (
        "blossom-ray",
        "hypothesis",
        "numpy",
        "pyarrow",
        "polars",
        "pydantic",
        "ruamel.yaml",
        "safetensors",
        "torch",
    )
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    rows = [
        f"| {kind.label} | {tally.num_cases:,} | {len(tally.failures)} | {tally.longest_s:.2f} | "
        f"{tally.peak_bytes / MIB:.0f} | {tally.seconds:.0f} |"
        for kind, tally in zip(KINDS, tallies, strict=True)
    ]
    lines = [
        f"{datetime.now(UTC):%Y-%m-%d}, Python {platform.python_version()}, {platform.system()} {platform.machine()}; "
        f"{versions}.",
        "",
        "| Kind | Cases | Failures | Longest case (s) | Peak memory (MiB) | Time (s) |",
        "|---|---:|---:|---:|---:|---:|",
        *rows,
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
