"""Own code named in a scenario: `module:attribute` to the callable that it stands for."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from blossom_ray.core.section import Custom, Factory
from blossom_ray.errors import OWN_CODE_RAISES, InputError, shown_error


def resolve_factory(factory: Factory, where: str) -> Callable[..., Any]:
    """The callable that a scenario names.

    Modules are found as by `python -m`: among the installed ones, then in the working directory.

    Args:
        factory: `module:attribute` (the attribute may be dotted), or the callable itself.
        where: Dotted path of the value inside the scenario, such as `data.factory`; messages name it.

    Raises:
        InputError: The module cannot be imported, it has no such attribute, or the attribute is not callable.
    """
    if not isinstance(factory, str):
        return _check_callable(factory, where, f"is {factory!r}")
    module_name, _, attribute = factory.partition(":")
    if not module_name or not attribute:
        raise InputError(f"{where} is {factory!r}; expected module:attribute")
    found: Any = _import(module_name, where, factory)
    for name in attribute.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise InputError(
                f"{where} is {factory!r}, but {module_name} has no attribute {attribute!r}; "
                f"expected the name of a callable in that module"
            ) from None
    return _check_callable(found, where, f"is {factory!r}, which is of type {type(found).__name__}")


def call_factory(section: Custom, where: str, *arguments: object) -> Any:
    """What the factory of a section gives for some arguments and the section's options.

    Args:
        section: Names the factory and its keyword arguments.
        where: Its place in the scenario, for messages.
        arguments: The factory's positional arguments.

    Raises:
        InputError: The factory cannot be found, or raises.
    """
    factory = resolve_factory(section.factory, f"{where}.factory")
    try:
        return factory(*arguments, **section.options)
    except OWN_CODE_RAISES as error:
        raise InputError(f"{where}.factory raised {shown_error(error)}") from error


def shown_factory(section: Custom) -> str:
    """The name of a section's factory."""
    factory = section.factory
    return factory if isinstance(factory, str) else getattr(factory, "__qualname__", type(factory).__qualname__)


def factory_problems(sections: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Own code other than data that cannot be found; importing it runs it.

    Args:
        sections: The top-level values of a scenario that are right in themselves.

    Returns:
        For each problem its path inside the scenario, what was found and what is expected, as in `errors.Problem`.
    """
    problems = []
    for where, code, _ in own_code(sections):
        if where.startswith(_OF_DATA):
            continue  # the data are looked at as a whole, their code with them
        try:
            resolve_factory(code, where)
        except InputError as error:
            found, _, expected = str(error).partition("; expected ")
            problems.append((where, found.removeprefix(f"{where} "), expected or "code that can be imported"))
    return problems


_OF_DATA = ("data.", "datasets.")


def own_code(sections: Mapping[str, Any]) -> Iterator[tuple[str, Factory, Mapping[str, Any]]]:
    """All own code that these sections name: its path inside the scenario, the code, and its options."""
    parts: dict[str, object] = {}
    if (model := sections.get("model")) is not None:
        parts |= {f"model.encoders.{name}": part for name, part in model.encoders.items()}
        parts |= {"model.fusion": model.fusion, "model.head": model.head}
    if (training := sections.get("training")) is not None:
        parts["training.loss"] = training.loss
        parts |= {f"training.transform.{name}": part for name, part in training.transform.items()}
    parts["algorithm"] = sections.get("algorithm")
    if (server := sections.get("server")) is not None:
        parts["server.optimizer"] = server.optimizer
    for where, part in parts.items():
        if isinstance(part, Custom):
            yield f"{where}.factory", part.factory, part.options
    data_sets: dict[str, Any] = {"data": sections.get("data")}
    data_sets |= {f"datasets.{name}": data for name, data in (sections.get("datasets") or {}).items()}
    for where, data in data_sets.items():
        if (factory := getattr(data, "factory", None)) is not None:
            yield f"{where}.factory", factory, data.options
        for name, modality in (getattr(data, "modalities", None) or {}).items():
            features = getattr(modality, "features", None)
            if features is not None and features.module is not None:
                given = {**features.options, "weights": features.weights}
                yield f"{where}.modalities.{name}.features.module", features.module, given
    if (evaluation := sections.get("evaluation")) is not None:
        for name, metric in evaluation.metrics.items():
            yield f"evaluation.metrics.{name}.function", metric.function, metric.options


def _check_callable(found: Any, where: str, description: str) -> Callable[..., Any]:
    if not callable(found):
        raise InputError(f"{where} {description}; expected a callable")
    checked: Callable[..., Any] = found
    return checked


def _import(module_name: str, where: str, factory: str) -> object:
    # At the end, so that no file of the user's hides an installed module; and for good, since the user's code
    # may import its neighbours only when it is called.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
        importlib.invalidate_caches()
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
            raise InputError(
                f"{where} is {factory!r}, but there is no module {error.name!r}; "
                f"expected a module that is installed or lies in the working directory"
            ) from None
        raise InputError(f"{where} is {factory!r}, whose import needs a missing module: {error}") from error
    except OWN_CODE_RAISES as error:
        raise InputError(
            f"{where} is {factory!r}, whose import raised {shown_error(error)}; expected a module that can be imported"
        ) from error
