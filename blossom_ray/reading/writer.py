"""From a scenario back to YAML: bare, or with every key explained in the words of the sections.

An explanation is the beginning of a field's description: as many sentences as go on a line, at least one. It stands
above the first key that it is about.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.representer import SafeRepresenter

from blossom_ray.core.phrases import listed, sentences, shown
from blossom_ray.core.section import Section, plain_tree
from blossom_ray.core.structure import Hint, field_hint, literal_values, meaning_of
from blossom_ray.data.division.options import Division
from blossom_ray.errors import Problem, ScenarioError
from blossom_ray.scenario.tree import ScenarioTree

# Bare, these are no text in one version of YAML or another.
_NOT_WORDS = frozenset({"null", "true", "false", "yes", "no", "on", "off", "y", "n"})


_WIDTH = 116


def scenario_yaml(scenario: ScenarioTree) -> str:
    """The resolved scenario as YAML 1.2: all defaults spelled out, in the order of the reference.

    Reading the text gives an equal scenario. A callable is written as `module:qualname`; one that no module holds
    (a lambda, a function inside a function) is written the same way, and refused when the text is read.

    Raises:
        ScenarioError: An option of a factory is nothing that YAML can hold.
    """
    return _dump(written_tree(scenario))


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
    # A document of a scalar ends with a line of its own.
    return _dump(_writable(value, path), flow=True).strip().removesuffix("\n...")


def _dump(tree: Any, *, flow: bool | None = None) -> str:
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


def _represent_text(representer: SafeRepresenter, text: str) -> ScalarNode:
    is_word = re.fullmatch(r"[A-Za-z][A-Za-z0-9_./+-]*", text) and text.lower() not in _NOT_WORDS
    return representer.represent_scalar("tag:yaml.org,2002:str", text, style=None if is_word else '"')


_QuotingRepresenter.add_representer(str, _represent_text)


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


def commented_yaml(scenario: ScenarioTree, *, defaults: bool) -> str:
    """The scenario as YAML 1.2 with comments. Reading the text gives an equal scenario.

    Args:
        scenario: What to write.
        defaults: Whether keys that were left at their defaults appear.

    Raises:
        ScenarioError: An option of a factory is nothing that YAML can hold.
    """
    writer = _Writer(defaults=defaults)
    return "\n".join(writer.section_lines(scenario, Hint(type(scenario)), ())).lstrip("\n") + "\n"


class _Writer:
    def __init__(self, *, defaults: bool) -> None:
        self._defaults = defaults
        self._explained: set[str] = set()

    def section_lines(self, section: Section, hint: Hint, path: tuple[str, ...]) -> Iterator[str]:
        """The keys of a section, each below its explanation.

        Args:
            section: What to write.
            hint: The annotation that it meets; tells which kinds there are.
            path: Where it stands.
        """
        fields = type(section).model_fields
        # What makes a data set this one goes before what all data sets have.
        for name in sorted(fields, key=lambda name: (name != hint.discriminator, name in Division.model_fields)):
            if not self._defaults and name not in section.model_fields_set:
                continue
            own = field_hint(fields[name])
            yield from ([] if path else [""])
            key = f"{type(section).__name__}.{name}"
            if name == hint.discriminator:
                meaning = next(sentences(type(section).__doc__ or ""), "")
                yield from self._comment(key, meaning, hint.kinds, len(path))
            else:
                choices = [value for each in (own, *own.members) for value in literal_values(each)]
                yield from self._comment(key, meaning_of(type(section), name), choices, len(path))
            yield from self._entry_lines(name, getattr(section, name), own, (*path, name))

    def _entry_lines(self, name: str, value: Any, hint: Hint, path: tuple[str, ...]) -> Iterator[str]:
        """A key with its value, whatever it is."""
        if isinstance(value, Section):
            yield f"{name}:"
            yield from _indent(self.section_lines(value, hint, path))
        elif isinstance(value, Mapping) and any(isinstance(item, Section) for item in value.values()):
            yield f"{name}:"
            for key, item in value.items():
                lines = self._entry_lines(flow_yaml(key, ""), item, hint.item or hint, (*path, key))
                yield from _indent(lines)
        elif isinstance(value, tuple) and any(isinstance(item, Section) for item in value):
            yield f"{name}:"
            for index, item in enumerate(value):
                lines = self.section_lines(item, hint.item or hint, (*path, str(index)))
                yield from _indent(_list_item(list(lines)))
        else:
            yield f"{name}: {flow_yaml(value, '.'.join(path))}"

    def _comment(self, key: str, text: str, choices: Collection[Any], depth: int) -> list[str]:
        """What a key means and which values it has, where that was not said before."""
        if key in self._explained:
            return []
        self._explained.add(key)
        width = _WIDTH - 2 * depth
        words = ""
        for sentence in sentences(text):
            longer = f"{words} {sentence}".strip()
            if words and len(longer) > width:
                break
            words = longer
        said = [words] if all(f"`{choice}`" in words for choice in choices) else [words, f"Choices: {listed(choices)}."]
        wrapped = (textwrap.wrap(each, width, break_long_words=False, break_on_hyphens=False) for each in said)
        return [f"# {line}" for lines in wrapped for line in lines]


def _indent(lines: Iterator[str]) -> Iterator[str]:
    return (f"  {line}" for line in lines)


def _list_item(lines: list[str]) -> Iterator[str]:
    """The lines of a section as those of a list's item: its first key after a dash, comments above it as they are."""
    first = next(index for index, line in enumerate(lines) if not line.startswith("#"))
    yield from lines[:first]
    yield f"- {lines[first]}"
    yield from (f"  {line}" for line in lines[first + 1 :])
