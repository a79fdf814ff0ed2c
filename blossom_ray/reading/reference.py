"""The scenario's documentation, generated from its sections: JSON Schema for editors, Markdown for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic.fields import FieldInfo
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import PydanticUndefined
from pydantic_core.core_schema import ModelSchema

from blossom_ray.core.phrases import accepted, is_factory, listed
from blossom_ray.core.section import Section, plain_tree
from blossom_ray.core.structure import Hint, field_hint, meaning_of, section_fields
from blossom_ray.reading.scenario import Scenario
from blossom_ray.reading.writer import flow_yaml

_INTRODUCTION = """\
# Scenario reference

<!-- Generated from blossom_ray/scenario/sections/: blossom-ray schema --markdown > docs/scenario-reference.md -->

A scenario is one YAML 1.2 file. With nothing else it fixes the numbers of a run. Keys that are not listed here are
refused, and so are keys given twice; `blossom-ray validate scenario.yaml` reports every problem with its line.
Any value can be replaced on the command line by its dotted path: `--set training.optimizer.lr=0.01`,
`--set clients.0.count=20`. Replacing a `kind` keeps the keys that both kinds have and drops the others.

The least that a scenario says:

```yaml
rounds: 20
data: {dataset: synthetic}
clients:
  - {count: 5, modalities: [acc]}
  - {count: 5, modalities: [acc, gyro]}
model:
  encoders: {acc: {kind: conv-gru}, gyro: {kind: conv-gru}}
```

A *required* key has no default. Sections that are left out take their defaults.
"""


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a scenario file; own code appears as text, `module:attribute`."""
    schema = Scenario.model_json_schema(schema_generator=_WithMeanings)
    schema["anyOf"] = [{"required": ["data"]}, {"required": ["datasets"]}]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "blossom-ray scenario"}


class _WithMeanings(GenerateJsonSchema):
    """Pydantic's schema, with what the keys mean."""

    def model_schema(self, schema: ModelSchema) -> JsonSchemaValue:
        found = super().model_schema(schema)
        for name, own in found["properties"].items():
            if meaning := meaning_of(schema["cls"], name):
                own["description"] = meaning
        return found


def reference_markdown() -> str:
    """The scenario reference: the parts of the file in order, each with its keys."""
    return "\n".join([_INTRODUCTION, *_chapter("", Hint(Scenario), "The file", 2)]).rstrip() + "\n"


def _chapter(path: str, hint: Hint, title: str, level: int) -> Iterator[str]:
    """Heading, tables and chapters below of one part of the file."""
    yield f"{'#' * level} {title}\n"
    if hint.kinds:
        yield from _choice(hint)
        kinds = hint.kinds
    else:
        assert hint.section is not None, f"{path} is no section"
        yield f"{_prose(hint.section.__doc__)}\n"
        yield _table(hint.section, list(section_fields(hint.section)))
        kinds = {"": hint.section}
    names = dict.fromkeys(name for section in kinds.values() for name in section.model_fields if name != "datasets")
    for name in names:  # `datasets` are as `data`
        # Kinds of one part may have different sections of one name.
        found: dict[tuple[str, Any], list[str]] = {}
        for kind, section in kinds.items():
            field = section.model_fields.get(name)
            below = None if field is None else _sections_below(f"{path}.{name}".lstrip("."), field_hint(field))
            if below is not None:
                found.setdefault(below, []).append(kind)
        for (place, own), of in found.items():
            whose = f" with {listed(f'`{hint.discriminator}: {kind}`' for kind in of)}" if len(found) > 1 else ""
            yield from _chapter(place, own, f"`{place}`{whose}", min(level + 1, 3) if path else 2)


def _choice(hint: Hint) -> Iterator[str]:
    """A part with kinds: the keys that all of them have, then each kind with its own."""
    key = str(hint.discriminator)
    kinds = hint.kinds
    shared = [name for name in next(iter(kinds.values())).model_fields if _is_shared(name, kinds)]
    when = "required" if hint.default_kind is None else f"default `{hint.default_kind}`"
    yield f"`{key}` ({when}) is one of {listed(f'`{kind}`' for kind in kinds)}.\n"
    if shared:
        yield f"Keys whatever the `{key}`:\n"
        yield _table(next(iter(kinds.values())), shared)
    for kind, section in kinds.items():
        yield f"**`{key}: {kind}`**: {_prose(section.__doc__)}\n"
        own = [name for name in section_fields(section) if name != key and name not in shared]
        if own:
            yield _table(section, own)


def _is_shared(name: str, kinds: dict[str, type[Section]]) -> bool:
    return (
        all(name in section.model_fields for section in kinds.values())
        and len({_row(section, name) for section in kinds.values()}) == 1
    )


def _sections_below(path: str, hint: Hint) -> tuple[str, Hint] | None:
    """Path and hint of the section, or choice of sections, that a field holds, be it in a list or a map."""
    if hint.section is not None or hint.kinds:
        return path, hint
    if len(hint.members) == 1:  # a section or null
        return _sections_below(path, hint.members[0])
    if sections := [member for member in hint.members if member.section is not None]:  # a section or a plain value
        return path, sections[0]
    if hint.item is None:
        return None
    name = "<name>" if hint.key is not None else "<index>"
    return _sections_below(f"{path}.{name}", hint.item)


def _table(section: type[Section], names: list[str]) -> str:
    rows = [_row(section, name) for name in names]
    return "\n".join(["| key | accepts | default | meaning |", "| --- | --- | --- | --- |", *rows]) + "\n"


def _row(section: type[Section], name: str) -> str:
    field = section.model_fields[name]
    cells = (f"`{name}`", _accepts(field_hint(field)), _default(field), _prose(meaning_of(section, name)))
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _accepts(hint: Hint) -> str:
    if hint.kinds:
        return f"one of the kinds {listed(f'`{kind}`' for kind in hint.kinds)}"
    if hint.section is not None:
        return "a section"
    if hint.item is not None and hint.item.section is not None and hint.members:
        return " or ".join(map(_accepts, hint.members))
    if hint.item is not None and hint.item.section is not None:
        return "a list of sections, at least one" if hint.key is None else "a section by name"
    if hint.item is not None and hint.item.kinds:
        return "a section by name" + (", at least one" if hint.constraint("min_length") else "")
    return "`module:attribute`" if is_factory(hint) else accepted(hint)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    assert value is not PydanticUndefined, field
    if isinstance(value, Section):
        set_values = plain_tree(value, defaults=False)
        return f"`{flow_yaml(set_values, '')}`" if set_values else "its own defaults"
    return f"`{flow_yaml(value, '')}`"


def _prose(text: str | None) -> str:
    return " ".join((text or "").split())
