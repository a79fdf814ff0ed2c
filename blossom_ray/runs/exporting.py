"""A model out of a run's folder: a client's as it was scored, or that of all clients; and the folder to give away.

The data are read only where modalities are scaled by numbers that were made of them.
"""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from blossom_ray.algorithms.selection import Population
from blossom_ray.checkpoint import Checkpoint, CheckpointStore, check_compatible
from blossom_ray.clients.authored import Authored
from blossom_ray.clients.job import ClientTask
from blossom_ray.clients.plan import ClientPlan, ClientState, TaskPlan
from blossom_ray.clients.state_files import INITIAL_STATE, read_clients, state_problem
from blossom_ray.clients.workspace import Workspace, client_workspace
from blossom_ray.core.blocks import Block, BlockKind, ClientProfile, Scope
from blossom_ray.core.phrases import listed
from blossom_ray.core.section import plain_tree
from blossom_ray.data.division.labelling import known_labels, without_unlabelled
from blossom_ray.data.division.options import Division
from blossom_ray.data.division.scaling import as_numbers, scales_of
from blossom_ray.data.federated import FederatedDataset, labelled_by_task
from blossom_ray.data.modalities.base import Media
from blossom_ray.data.modalities.numbers import NumbersModality
from blossom_ray.data.modalities.series import SeriesModality
from blossom_ray.data.sets.base import DataSection, OwnData
from blossom_ray.data.sets.table import TableData
from blossom_ray.data.summary import ObservedRows
from blossom_ray.errors import DataError, InputError, RunFolderError
from blossom_ray.models import encoders, fusion, predict, standalone, time_layers
from blossom_ray.models.build import describe_block
from blossom_ray.models.standalone import DESCRIPTION, WEIGHTS, StandaloneModel, tasks_of
from blossom_ray.reading.scenario import Scenario
from blossom_ray.runtime.preparation import client_plan
from blossom_ray.scenario.identity import identity, numbers_tree
from blossom_ray.server import Server, initial_server
from blossom_ray.storage import replacing_folder, writing

_NOBODY = -1
"""In the place of a client's id, of the model that is nobody's own."""
_OF_TASK: tuple[BlockKind, ...] = ("fusion", "head")


def kept_checkpoint(folder: Path, scenario: Scenario, round_index: int) -> Checkpoint:
    """The checkpoint of a round.

    Args:
        folder: The run's folder of checkpoints.
        scenario: The run's.
        round_index: The round.

    Raises:
        RunFolderError: The run has not kept it, or it is damaged.
    """
    store = CheckpointStore(folder, keep=1)
    if round_index in (kept := store.recorded_tables()):
        return store.read(round_index)
    found = f"it has those of {listed(sorted(kept))}" if kept else f"checkpoint.every is {scenario.checkpoint.every}"
    raise RunFolderError(
        f"{folder.parent}: has no checkpoint of round {round_index} ({found}); expected one: checkpoint.every above 0 "
        "keeps that of the last round, checkpoint.keep some before it, stop that of the best one"
    )


def kept_extras(checkpoint: Checkpoint, scenario: Scenario, client: int) -> Mapping[str, Mapping[str, np.ndarray]]:
    """What an algorithm keeps for a client after a round, by extra and block.

    Raises:
        InputError: There is no such client.
        RunFolderError: The checkpoint is damaged.
    """
    _check_client(client, scenario.num_clients)
    return read_clients(checkpoint.client_files, [client]).get(client, INITIAL_STATE).extras


def taken_model(
    checkpoint: Checkpoint, scenario: Scenario, manifest: Mapping[str, Any], client: int | None
) -> StandaloneModel:
    """The model that a client was scored with after a round, or that of all clients.

    Args:
        checkpoint: Of the round.
        scenario: The run's scenario.
        manifest: The run's manifest.
        client: The client's id; None: the model that all of them share.

    Raises:
        InputError: There is no such client, or the clients share no whole model.
        DataError: Means and deviations are needed, and the data are not what they were.
        RunFolderError: The checkpoint belongs to another run, or the manifest does not say what is needed.
    """
    data, profiles = manifest.get("data") or {}, tuple(scenario.profiles())
    needed = {"fingerprint"} | ({"tasks"} if scenario.tasks else {"input_shapes", "num_classes", "class_names"})
    if missing := needed - data.keys():
        raise RunFolderError(f"{checkpoint.folder.parents[1]}: its manifest does not say data.{min(missing)}")
    if client is not None:
        _check_client(client, len(profiles))
    check_compatible(checkpoint, {"scenario": numbers_tree(scenario), "data_fingerprint": data["fingerprint"]})
    told = {name: data["tasks"][name] if name else data for name in scenario.learned}
    whole = {task: each for each in scenario.federated for task in each.learned}
    input_shapes = {
        each.name: {modality: tuple(shape) for modality, shape in told[task]["input_shapes"].items()}
        for task, each in whole.items()
    }
    population = Population(profiles, scenario.execution.chunk_size, scenario.server.clients_per_round)
    observed = {
        name: {split: ObservedRows(**counts) for split, counts in splits.items()}
        for name, splits in (data.get("observed") or {}).items()
    }
    # Prototypes stand for a modality in rows of its owners as well, wherever the server has one.
    known = (Block.named(entry["name"]) for entry in checkpoint.index["blocks"])
    sparse = {*observed, *(block.of for block in known if block.kind == "prototype")}
    tasks = {
        name: TaskPlan(task.kind, told[name]["num_classes"], task.lr, data=whole[name].name)
        for name, task in scenario.learned.items()
    }
    plan = client_plan(scenario, population, input_shapes, tasks, observed, sparse)
    server = checkpoint.restore(initial_server(plan, profiles, scenario.server.optimizer))
    if client is None:
        profile, state = _everybody(plan, server), INITIAL_STATE
        scored = (part.instance for part in plan.extra_parts(profile) if part.instance.copy in plan.scored_copies)
        if any(instance.scope in (Scope.PRIVATE, Scope.CLIENT) for instance in scored):
            # Clients are scored with models of their own; this is the averaged one.
            plan = replace(plan, algorithm=None)
    else:
        profile, state = profiles[client], read_clients(checkpoint.client_files, [client]).get(client, INITIAL_STATE)
        if averages := plan.private_averages(profile):
            means = f"client {client} never trains, and begins with means of others' {listed(averages)}"
            raise InputError(f"{means}, which no checkpoint has; expected a client that trains")
    workspace = client_workspace(plan, profile)
    if problem := state_problem(state, plan, profile, workspace):
        raise RunFolderError(f"{checkpoint.folder}: is no checkpoint of this run: client {client} has {problem}")
    _load(workspace, plan, profile, state, server, checkpoint.round_index)

    shapes, own = plan.shapes(profile), whole[profile.tasks[0]]
    dims = plan.model.embedding_dims(shapes)
    # Head and fusion of an only task are the only ones here.
    short = {Block(kind, profile.tasks[0]): Block(kind) for kind in _OF_TASK} if len(profile.tasks) == 1 else {}
    blocks = {short.get(name, name): module for name, module in workspace.model.blocks.items()}
    description = {
        "blossom_ray": version("blossom-ray"),
        "run": _circumstances(scenario, own.data, manifest, checkpoint.round_index, client, state),
        **_learned(plan, profile, data),
        "modalities": _modalities(
            own,
            [told[task]["fingerprint"] for task in own.learned],
            profile,
            profiles,
            manifest.get("features") or {},
        ),
        "missing": scenario.model.missing,
        "input_shapes": shapes,
        "embedding_dims": dims,
        "precision": scenario.training.precision,
        "norm_statistics": scenario.model.norm_statistics,
        "batch_size": scenario.evaluation.batch_size,
        "blocks": {
            own: describe_block(name, plan.model, shapes, workspace.learned.outputs.get(name.of, 0), dims)
            for name, own in zip(workspace.model.blocks, blocks, strict=True)
        },
    }
    found = StandaloneModel(json.loads(json.dumps(description, default=str)))
    found.load_weights({f"{b}/{name}": v for b, module in blocks.items() for name, v in module.state_dict().items()})
    return found


def write_export(model: StandaloneModel, to: Path) -> list[Path]:
    """Write a model into a new folder: weights, description, code that needs no blossom-ray, and how to use it.

    Args:
        model: From `taken_model`.
        to: The folder. It may exist, if it is empty.

    Returns:
        The files.

    Raises:
        InputError: The folder holds something.
        RunFolderError: It cannot be written.
        StorageError: The disk is full.
    """
    from safetensors.torch import save_file

    with writing(to):
        if to.exists() and (not to.is_dir() or any(to.iterdir())):
            raise InputError(f"{to}: exists, and is no empty folder; expected a new one")
        to.parent.mkdir(parents=True, exist_ok=True)
        with replacing_folder(to) as folder:
            save_file(model.weights(), folder / WEIGHTS)
            texts = {
                DESCRIPTION: json.dumps(model.description, indent=1) + "\n",
                "model.py": _joined(time_layers, encoders, fusion, standalone),
                "predict.py": inspect.getsource(predict).replace("blossom_ray.models.standalone", "model"),
                "README.md": _readme(model.description),
            }
            for name, text in texts.items():
                (folder / name).write_text(text, encoding="utf-8")
    return sorted(to.iterdir())


def _check_client(client: int, number: int) -> None:
    if client not in range(number):
        raise InputError(f"the client is {client!r}; expected one of 0 to {number - 1}")


def _everybody(plan: ClientPlan, server: Server) -> ClientProfile:
    """Who would own every modality and no block alone.

    Raises:
        InputError: The clients share no whole model.
    """
    if len(plan.tasks) > 1:
        has = f"the tasks {listed(plan.tasks)}"
        raise InputError(f"there is no model of all clients, who have {has}; expected a client: --client 0")
    profile = ClientProfile(_NOBODY, tuple(sorted(plan.model.encoders)), tasks=(next(iter(plan.tasks)),))
    held = plan.held_blocks(profile)
    own = [f"{name} ({i.scope})" for name, i in held.items() if i.scope not in (Scope.SHARED, Scope.FROZEN)]
    if not own:
        kept = client_workspace(plan, profile).initial_state if plan.model.norm_statistics == "local" else {}
        is_local = any(name.rpartition(".")[2].startswith("running_") for block in kept.values() for name in block)
        split = {instance for instance in plan.sent_blocks(profile) if instance.name.kind == "statistics"}
        if is_local or split - server.blocks.keys():
            own = [f"statistics of normalisation (model.norm_statistics: {plan.model.norm_statistics})"]
    if own:
        raise InputError(f"there is no model of all clients, who have {', '.join(own)}; expected a client: --client 0")
    return profile


def _learned(plan: ClientPlan, profile: ClientProfile, data: Mapping[str, Any]) -> dict[str, Any]:
    """What a client's outputs are: of one task, or of several by name."""
    tasks = {
        name: {"task": plan.tasks[name].kind, "outputs": (data["tasks"][name] if name else data)["class_names"]}
        for name in profile.tasks
    }
    return {"tasks": tasks} if len(tasks) > 1 else next(iter(tasks.values()))


def _load(
    workspace: Workspace, plan: ClientPlan, profile: ClientProfile, state: ClientState, server: Server, round_index: int
) -> None:
    """Bring a client's model into the workspace as `ClientHost.evaluate` scores it."""
    sent = {instance: server.blocks[instance].sent for instance in plan.sent_blocks(profile, scored=True)}
    values = plan.joined(profile, sent)
    for name in plan.held_blocks(profile).keys() - values.keys():
        values[name] = state.private.get(name, workspace.initial_blocks[name])
    task = ClientTask(profile.index, values, {}, np.empty(0), state.local_state)
    if plan.author is not None:
        authored = Authored(plan, workspace, profile, is_mapped=False)
        extras = authored.extras(profile, values, state, sent, round_index + 1)
        (task,) = authored.scored([replace(task, extras=extras)])
    workspace.load(task.blocks, task.local_state or workspace.initial_state)


def _circumstances(
    scenario: Scenario,
    section: DataSection,
    manifest: Mapping[str, Any],
    round_index: int,
    client: int | None,
    state: ClientState,
) -> dict[str, Any]:
    """Where a model comes from."""
    names, engines = manifest["data"].get("client_names"), manifest.get("engines") or {}
    others = {"path", *Division.model_fields}
    own = None if client is None else [*scenario.profiles()][client].modality_set
    found = {
        "name": scenario.name,
        "identity": identity(scenario),
        "data_fingerprint": manifest["data"]["fingerprint"],
        "data": {key: value for key, value in plain_tree(section, defaults=True).items() if key not in others},
        "round": round_index,
        "client": client,
        "client_name": names[client] if names and client is not None else None,
        "rounds_trained": None if client is None else state.rounds_trained,
        "engine": "+".join(sorted({engine for name, engine in engines.items() if own in (name, None)})),
    }
    return found if not manifest.get("own_code") else {**found, "own_code": manifest["own_code"]}


def _modalities(
    whole: FederatedDataset,
    fingerprints: Sequence[str],
    profile: ClientProfile,
    everyone: Sequence[ClientProfile],
    features: Mapping[str, Any],
) -> dict[str, Any]:
    """By modality the shape of a sample, its columns in a table, and what is done to it before the model sees it.

    `features` is what the manifest says of them.
    """
    section = whole.data
    scaled = [name for name in profile.modalities if section.scaling(name).scale != "none"]
    if profile.index == _NOBODY and (apart := [name for name in scaled if section.scaling(name).is_apart]):
        there = f"there is no model of all clients, each of whom scales {listed(apart)} by its own training rows"
        raise InputError(f"{there}; expected a client: --client 0")
    scales = _scales(whole, fingerprints, everyone, profile.index) if scaled else {}
    by_window = {"kind": "window"} if getattr(section, "zscore", False) else None
    tables = section.modalities if isinstance(section, TableData) else {}
    found = {}
    for name in profile.modalities:
        own = tables.get(name, NumbersModality())
        found[name] = {
            "columns": [*own.columns(name)],
            "nan": getattr(own, "nan", "refuse"),
            "normalisation": scales.get(name, by_window),
        }
        if isinstance(own, Media):
            found[name]["decoding"] = own.key()
        elif isinstance(own, SeriesModality):
            found[name]["decoding"] = plain_tree(own, defaults=True)
        if (made := f"{whole.name}/{name}".lstrip("/")) in features:
            found[name]["features"] = features[made]
    return found


def _scales(
    whole: FederatedDataset, fingerprints: Sequence[str], everyone: Sequence[ClientProfile], client: int
) -> dict[str, dict[str, Any]]:
    """How a client scales its modalities, from the rows that clients train on; fingerprints with each task's labels."""
    data = whole.data
    try:
        with whole.told():
            dataset = whole.open().load()
        by_task = {name: data.labelled(dataset, task.labels) for name, task in whole.learned.items()}
        if [own.fingerprint() for own in by_task.values()] != [*fingerprints]:
            raise DataError("the data are others now; expected those of the run")
    except DataError as error:
        is_standard = isinstance(data, OwnData) and data.standardize
        made = "standardize makes means and deviations" if is_standard else "modalities makes scales"
        why = whole.in_words(f"data.{made} of the training rows, which leave with a model")
        raise DataError(*error.args, why) from error
    targets, profiles = whole.targets(dataset), whole.profiles(everyone)
    labelled = known_labels(labelled_by_task(dataset, by_task), [*by_task])
    federation = whole.observe(without_unlabelled(whole.divide(targets), profiles, labelled), targets)
    scales, found = scales_of(dataset, federation, profiles, data.scaling), {}
    own = whole.ids.index(client) if client in whole.ids else _NOBODY
    for name in dataset.inputs:
        if (scale := scales.of(name, own)) is not None:
            kind = "range" if data.scaling(name).scale == "minmax" else "channel"
            found[name] = {"kind": kind, **as_numbers(data.scaling(name), scale)}
    return found


def _joined(*modules: ModuleType) -> str:
    """The sources of modules as one text, without what they import from this package: that stands in it."""
    kept = ["from __future__ import annotations\n"]
    for module in modules:
        lines = inspect.getsource(module).splitlines()
        for node in ast.parse("\n".join(lines)).body:
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith(("__future__", "blossom_ray")):
                for number in range(node.lineno - 1, node.end_lineno or node.lineno):
                    lines[number] = ""
        kept += lines
    return "\n".join(kept) + "\n"


def _readme(told: Mapping[str, Any]) -> str:
    """What the taker of a model should know."""
    run, own = told["run"], [made["factory"] for made in told["blocks"].values() if "factory" in made]
    whose = "all clients" if run["client"] is None else f"client {run['client_name'] or run['client']}"
    same = "to the bit, on the same kind of processor with the same versions"
    if run["engine"] != "sequential":
        same = "within rounding, since clients were computed together"
    lines = [
        f"# {run['name']}: the model of {whose} after round {run['round']}\n",
        "Inputs: " + ", ".join(f"{name} {told['input_shapes'][name]}" for name in told["modalities"]) + ".\n",
        *(
            f"Task{f' {name}' if name else ''}: {own['task']}. Outputs: {', '.join(own['outputs'])}.\n"
            for name, own in tasks_of(told).items()
        ),
        "It needs torch, safetensors and numpy, and pyarrow to read a table:\n",
        "    python predict.py TABLE.parquet > predictions.csv\n",
        'In Python, from this folder: `from model import load; model = load(".")`, a `torch.nn.Module`.',
        *(
            f"{name}: {section['decoding']['kind']}, decoded as `model.json` says, "
            + ("then given to the frozen model that it describes, " if "features" in section else "")
            + "which this code does not do: give its arrays in an .npz archive."
            for name, section in told["modalities"].items()
            if "decoding" in section
        ),
        "`model.json` says what it was trained on and how inputs are normalised; `prepared` of the model does that.",
        f"It gives the scores of the run {same}, in batches of {told['batch_size']} rows.",
    ]
    if own:
        lines.append(f"\nParts of it are own code, which is not here and must be importable: {', '.join(own)}.")
    return "\n".join(lines) + "\n"
