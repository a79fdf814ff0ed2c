"""Whether own code is what it was: checksums of all that a scenario names, as a run's manifest has them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from blossom_ray.core.factories import own_code, resolve_factory
from blossom_ray.core.source_code import code_checksums
from blossom_ray.errors import InputError
from blossom_ray.reading.scenario import Scenario


def own_code_checksums(scenario: Scenario) -> dict[str, str]:
    """The checksums of all own code that a scenario names, as `code_checksums` has them; empty without own code."""
    found: dict[str, str] = {}
    for where, code, options in own_code(dict(scenario)):
        if isinstance(code, str):
            with suppress(InputError):  # what cannot be imported
                resolve_factory(code, where)
        found |= code_checksums(code, options)
    return dict(sorted(found.items()))


def changed_own_code(recorded: object, present: Mapping[str, str]) -> list[str]:
    """The modules and files that are not what they were, sorted; those that are new or gone count if code names them.

    Args:
        recorded: `own_code` of a run's manifest; none where an earlier version wrote it.
        present: From `own_code_checksums`.
    """
    if not isinstance(recorded, Mapping):
        return []
    return sorted(str(name) for name in {*recorded, *present} if recorded.get(name) != present.get(name))
