"""From a scenario back to plain values and to YAML."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.representer import SafeRepresenter

from blossom_ray.core.phrases import shown
from blossom_ray.core.section import Section
from blossom_ray.errors import Problem, ScenarioError
from blossom_ray.scenario.tree import ScenarioTree

# Bare, these are no text in one version of YAML or another.
_NOT_WORDS = frozenset({"null", "true", "false", "yes", "no", "on", "off", "y", "n"})


def scenario_yaml(scenario: ScenarioTree) -> str:
    """The resolved scenario as YAML 1.2: all defaults spelled out, in the order of the reference.

    Reading the text gives an equal scenario. A callable is written as `module:qualname`; one that no module holds
    (a lambda, a function inside a function) is written the same way, and refused when the text is read.

    Raises:
        ScenarioError: An option of a factory is nothing that YAML can hold.
    """
    return _dumped(written_tree(scenario))


def written_tree(scenario: ScenarioTree) -> dict[str, Any]:
    """What `scenario_yaml` writes, as a tree of plain values; callables by `module:qualname`.

    Raises:
        ScenarioError: As `scenario_yaml`.
    """
    tree: dict[str, Any] = _writable(plain_tree(scenario, defaults=True), "")
    return tree


def flow_yaml(value: Any, path: str) -> str:
    """A value without sections in one line of YAML 1.2, such as `[acc, gyro]`.

    Args:
        value: What a key of a scenario holds.
        path: The key's dotted path, for messages.

    Raises:
        ScenarioError: It is nothing that YAML can hold.
    """
    # In a list, since a document of a scalar ends with a line of its own.
    return _dumped([_writable(value, path)], flow=True).strip()[1:-1]


def _dumped(tree: Any, *, flow: bool | None = None) -> str:
    yaml = YAML(typ="safe", pure=True)
    yaml.Representer = _QuotingRepresenter
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # ruamel annotates its default alone
    # No folding: a folded text with escapes may read back with a space more or less.
    yaml.width = 10**9
    # Escaped: the emitter would write some of Unicode's line breaks as they are, and they would read back as others.
    yaml.allow_unicode = False
    if flow is not None:
        yaml.default_flow_style = flow
    stream = io.StringIO()
    yaml.dump(tree, stream)
    return stream.getvalue()


class _QuotingRepresenter(SafeRepresenter):
    """Quotes every text that is not a plain word, rather than trust that a reader sees the same in it bare."""


def _quoted(representer: SafeRepresenter, text: str) -> ScalarNode:
    is_word = re.fullmatch(r"[A-Za-z][A-Za-z0-9_./+-]*", text) and text.lower() not in _NOT_WORDS
    return representer.represent_scalar("tag:yaml.org,2002:str", text, style=None if is_word else '"')


_QuotingRepresenter.add_representer(str, _quoted)


def plain_tree(section: Section, *, defaults: bool) -> dict[str, Any]:
    """A section as a dict of its fields, sections below it as dicts too; other values as they are.

    Args:
        section: The section.
        defaults: Whether fields that were left at their defaults appear.
    """
    names = [name for name in type(section).model_fields if defaults or name in section.model_fields_set]
    names.sort(key=lambda name: name not in ("kind", "dataset"))
    return {name: _plain(getattr(section, name), defaults) for name in names}


def _plain(value: Any, defaults: bool) -> Any:
    if isinstance(value, Section):
        return plain_tree(value, defaults=defaults)
    if isinstance(value, Mapping):
        return {key: _plain(item, defaults) for key, item in value.items()}
    if isinstance(value, tuple) and any(isinstance(item, Section) for item in value):
        return [_plain(item, defaults) for item in value]
    return value


def _writable(value: Any, path: str) -> Any:
    if value is None or type(value) in (str, bool, int, float):
        return value
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _writable(item, f"{path}.{key}".lstrip(".")) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_writable(item, f"{path}.{index}") for index, item in enumerate(value)]
    if callable(value):
        name = getattr(value, "__qualname__", f"{type(value).__qualname__}()")
        return f"{getattr(value, '__module__', type(value).__module__)}:{name}"
    expected = "text, a number, true, false, null, or a list or mapping of them"
    raise ScenarioError((Problem(path, shown(value), expected),))
