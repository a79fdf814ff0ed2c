from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

from blossom_ray.core.factories import resolve_factory
from blossom_ray.errors import InputError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def test_a_callable_stands_for_itself() -> None:
    assert resolve_factory(math.sqrt, "data.factory") is math.sqrt


def test_by_name() -> None:
    assert resolve_factory("math:sqrt", "data.factory") is math.sqrt
    assert resolve_factory("pathlib:Path.cwd", "data.factory") == Path.cwd


def test_from_the_working_directory_at_the_end_of_the_path(folder: Path) -> None:
    (folder / "factory_of_a_test.py").write_text("def make(): return 7")
    assert resolve_factory("factory_of_a_test:make", "data.factory")() == 7
    assert sys.path[-1] == str(folder)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("no_such_module_here:make", "model.x is .*, but there is no module 'no_such_module_here'; expected a module"),
        ("json.no_such_part:make", "there is no module 'json.no_such_part'"),
        ("math:no_such_name", "model.x is 'math:no_such_name', but math has no attribute 'no_such_name'"),
        ("math:pi", "model.x is 'math:pi', which is of type float; expected a callable"),
        ("math", "model.x is 'math'; expected module:attribute"),
    ],
)
def test_faults(factory: str, message: str, folder: Path) -> None:
    with pytest.raises(InputError, match=message):
        resolve_factory(factory, "model.x")


def test_faults_inside_the_module(folder: Path) -> None:
    (folder / "broken_factory_of_a_test.py").write_text("1 / 0")
    with pytest.raises(InputError, match=r"whose import raised ZeroDivisionError: division by zero") as caught:
        resolve_factory("broken_factory_of_a_test:make", "model.x")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    (folder / "needy_factory_of_a_test.py").write_text("import a_package_nobody_has")
    with pytest.raises(InputError, match=r"needs a missing module: No module named 'a_package_nobody_has'"):
        resolve_factory("needy_factory_of_a_test:make", "model.x")


def test_not_callable() -> None:
    with pytest.raises(InputError, match=r"model.x is 3; expected a callable"):
        resolve_factory(3, "model.x")  # type: ignore[arg-type]  # the fault under test


def test_own_code_of_a_model_is_looked_for_before_a_run(small_scenario):
    from blossom_ray.core.factories import factory_problems

    changes = {"model.head": {"kind": "custom", "factory": "no_such_module:build"}}
    ((path, found, expected),) = factory_problems(dict(small_scenario.override(changes)))
    assert path == "model.head.factory"
    assert found == "is 'no_such_module:build', but there is no module 'no_such_module'"
    assert expected == "a module that is installed or lies in the working directory"
    assert factory_problems(dict(small_scenario)) == []
