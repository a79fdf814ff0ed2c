"""Numbers change only when somebody means them to: short runs against committed curves."""

import importlib.util
import json
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden"
_spec = importlib.util.spec_from_file_location("renew", GOLDEN / "renew.py")
assert _spec is not None
assert _spec.loader is not None
renew = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(renew)


@pytest.mark.parametrize("name", renew.RUNS)
def test_curves_are_as_committed(name: str) -> None:
    committed = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    found = renew.curves(name)
    assert set(found) == set(committed)
    for metric, values in committed.items():
        # Processors differ in last bits, and a sample or two may then fall on the other side.
        tolerance = 1e-3 if "loss" in metric else 0.02
        assert found[metric] == pytest.approx(values, rel=tolerance, abs=tolerance), (
            f"{metric}: renew with `make golden`"
        )
