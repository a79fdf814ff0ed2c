"""How settings are set out for people: in which keys tables and panels differ, and in which their rows and curves do.

The console's tables, those of reports, heat maps and panels of curves are all cut like this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from blossom_ray.studies.comparison.pairing import PLAIN, SCORING
from blossom_ray.studies.sweeps.grid import short_labels

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Grouping:
    """Where the value of each key stands.

    Attributes:
        above: Keys whose values head a table or a panel: there is one for each combination.
        beside: Keys whose values tell the rows of a table, or the curves of a panel, apart.
        labels: A short name for each of all keys.
    """

    above: Sequence[str]
    beside: Sequence[str]
    labels: Mapping[str, str]

    def panel(self, setting: Mapping[str, Any]) -> str:
        """What heads the table of a setting: `partition iid, missing mask`; "" where there is one table alone."""
        return ", ".join(f"{self.labels[key]} {setting[key]}" for key in self.above)

    def name(self, setting: Mapping[str, Any]) -> str:
        """What tells a setting apart there: `full-model, fine-tuned`; "" where it has no others."""
        return ", ".join(str(setting[key]) for key in self.beside if (key, setting[key]) != (SCORING, PLAIN))

    @property
    def heading(self) -> str:
        """What the names are values of: `sharing`; "" where all are empty."""
        return ", ".join(self.labels[key] for key in self.beside if key != SCORING)

    def panels(
        self, items: Iterable[_Item], setting: Callable[[_Item], Mapping[str, Any]]
    ) -> dict[str, dict[str, list[_Item]]]:
        """Items by panel and name of their settings, in order."""
        found: dict[str, dict[str, list[_Item]]] = {}
        for item in items:
            place = setting(item)
            found.setdefault(self.panel(place), {}).setdefault(self.name(place), []).append(item)
        return found


def grouping_of(settings: Sequence[Mapping[str, Any]], keys: Sequence[str], baseline: Iterable[str]) -> Grouping:
    """The grouping of some settings: a scheme and what it is compared with stand beside each other.

    Args:
        settings: With a value for each key.
        keys: The keys. Those whose value is the same in all settings stand nowhere.
        baseline: The keys in which settings are compared with one of them; where none of these varies, nor the
            scoring, the last key that does takes their place.
    """
    varied = [key for key in keys if len({setting[key] for setting in settings}) > 1]
    beside = [key for key in varied if key in (*baseline, SCORING)] or varied[-1:]
    return Grouping([key for key in varied if key not in beside], beside, key_labels(keys))


def key_labels(keys: Iterable[str]) -> dict[str, str]:
    """A short name for each key: `fusion` for `model.fusion.kind`."""
    return {key: "scenario" if key == "name" else label for key, label in short_labels(keys).items()}
