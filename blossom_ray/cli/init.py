"""The command that writes a first scenario: `init`."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blossom_ray.cli import completion
from blossom_ray.cli.options import Json, app
from blossom_ray.cli.output import print_json, say, say_text
from blossom_ray.core.locations import local_path
from blossom_ray.errors import Problem, ScenarioError
from blossom_ray.text import quoted

if TYPE_CHECKING:
    from blossom_ray.reading.init import Choices
    from blossom_ray.reading.scenario import Scenario

_DEFAULT_OUT = "scenario.yaml"
_WHY = {
    "classification": "labels are text or whole numbers",
    "multilabel": "labels are lists of names, or of 0 and 1",
    "regression": "labels are numbers that are not whole",
}
_SUGGESTED = ("--clients", "--partition", "--sharing", "--rounds")
_OF_TABLES = ("task", "label")


@app.command(
    epilog='Example: blossom-ray init --dataset uci-har --path "UCI HAR Dataset.zip" --clients "5:acc 5:gyro" '
    "--out har.yaml"
)
def init(
    dataset: Annotated[
        str | None,
        typer.Option(
            "--dataset",
            help="A data set as in `data list`; synthetic unless given.",
            autocompletion=completion.datasets,
        ),
    ] = None,
    path: Annotated[str | None, typer.Option("--path", help="Where its files are: data.path.")] = None,
    clients: Annotated[
        str | None,
        typer.Option(
            "--clients", metavar="GROUPS", help="Who owns what, such as '3:acc 3:gyro 4:acc,gyro', or from-data."
        ),
    ] = None,
    sharing: Annotated[
        str | None,
        typer.Option("--sharing", help="A sharing scheme, such as full-model.", autocompletion=completion.sharing),
    ] = None,
    rounds: Annotated[int | None, typer.Option("--rounds", help="Number of rounds.")] = None,
    partition: Annotated[
        str | None,
        typer.Option(
            "--partition",
            metavar="KIND[:ALPHA]",
            help="How samples are divided, such as iid or dirichlet:0.5.",
            autocompletion=completion.partitions,
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option("--task", help="What a table's labels are for: classification, multilabel, regression."),
    ] = None,
    label: Annotated[
        str | None,
        typer.Option("--label", metavar="COLUMN", help="The column with a table's labels; label unless given."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help=f"The file to write; {_DEFAULT_OUT} unless given.")] = None,
    full: Annotated[bool, typer.Option("--full", help="Write all keys, those with their defaults, too.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing; take the suggestions.")] = False,
    as_json: Json = False,
) -> None:
    """Write a scenario in which every key is explained. On a terminal it asks for what is not given.

    What it writes has been checked with its data, and runs as it stands.
    """
    from blossom_ray.core.phrases import listed
    from blossom_ray.reading.init import FROM_DATA
    from blossom_ray.reading.writer import commented_yaml
    from blossom_ray.storage import replacing, writing

    given: dict[str, Any] = {
        "dataset": dataset, "path": path, "clients": clients, "partition": partition, "sharing": sharing,
        "rounds": rounds, "task": task, "label": label, "out": None if out is None else str(out),
    }  # fmt: skip
    answers = {key: value for key, value in given.items() if value is not None}
    is_asking = not (yes or as_json) and sys.stdin.isatty() and sys.stdout.isatty()
    if is_asking:
        _ask(answers, [key for key in given if key not in answers and key not in _OF_TABLES])
    while True:
        target = local_path(answers.get("out", _DEFAULT_OUT), "--out")
        try:
            scenario, choices = _scaffold(answers, target, force=force)
        except ScenarioError as error:
            wrong = [key for key in given if f"--{key}" in {problem.source for problem in error.problems}]
            if not (is_asking and wrong):
                raise
            say_text(f"{error}\n")
            _ask(answers, wrong)
        else:
            break
    # The data are asked again when it is run; what they gave now is told below.
    is_from_data = choices.clients.strip() == FROM_DATA
    written = scenario.model_copy(update={"clients": FROM_DATA}) if is_from_data else scenario
    quoted_target = shlex.quote(str(target))
    text = (
        f"# Run this scenario: blossom-ray simulate {quoted_target}\n"
        f"# What it would take: blossom-ray plan {quoted_target}\n"
        "# Keys that are left out have defaults; all keys: blossom-ray schema --markdown\n\n"
        f"{commented_yaml(written, defaults=full)}"
    )
    with writing(target), replacing(target) as temporary:
        temporary.write_text(text, encoding="utf-8")
    facts = {"clients": scenario.num_clients, "rounds": scenario.rounds, "modalities": list(scenario.modalities)}
    if as_json:
        table: dict[str, Any] = {}
        if choices.dataset == "table":
            left_out, seen = list(choices.table.left_out), list(choices.table.seen)
            table = {"task": scenario.task, "left_out": left_out, "seen": seen}
        print_json({"scenario": str(target), **facts, **table})
    else:
        names = ", ".join(scenario.modalities)
        lines = [f"{target}: {scenario.num_clients} clients, {scenario.rounds} rounds, modalities {names}"]
        if choices.dataset == "table":
            what = "targets" if scenario.task == "regression" else "classes"
            classes = choices.table.class_names
            why = f" ({_WHY[scenario.task]}; --task chooses another)" if task is None else ""
            lines.append(f"task: {scenario.task}, {len(classes)} {what}: {listed(classes)}{why}")
            lines += choices.table.seen
        lines += (f"no modality: {reason}" for reason in choices.table.left_out)
        say(*lines, f"run it: blossom-ray simulate {quoted_target}")


def _scaffold(answers: dict[str, Any], target: Path, *, force: bool) -> tuple[Scenario, Choices]:
    """The scenario of the answers and of suggestions for the rest, and these.

    Raises:
        ScenarioError: With every problem found, that of the file to write among them.
    """
    from blossom_ray.core.scores import TASKS
    from blossom_ray.reading.init import scaffold, suggest

    dataset, task = answers.get("dataset", "synthetic"), answers.get("task")
    if task is not None and (task not in TASKS or dataset != "table"):
        found = f"is {quoted(task)}" if task not in TASKS else f"is for a table, while --dataset is {quoted(dataset)}"
        raise ScenarioError((Problem("", found, f"one of {', '.join(TASKS)}, with a table", source="--task"),))
    label = answers.get("label")
    if label is not None and dataset != "table":
        found = f"is {quoted(label)}, while --dataset is {quoted(dataset)}"
        raise ScenarioError((Problem("", found, "a column of a table", source="--label"),))
    choices = suggest(dataset, answers.get("path"), target.stem, answers.get("partition"), task, label)
    named = {field.name for field in dataclasses.fields(choices)}
    problems = _target_problems(target, force=force)
    choices = dataclasses.replace(choices, **{key: value for key, value in answers.items() if key in named})
    try:
        scenario = scaffold(choices)
    except ScenarioError as error:
        for problem in error.problems:
            # One with something that was suggested for data that were given is one of these.
            is_suggested = problem.source in _SUGGESTED and problem.source.removeprefix("--") not in answers
            blamed = is_suggested and "path" in answers
            problems.append(dataclasses.replace(problem, source="--path") if blamed else problem)
    if problems:
        raise ScenarioError(tuple(problems))
    return scenario, choices


def _target_problems(target: Path, *, force: bool) -> list[Problem]:
    """What keeps a file from being written."""
    if target.is_dir():
        wrong, expected = "which is a folder", "a file"
    elif not target.parent.is_dir():
        wrong, expected = "whose folder does not exist", "a file in a folder that is there"
    elif target.exists() and not force:
        wrong, expected = "which is there already", "a new file, or --force"
    else:
        return []
    return [Problem("", f"is {str(target)!r}, {wrong}", expected, source="--out")]


def _ask(answers: dict[str, Any], keys: list[str]) -> None:
    """Ask for these values, in order, and put them among the answers; each suggestion follows from those before."""
    from rich.prompt import IntPrompt, Prompt

    from blossom_ray.cli.console.terminal import terminal
    from blossom_ray.core.blocks import CENTRAL_PER_TASK, SCHEME_NAMES
    from blossom_ray.data.options import DATASETS
    from blossom_ray.reading.init import STARTING_POINTS, suggest

    console = terminal()
    known, default = None, None
    for key in keys:
        dataset = answers.get("dataset", "synthetic")
        if default is None or known != (dataset, answers.get("path")):  # a table is read for it
            known = dataset, answers.get("path")
            default = suggest(*known, "scenario")
        match key:
            case "dataset":
                answers[key] = Prompt.ask("Data set", choices=[*STARTING_POINTS], default=dataset, console=console)
            case "path":
                if dataset in DATASETS and DATASETS[dataset].download:
                    say(f"Needs {DATASETS[dataset].download}.")
                    answers[key] = Prompt.ask("Path", console=console)
                else:
                    answers.pop(key, None)
            case "clients":
                question = "Clients, COUNT:MODALITY,MODALITY for each group"
                answers[key] = Prompt.ask(question, default=default.clients, console=console)
            case "partition":
                question = "Partition, KIND[:ALPHA]: iid, dirichlet:0.5, quantity:1, subject"
                answers[key] = Prompt.ask(question, default=default.partition, console=console)
            case "sharing":
                schemes = [str(name) for name in SCHEME_NAMES if name != CENTRAL_PER_TASK]  # there is one task
                answers[key] = Prompt.ask("Sharing", choices=schemes, default=default.sharing, console=console)
            case "rounds":
                answers[key] = IntPrompt.ask("Rounds", default=default.rounds, console=console)
            case "out":
                answers[key] = Prompt.ask("File", default=_DEFAULT_OUT, console=console)
