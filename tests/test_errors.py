import pickle

import pytest

from blossom_ray.errors import ClientError, Problem, RunError, ScenarioError, first_line


def test_a_problem_names_place_path_found_and_expected() -> None:
    problem = Problem("training.local_epochs", "is 0", "an integer of at least 1", "a.yaml", 14)
    assert str(problem) == "a.yaml:14: training.local_epochs is 0; expected an integer of at least 1"


def test_a_problem_of_an_override_names_the_override() -> None:
    problem = Problem("seed", "is -1", "an integer of at least 0", "a.yaml", 2, source="--seed")
    assert str(problem) == "--seed: seed is -1; expected an integer of at least 0"


@pytest.mark.parametrize(
    "error",
    [
        ScenarioError((Problem("a", "is 1", "2"), Problem("b", "is 3", "4"))),
        ClientError(3, 7, "ValueError: no", hint="yes", details="Traceback"),
        RunError("it broke"),
    ],
)
def test_errors_cross_processes_whole(error: Exception) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)


def test_exit_codes_tell_bad_input_from_a_failed_run() -> None:
    assert ScenarioError(()).exit_code == 2
    assert ClientError(0, 1, "x").exit_code == 1


@pytest.mark.parametrize(
    ("said", "line"),
    [(ValueError("no\nline"), "no"), (ValueError(), "ValueError"), ("\nfirst\nsecond", "first"), ("", "")],
)
def test_the_first_line_of_what_is_said(said: object, line: str) -> None:
    assert first_line(said) == line
