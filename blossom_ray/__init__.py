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

    from blossom_ray.api import simulate
    from blossom_ray.blocks import BlockInstance, Scope, SharingScheme
    from blossom_ray.comparison.comparing import Comparison, compare
    from blossom_ray.data.arrays import from_arrays
    from blossom_ray.data.dataset import Dataset
    from blossom_ray.data.table_writer import write_table
    from blossom_ray.errors import BlossomError, DataError, RunError, ScenarioError
    from blossom_ray.metrics import personalization_gain
    from blossom_ray.records import RoundRecord
    from blossom_ray.reporting import report
    from blossom_ray.reporting.live import live_figure
    from blossom_ray.results.run import Run
    from blossom_ray.scenario import Scenario
    from blossom_ray.sweeps.folder import Sweep
    from blossom_ray.sweeps.sweeping import sweep

    __version__: str

_HOME = {
    "BlockInstance": "blocks",
    "BlossomError": "errors",
    "Comparison": "comparison.comparing",
    "DataError": "errors",
    "Dataset": "data.dataset",
    "RoundRecord": "records",
    "Run": "results.run",
    "RunError": "errors",
    "Scenario": "scenario",
    "ScenarioError": "errors",
    "Scope": "blocks",
    "SharingScheme": "blocks",
    "Sweep": "sweeps.folder",
    "compare": "comparison.comparing",
    "from_arrays": "data.arrays",
    "live_figure": "reporting.live",
    "personalization_gain": "metrics",
    "report": "reporting",
    "simulate": "api",
    "sweep": "sweeps.sweeping",
    "write_table": "data.table_writer",
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
