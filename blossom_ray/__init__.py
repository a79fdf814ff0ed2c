"""blossom-ray: a simulator for multimodal federated learning with block-wise aggregation, on Ray.

The names here are the scripting interface. They are imported when they are first used, so that `import blossom_ray`
and `blossom-ray --help` answer at once.
"""

from __future__ import annotations

# Type checkers take it for true. Importing `typing` takes longer than all that stands here, and a Ctrl-C meanwhile
# would end a command in a traceback.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from blossom_ray.core.blocks import BlockInstance, Scope, SharingScheme
    from blossom_ray.core.records import RoundRecord
    from blossom_ray.data.arrays import from_arrays
    from blossom_ray.data.dataset import Dataset
    from blossom_ray.data.table.writer import write_table
    from blossom_ray.errors import BlossomError, DataError, RunError, ScenarioError
    from blossom_ray.reading.scenario import Scenario
    from blossom_ray.runs.folder import Run
    from blossom_ray.runs.session import simulate
    from blossom_ray.studies.comparison.comparing import Comparison, compare
    from blossom_ray.studies.reports.live import live_figure
    from blossom_ray.studies.reports.report import report
    from blossom_ray.studies.sweeps.folder import Sweep
    from blossom_ray.studies.sweeps.sweeping import sweep
    from blossom_ray.tasks.summary import personalization_gain

    __version__: str

_HOME = {
    "BlockInstance": "core.blocks",
    "BlossomError": "errors",
    "Comparison": "studies.comparison.comparing",
    "DataError": "errors",
    "Dataset": "data.dataset",
    "RoundRecord": "core.records",
    "Run": "runs.folder",
    "RunError": "errors",
    "Scenario": "reading.scenario",
    "ScenarioError": "errors",
    "Scope": "core.blocks",
    "SharingScheme": "core.blocks",
    "Sweep": "studies.sweeps.folder",
    "compare": "studies.comparison.comparing",
    "from_arrays": "data.arrays",
    "live_figure": "studies.reports.live",
    "personalization_gain": "tasks.summary",
    "report": "studies.reports.report",
    "simulate": "runs.session",
    "sweep": "studies.sweeps.sweeping",
    "write_table": "data.table.writer",
}

__all__ = [
    "BlockInstance",
    "BlossomError",
    "Comparison",
    "DataError",
    "Dataset",
    "RoundRecord",
    "Run",
    "RunError",
    "Scenario",
    "ScenarioError",
    "Scope",
    "SharingScheme",
    "Sweep",
    "__version__",
    "compare",
    "from_arrays",
    "live_figure",
    "personalization_gain",
    "report",
    "simulate",
    "sweep",
    "write_table",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        # Asked for only when needed: the core also runs from a folder, where it is not installed, and the command line
        # is to hear Ctrl-C from its first milliseconds on.
        from importlib.metadata import version

        return version("blossom-ray")
    if name in _HOME:
        from importlib import import_module

        return getattr(import_module(f"blossom_ray.{_HOME[name]}"), name)
    raise AttributeError(f"module 'blossom_ray' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
