"""A scenario as YAML in which every key is explained, in the words of the sections.

An explanation is the beginning of a field's description: as many sentences as go on a line, at least one. It stands
above the first key that it is about.
"""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from blossom_ray.core.phrases import listed, sentences
from blossom_ray.core.section import Section
from blossom_ray.core.structure import Hint, field_hint, literal_values
from blossom_ray.data.data_keys import DataKeys
from blossom_ray.reading.scenario import Scenario
from blossom_ray.scenario.writer import flow_yaml

_WIDTH = 116


def commented_yaml(scenario: Scenario, *, defaults: bool) -> str:
    """The scenario as YAML 1.2 with comments. Reading the text gives an equal scenario.

    Args:
        scenario: What to write.
        defaults: Whether keys that were left at their defaults appear.

    Raises:
        ScenarioError: An option of a factory is nothing that YAML can hold.
    """
    writer = _Writer(defaults=defaults)
    return "\n".join(writer.section_lines(scenario, Hint(Scenario), ())).lstrip("\n") + "\n"


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
        for name in sorted(fields, key=lambda name: (name != hint.discriminator, name in DataKeys.model_fields)):
            if not self._defaults and name not in section.model_fields_set:
                continue
            own = field_hint(fields[name])
            yield from ([] if path else [""])
            key = f"{type(section).__name__}.{name}"
            if name == hint.discriminator:
                meaning = next(sentences(type(section).__doc__ or ""), "")
                yield from self._comment(key, meaning, hint.kinds, len(path))
            else:
                yield from self._comment(key, fields[name].description or "", _choices(own), len(path))
            yield from self._entry_lines(name, getattr(section, name), own, (*path, name))

    def _entry_lines(self, name: str, value: Any, hint: Hint, path: tuple[str, ...]) -> Iterator[str]:
        """A key with its value, whatever it is."""
        if isinstance(value, Section):
            yield f"{name}:"
            yield from _indented(self.section_lines(value, hint, path))
        elif isinstance(value, Mapping) and any(isinstance(item, Section) for item in value.values()):
            yield f"{name}:"
            for key, item in value.items():
                lines = self._entry_lines(flow_yaml(key, ""), item, hint.item or hint, (*path, key))
                yield from _indented(lines)
        elif isinstance(value, tuple) and any(isinstance(item, Section) for item in value):
            yield f"{name}:"
            for index, item in enumerate(value):
                lines = self.section_lines(item, hint.item or hint, (*path, str(index)))
                yield from _indented(_list_item(list(lines)))
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
        lines = textwrap.wrap(words, width, break_long_words=False, break_on_hyphens=False)
        if not all(f"`{choice}`" in words for choice in choices):
            lines.append(f"Choices: {listed(choices)}.")
        return [f"# {line}" for line in lines]


def _choices(hint: Hint) -> tuple[Any, ...]:
    """The values that an annotation lists, be it in a union; empty where it lists none."""
    return literal_values(hint) or tuple(value for member in hint.members for value in literal_values(member))


def _indented(lines: Iterator[str]) -> Iterator[str]:
    return (f"  {line}" for line in lines)


def _list_item(lines: list[str]) -> Iterator[str]:
    """The lines of a section as those of a list's item: its first key after a dash, comments above it as they are."""
    first = next(index for index, line in enumerate(lines) if not line.startswith("#"))
    yield from lines[:first]
    yield f"- {lines[first]}"
    yield from (f"  {line}" for line in lines[first + 1 :])
