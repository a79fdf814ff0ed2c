"""The generated reference and the JSON Schema."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from blossom_ray.reading.reference import json_schema, reference_markdown
from blossom_ray.reading.scenario import Scenario

REFERENCE = Path(__file__).parents[2] / "docs" / "scenario-reference.md"


def test_the_committed_reference_is_current():
    renew = "renew it: blossom-ray schema --markdown > docs/scenario-reference.md"
    assert REFERENCE.read_text(encoding="utf-8") == reference_markdown(), renew


def test_the_reference_names_every_top_level_key_and_some_others():
    text = reference_markdown()
    for name in Scenario.model_fields:
        assert f"| `{name}` |" in text
    for row in (
        "| `lr` | a number above 0 | `0.05` | Learning rate. |",
        "| `rounds` | an integer of at least 1 | required |",
        "### `model.encoders.<name>`",
        "**`dataset: uci-har`**",
        "| `modalities` | a section by name | `{}` |",
    ):
        assert row in text


def test_every_field_is_explained():
    assert not [line for line in reference_markdown().splitlines() if line.endswith("|  |")]


def test_the_schema_is_plain_json_of_draft_2020_12():
    schema = json_schema()
    assert json.loads(json.dumps(schema)) == schema
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["required"] == ["rounds", "clients", "model"]
    assert schema["anyOf"] == [{"required": ["data"]}, {"required": ["datasets"]}]
    assert schema["additionalProperties"] is False
    assert schema["properties"]["rounds"]["minimum"] == 1
    assert "Rounds count from 1" in schema["properties"]["rounds"]["description"]
    assert schema["$defs"]["CustomHead"]["properties"]["factory"]["type"] == "string"


def test_validation_loads_no_heavy_package():
    """NumPy comes with the data sets, whose sections stand with their loaders; checking the data needs it anyway."""
    code = (
        "import sys, blossom_ray.reading.scenario, blossom_ray.reading.reference\n"
        "print(sorted({'torch', 'ray', 'polars', 'scipy', 'pyarrow', 'fsspec', 'asyncio'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_sections_of_one_name_are_told_apart_by_their_kind() -> None:
    """What a modality is depends on the data set."""
    text = reference_markdown()
    for kind, keys in {"synthetic": ["signal"], "table": ["buckets", "coefficients", "fit", "nan", "windows"]}.items():
        heading = f"\n### `data.modalities.<name>` with `dataset: {kind}`\n"
        chapter = text.partition(heading)[2].partition("\n### ")[0]
        assert [key for key in keys if f"\n| `{key}` |" not in chapter] == []
