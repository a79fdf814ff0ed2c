"""Whether two checkouts compute the same: digests of all blocks and every cell of the tables, bit for bit.

    make same-bits BASE=<commit>

Each checkout runs the scenarios below in a process of its own, through what users go by (`blossom_ray.simulate`, the
command `resume`), so that the tool outlives what it compares. A column that only one side has is listed; a value that
differs ends with exit code 1. Columns of times are left out. Floating-point results are those of one processor.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from hashlib import sha256
from pathlib import Path
from typing import Any

BASE: dict[str, Any] = {
    "rounds": 3,
    "data": {
        "dataset": "synthetic",
        "samples": 400,
        "classes": 4,
        "modalities": {
            "acc": {"kind": "sequence", "shape": [16, 3]},
            "camera": {"kind": "image", "shape": [1, 8, 8]},
            "gyro": {"kind": "sequence", "shape": [16, 3]},
        },
        "partition": {"kind": "dirichlet", "alpha": 0.5},
        "held_out_samples": 40,
    },
    "clients": [
        {"count": 2, "modalities": ["acc"], "group": "a"},
        {"count": 2, "modalities": ["gyro"], "group": "b"},
        {"count": 4, "modalities": ["acc", "camera", "gyro"], "group": "b"},
    ],
    "model": {
        "encoders": {
            "acc": {"kind": "conv1d", "channels": [4, 8], "dim": 8},
            "camera": {"kind": "conv2d", "channels": [4, 8], "dim": 8},
            "gyro": {"kind": "conv-gru", "channels": [4], "dim": 8},
        },
        "fusion": {"kind": "attention", "dim": 16},
        "head": {"kind": "mlp", "hidden": [8], "norm": "batch"},
    },
    "training": {"batch_size": 16, "optimizer": {"kind": "sgd", "lr": 0.05, "momentum": 0.9}, "engine": "sequential"},
    "server": {"clients_per_round": 5},
    "execution": {"runtime": "local"},
}
RUNS: dict[str, dict[str, Any]] = {
    "full-model": {"sharing": "full-model", "evaluation.held_out": "every"},
    "full-model, stacked": {"sharing": "full-model", "training.engine": "vectorized"},
    "private head": {"sharing": "private-head", "training.keep_optimizer_state": True},
    "private head and fusion, stacked": {"sharing": "private-head-fusion", "training.engine": "vectorized"},
    "local": {"sharing": "local", "model.norm_statistics": "local"},
    "central": {"sharing": "central"},
    "scopes": {
        "sharing": {"encoder/*": "group", "encoder/acc": "same-modalities", "fusion": "frozen", "head": "shared"},
        "model.fusion": {"kind": "gated", "dim": 8},
    },
    "prototypes": {"sharing": "full-model", "model.missing": "prototype"},
    "fine-tuning": {
        "sharing": "full-model",
        "evaluation.fine_tune": {"epochs": 1, "every": 1},
        "model.missing": "zero-input",
        "server.optimizer": {"kind": "fedadam", "lr": 0.03},
        "training.schedule": {"kind": "cosine"},
    },
    "FedProx, entropy weights": {
        "sharing": "full-model",
        "training.proximal_mu": 0.1,
        "server.weighting": "entropy",
        "training.optimizer": {"kind": "adamw", "lr": 0.002},
        "training.modality_dropout": 0.3,
    },
    "FedRep": {"sharing": "private-head", "training.alternate": {"private_epochs": 1, "shared_epochs": 1}},
    "multilabel": {"task": "multilabel", "model.fusion": {"kind": "concat", "dim": 8}},
    "regression": {"task": "regression", "data.classes": None, "data.targets": 2, "model.fusion": {"kind": "mean"}},
    "table": {"data": {"dataset": "table", "path": "table.arrow", "partition": {"kind": "subject"}}},
    "Ray, two actors": {"execution": {"client_resources": {"num_cpus": 1}, "chunk_size": 2}},
    "resumed": {"rounds": 5, "checkpoint.every": 2},
}
STOPPED_AFTER = 3


def tree_of(changes: dict[str, Any]) -> dict[str, Any]:
    """The scenario of a run: `BASE` with some keys replaced by dotted path, None for a key that is left out."""
    tree = json.loads(json.dumps(BASE))
    for path, value in changes.items():
        *sections, key = path.split(".")
        section = tree
        for name in sections:
            section = section.setdefault(name, {})
        section[key] = value
        if value is None:
            del section[key]
    return tree


def compute(names: list[str]) -> dict[str, dict[str, str]]:
    """Run these in the package that this process imports: by run the SHA-256 of each digest and column."""
    from blossom_ray import Run, Scenario, simulate, write_table

    _write_table(write_table)
    found = {}
    for name in names:
        scenario = Scenario.model_validate(tree_of(RUNS[name]))
        if name == "resumed":
            records = simulate(scenario, out="runs", stream=True)
            next(record for record in records if record.round_index == STOPPED_AFTER)
            records.close()
            [folder] = Path("runs").glob("*/*")
            subprocess.run(
                [sys.executable, "-m", "blossom_ray", "resume", str(folder)], check=True, stdout=subprocess.DEVNULL
            )
            run = Run.open(folder)
        else:
            run = simulate(scenario)
        values = {f"digest of {kind} blocks": digest for kind, digest in run.manifest["digest"].items()}
        for table in ("rounds", "clients", "blocks", "failures"):
            for series in getattr(run, table):
                if "seconds" not in series.name:
                    # JSON writes a float with as many digits as tell it from all others.
                    values[f"{table}: {series.name}"] = sha256(json.dumps(series.to_list()).encode()).hexdigest()
        found[name] = values
    return found


def _write_table(write_table: Any) -> None:
    import numpy as np

    from blossom_ray import from_arrays

    random = np.random.default_rng(0)
    labels = random.integers(4, size=320)
    shapes = {"acc": (16, 3), "camera": (1, 8, 8), "gyro": (16, 3)}
    inputs = {
        modality: random.normal(labels.reshape(-1, *[1] * len(shape)), 2.0, (320, *shape)).astype(np.float32)
        for modality, shape in shapes.items()
    }
    write_table(from_arrays(inputs, labels, subjects=np.arange(320) // 20), "table.arrow")


def run_in(checkout: Path, names: list[str], folder: Path) -> dict[str, dict[str, str]]:
    """What `compute` finds with the package of a checkout; `folder` is its working directory."""
    folder.mkdir()
    command = [sys.executable, str(Path(__file__).resolve()), "--here", *names]
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, check=True)
    found: dict[str, dict[str, str]] = json.loads(done.stdout.splitlines()[-1])
    return found


def differences(base: dict[str, str], now: dict[str, str]) -> tuple[list[str], list[str]]:
    """Values of a run that differ, and those that one side alone has."""
    different = [name for name in base.keys() & now.keys() if base[name] != now[name]]
    gone = [f"- {name}" for name in base.keys() - now.keys()]
    return sorted(different), sorted(gone) + sorted(f"+ {name}" for name in now.keys() - base.keys())


def main() -> int:
    """Compare this checkout with a commit of it; 1 where a value differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="runs, default: all")
    parser.add_argument("--base", default="HEAD", help="commit to compare with")
    parser.add_argument("--here", action="store_true", help="compute with the package that is imported, print JSON")
    arguments = parser.parse_args()
    names = arguments.names or list(RUNS)
    if unknown := set(names) - RUNS.keys():
        parser.error(f"no run {', '.join(sorted(unknown))}; there are {', '.join(RUNS)}")
    if arguments.here:
        print(json.dumps(compute(names)))
        return 0
    repository = Path(__file__).resolve().parent.parent
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        archive = subprocess.run(["git", "archive", arguments.base], cwd=repository, check=True, capture_output=True)
        (folder / "base").mkdir()
        subprocess.run(["tar", "-x", "-C", str(folder / "base")], input=archive.stdout, check=True)
        base = run_in(folder / "base", names, folder / "of base")
        now = run_in(repository, names, folder / "of now")
    changed = False
    for run in names:
        different, lone = differences(base[run], now[run])
        changed |= bool(different)
        print(f"{run}: {'DIFFERENT ' + ', '.join(different) if different else 'same'}", *lone, sep="\n    ")
    return int(changed)


if __name__ == "__main__":
    sys.exit(main())
