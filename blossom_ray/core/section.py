"""Section, the base of all sections, and the types of their values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

ModalityName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=64)]
Positive = Annotated[int, Field(ge=1, le=1_000_000_000)]
Fraction = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, le=1e38, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, le=1e38, allow_inf_nan=False)]
Factory = str | Callable[..., Any]


class Section(BaseModel):
    """Base of all sections: immutable, no unknown keys, no silent conversion of types."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, arbitrary_types_allowed=True, use_attribute_docstrings=True
    )


def check_factory(value: Factory) -> Factory:
    """Refuse a text that is not `module:attribute`; a callable passes."""
    if isinstance(value, str) and not all(part.isidentifier() for part in value.replace(":", ".").split(".")):
        raise ValueError("a factory is written as module:attribute")
    if isinstance(value, str) and value.count(":") != 1:
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
