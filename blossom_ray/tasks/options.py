"""The section of a metric of one's own."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator

from blossom_ray.core.section import Factory, Section, check_factory

MetricName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$", max_length=64)]


class Metric(Section):
    """A metric of your own: `function(labels, outputs, **options)` of one client's test samples gives a number."""

    function: Factory
    """`module:attribute` of the function, or, from Python, the function itself."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments for the function."""
    lower_is_better: bool = False
    """Whether smaller values are better, as for an error; comparisons look for the best round by it."""
    is_share: bool = False
    """Whether it runs from 0 to 1 and comparisons show it in percent."""

    _function = field_validator("function")(check_factory)
