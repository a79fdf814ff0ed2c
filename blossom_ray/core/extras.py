"""Libraries that come with an extra of this package, imported when they are first needed."""

from __future__ import annotations

import importlib
from types import ModuleType

from blossom_ray.errors import DataError


def module_of_extra(name: str, need: str, extra: str, otherwise: str = "") -> ModuleType:
    """A module that comes with an extra of this package, imported when it is first needed.

    Raises:
        DataError: It cannot be imported. `need` says what it is needed for, `otherwise` what helps besides.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        found = "is not installed" if isinstance(error, ModuleNotFoundError) else f"cannot be imported ({error})"
        raise DataError(f"{need}, which {found}; pip install 'blossom-ray[{extra}]'{otherwise}") from error
