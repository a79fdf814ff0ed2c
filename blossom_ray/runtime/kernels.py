"""What chooses the kernels that a process computes with on its CPU: another choice gives other last bits."""

from __future__ import annotations

import json
import os
import platform
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from blossom_ray.clients.options import EngineName

_VARIABLES = (
    "ATEN_CPU_CAPABILITY",
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
)
"""Environment variables by which a library takes other kernels than its processor would have it take."""
_LIBRARIES = {
    "mkl": re.compile(r"Math Kernel Library Version (\d[\d.]*)"),
    "onednn": re.compile(r"MKL-DNN v(\d[\d.]*)"),
}
_COUNT = "processes"

Kernels = Mapping[str, Any]


def kernels(engines: Collection[EngineName] = ()) -> Kernels:
    """What chooses the kernels of this process.

    Args:
        engines: Those that clients are computed with, here or elsewhere.

    Returns:
        `processor` (its model), `cpu_capability` (the vector instructions that PyTorch's own kernels use), `libraries`
        (version by name of those that PyTorch was built with, and as `cc` that of the engine `compiled`'s compiler),
        `variables` (value by name of the environment variables that choose kernels and are set), `processes` (1).
        Threads are not among them: each process computes with one.
    """
    import torch

    from blossom_ray.clients.compiled.library import library, missing_library

    build = torch.__config__.show()
    found = {name: pattern.search(build) for name, pattern in _LIBRARIES.items()}
    has_compiled = "compiled" in engines and missing_library() is None
    compiler = {"cc": library().compiler} if has_compiled else {}
    return {
        _COUNT: 1,
        "processor": _processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "libraries": {name: match[1] for name, match in found.items() if match is not None} | compiler,
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }


def merge_kernels(*parts: Iterable[Kernels]) -> list[dict[str, Any]]:
    """Each of the descriptions of some processes once, with their number.

    Args:
        parts: Descriptions of processes at one time, such as the beginning and the end of a run. A description that
            several times have counts with the most processes that one of them had.
    """
    known: dict[str, Kernels] = {}
    most: Counter[str] = Counter()
    for part in parts:
        here: Counter[str] = Counter()
        for described in part:
            same = json.dumps({**described, _COUNT: 0}, sort_keys=True)
            known.setdefault(same, described)
            here[same] += described[_COUNT]
        most |= here
    return [{**known[same], _COUNT: count} for same, count in most.items()]


def _processor() -> str:
    """The processor's model, as Linux names it; elsewhere what Python knows of it."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return model[1].strip() if model is not None else platform.processor() or platform.machine()
