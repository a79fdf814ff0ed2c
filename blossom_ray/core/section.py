"""Section, the base of all sections: what it checks by itself, its plain values; and the types of values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, field_validator

ModalityName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=64)]
Positive = Annotated[int, Field(ge=1, le=1_000_000_000)]
Fraction = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, le=1e38, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, le=1e38, allow_inf_nan=False)]
Factory = str | Callable[..., Any]


class Finding(NamedTuple):
    """A problem without its place: the dotted path and the two phrases of `errors.Problem`."""

    path: str
    found: str
    expected: str


class Section(BaseModel):
    """Base of all sections: immutable, no unknown keys, no silent conversion of types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, arbitrary_types_allowed=True)

    def conflicts(self) -> Iterator[Finding]:
        """Values of this section, right in themselves, that cannot stand together; paths begin at the section."""
        yield from ()


def find_conflicts(value: Any, path: str) -> Iterator[Finding]:
    """The conflicts of a section and of all sections in it.

    Args:
        value: A section, or what holds sections; anything else has none.
        path: Where it stands.
    """
    if isinstance(value, Section):
        yield from (finding._replace(path=f"{path}.{finding.path}") for finding in value.conflicts())
        value = dict(value)
    below = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, tuple) else ()
    for key, item in below:
        yield from find_conflicts(item, f"{path}.{key}")


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


def check_factory(value: Factory) -> Factory:
    """Refuse a text that is not `module:attribute`; a callable passes."""
    if isinstance(value, str):
        names = value.replace(":", ".").split(".")
        if value.count(":") != 1 or not all(name.isidentifier() for name in names):
            raise ValueError("a factory is written as module:attribute")
    return value


class Custom(Section):
    """Own code. Naming it here runs it: use scenarios from people whose code you would run."""

    kind: Literal["custom"]
    factory: Factory
    """`module:attribute` of a callable that builds the module, or, from Python, the callable itself."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments for the factory."""

    _factory = field_validator("factory")(check_factory)
