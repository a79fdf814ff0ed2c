"""Own algorithms for tests: one that uses every word of the seam, and one that kills its process once."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from blossom_ray.algorithms.ditto import Ditto
from blossom_ray.algorithms.fedproto import FedProto
from blossom_ray.algorithms.moon import Moon
from blossom_ray.algorithms.scaffold import Scaffold
from blossom_ray.algorithms.seam import Client, Extra, Layout, Pass, Sent, ServerView, Tree


class Everything:
    """Every scope, every first value, selection, admission, rows, corrections, an own model to be scored."""

    rows = ("report",)

    def extras(self, layout: Layout) -> dict[str, Extra]:
        return {
            "copy": Extra(layout.averaged, scope="private", initial="received"),
            "kin": Extra(layout.averaged, scope="same-modalities", initial="seeded"),
            "lean": Extra(layout.averaged, shape=(), initial=0.5),
            "times drawn": Extra(shape=(layout.num_clients,), scope="server"),
            "report": Extra(shape=(), scope="shared"),
            "own": Extra(shape=(2,), scope="client"),
            "noise": Extra(layout.averaged, scope="drawn", initial="normal"),
            "samples": Extra(shape=(), scope="private"),
        }

    def select(self, s: ServerView, candidates: Any, size: int, draw: Any) -> list[int]:
        """Who was drawn least often, ties at random."""
        score = s.all["times drawn"]["", ""] + draw.random(len(candidates))
        return [int(client) for client in score.argsort(kind="stable")[:size]]

    def passes(self, k: Client) -> list[Pass]:
        return [Pass(offset=0.01 * k["noise"], anchor=k["copy"], mu=0.05)]

    def finish(self, k: Client) -> dict[str, Any]:
        samples = k["samples"] + k.num_samples
        return {
            "copy": 0.5 * (k["copy"] + k.new),
            "kin": Sent(k.new),
            "lean": Sent(0.9 * k["lean"]),
            "report": Sent(samples, 1),
            "own": Sent(k["own"] + samples, 1),
            "samples": samples,
        }

    def admit(self, s: ServerView) -> dict[str, dict[Any, Any]]:
        """Every second one for `kin`."""
        return {"kin": {key: members[::2] for key, members in s.members["kin"].items()}}

    def server(self, s: ServerView) -> dict[str, Tree]:
        times = s.all["times drawn"]["", ""].copy()
        times[s.members["report"]["", ""]] += 1
        return {"times drawn": Tree({("", ""): times})}

    def scored(self, x: Any) -> Tree:
        mixed: Tree = 0.5 * (x["copy"] + x["model"].only(x["copy"]))
        return mixed


def deadly(kind: str, marks: str) -> Any:
    """An algorithm that kills its process once, in a client: a file in the folder `marks` says that it has."""
    made: dict[str, Any] = {
        "scaffold": Scaffold(kind="scaffold"),
        "ditto": Ditto(kind="ditto"),
        "moon": Moon(kind="moon"),
        "fedproto": FedProto(kind="fedproto"),
        "own": Everything(),
    }
    algorithm = made[kind]

    class Deadly:
        def __getattr__(self, name: str) -> Any:
            function = getattr(algorithm, name)
            if name != ("loss" if kind in ("moon", "fedproto") else "passes"):
                return function

            def lethal(given: Any) -> Any:
                struck = Path(marks, "struck")
                if getattr(given, "round", 2) == 2 and not struck.exists():
                    struck.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(given)

            return lethal

    return Deadly()
