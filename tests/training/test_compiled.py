"""Compiled kernels against autograd: the results of `SequentialEngine`, within rounding, for all that they can do."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import needs_compiler
from hypothesis import given, settings
from hypothesis import strategies as st
from test_stacked import (
    ENCODERS,
    MLP,
    SEQUENCES,
    SIZES,
    assert_same_arrays,
    assert_same_result,
    make_job,
    make_tasks,
    train_alone,
    training,
    workspace,
)

from blossom_ray import Scenario, simulate
from blossom_ray.clients.compiled import library as library_module
from blossom_ray.clients.compiled.engine import CompiledEngine, CompiledSteps
from blossom_ray.clients.compiled.library import library, missing_library
from blossom_ray.clients.compiled.program import (
    LOSSES,
    BlockFields,
    BufferFields,
    Client,
    Kind,
    OpFields,
    compiling_obstacle,
)
from blossom_ray.clients.job import Affine, ClientTask, LocalJob, LocalPass, LocalResult
from blossom_ray.clients.local_training import SequentialEngine
from blossom_ray.clients.options import Training
from blossom_ray.clients.workspace import Workspace
from blossom_ray.core.scores import Task
from blossom_ray.errors import RunError
from blossom_ray.models.options import Model
from blossom_ray.tasks.learned import one_task

pytestmark = [pytest.mark.usefixtures("one_thread"), needs_compiler]

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"kind": "sgd"},
    "decay": {"kind": "sgd", "weight_decay": 0.1},
    "momentum": {"kind": "sgd", "momentum": 0.9, "weight_decay": 0.1},
    "nesterov": {"kind": "sgd", "momentum": 0.9, "nesterov": True},
    # With a small epsilon a gradient that is nothing but rounding would count as much as any other.
    "adam": {"kind": "adam", "weight_decay": 0.1, "eps": 1e-3},
    "adamw": {"kind": "adamw", "eps": 1e-3},
    "of blocks": {"kind": "sgd", "blocks": {"encoder/*": {"momentum": 0.9}, "head": {"kind": "adam", "eps": 1e-3}}},
}


def train_compiled(space: Workspace, tasks: Sequence[ClientTask], job: LocalJob) -> list[LocalResult]:
    """By the kernels alone: nothing is left to stacks."""
    assert compiling_obstacle(space, job.training) is None
    engine = CompiledEngine(space)
    results = engine.train(tasks, job)
    assert not engine.obstacles
    return results


def assert_agrees(space: Workspace, section: Training, sizes: Sequence[int] = SIZES, **changes: Any) -> None:
    tasks = make_tasks(space, sizes)
    job = make_job(space, section, **changes)
    for task, result in zip(tasks, train_compiled(space, tasks, job), strict=True):
        assert_same_result(result, train_alone(space, task, section, **changes))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("kind", ENCODERS)
def test_encoders(kind: str, dropout: float) -> None:
    encoder = ENCODERS[kind] | ({} if kind == "gru" else {"dropout": dropout})
    space = workspace(encoder, head={"kind": "mlp", "hidden": [17], "dropout": dropout})
    assert_agrees(space, training(local_epochs=2))


@pytest.mark.parametrize("kernel_size", [1, 2, 4, 5])
@pytest.mark.parametrize("steps", [8, 13])
def test_convolutions(steps: int, kernel_size: int) -> None:
    """Of kernels of all sizes on odd numbers of steps, whose last one no pair takes, on widths above a vector's."""
    encoder = {"kind": "conv1d", "channels": [20, 35], "kernel_size": kernel_size, "dim": 4}
    assert_agrees(workspace(encoder, shapes={"acc": (steps, 3), "gyro": (steps, 17)}), training())


@pytest.mark.parametrize("missing", ["mask", "zero-embedding"])
@pytest.mark.parametrize("owned", [("acc",), ("gyro",), ("acc", "gyro")], ids="+".join)
@pytest.mark.parametrize("kind", ["attention", "concat", "gated", "mean"])
def test_fusions_and_missing_modalities(kind: str, owned: tuple[str, ...], missing: str) -> None:
    assert_agrees(workspace(owned=owned, fusion={"kind": kind, "dim": 6}, missing=missing), training())


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_optimizers_with_a_proximal_term(optimizer: dict[str, Any]) -> None:
    assert_agrees(workspace(), training(optimizer, local_epochs=2, proximal_mu=0.5))


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_losses(task: Task) -> None:
    tree = {
        "encoders": {"acc": MLP, "gyro": MLP},
        "fusion": {"kind": "concat", "dim": 6},
        "head": {"kind": "mlp", "hidden": [5], "dropout": 0.0},
    }
    space = Workspace(Model.model_validate(tree), SEQUENCES, one_task(task, 3), owned=("acc", "gyro"), seed=0)
    rng = np.random.default_rng(0)

    def labels(number: int) -> np.ndarray:
        values = rng.normal(size=(number, 3)) * 3
        return (values if task == "regression" else values > 0).astype(np.float32)

    tasks = [replace(each, labels=labels(len(each.labels))) for each in make_tasks(space)]
    if task == "multilabel":  # logits that are far from 0, whose exponentials overflow
        blocks = {name: values * (400 if name == "head" else 1) for name, values in space.initial_blocks.items()}
        tasks.append(replace(tasks[-1], blocks=blocks))
    job = make_job(space, training(), learning_rate=0.01)
    for each, result in zip(tasks, train_compiled(space, tasks, job), strict=True):
        (alone,) = SequentialEngine(space).train([each], job)
        assert_same_result(result, alone)


def test_wide_layers_and_extreme_logits() -> None:
    """Every number of vectors, and a loss whose exponentials overflow or vanish without the largest one taken out."""
    for dim in (15, 16, 33, 64, 100):
        encoder = {"kind": "mlp", "hidden": [dim, 80], "dim": dim}
        space = workspace(encoder, fusion={"kind": "concat", "dim": dim}, head={"kind": "mlp", "hidden": [dim]})
        assert_agrees(space, training({"kind": "sgd"}, batch_size=5))
    space = workspace()
    blocks = {name: values * (3000 if name == "head" else 1) for name, values in space.initial_blocks.items()}
    tasks = [replace(each, blocks=blocks) for each in make_tasks(space)]
    job = make_job(space, training({"kind": "sgd"}), learning_rate=1e-6)
    for task, result in zip(tasks, train_compiled(space, tasks, job), strict=True):
        (alone,) = SequentialEngine(space).train([task], job)
        assert result.loss == pytest.approx(alone.loss, rel=1e-5)
        assert_same_arrays(result.blocks, alone.blocks)


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    batch_size=st.integers(1, 13),
    local_epochs=st.integers(1, 3),
)
def test_any_shard_sizes(sizes: list[int], batch_size: int, local_epochs: int) -> None:
    encoder = ENCODERS["conv-gru"] | {"dropout": 0.3}
    section = training({"kind": "sgd"}, batch_size=batch_size, local_epochs=local_epochs)
    assert_agrees(workspace(encoder), section, sizes)


def affine_tasks(space: Workspace, names: Sequence[str]) -> list[ClientTask]:
    """Clients with a start, an offset and an anchor of their own in these blocks."""

    def near(task: ClientTask, scale: float) -> dict[str, np.ndarray]:
        rng = np.random.default_rng([task.client, int(scale * 100)])
        return {name: (rng.normal(size=task.blocks[name].shape) * scale).astype(np.float32) for name in names}

    tasks = make_tasks(space)
    return [replace(task, affine=(Affine(near(task, 0.3), near(task, 0.05), near(task, 0.2)),)) for task in tasks]


def test_start_offset_and_anchor_are_each_client_s_own() -> None:
    space, section = workspace(), training({"kind": "sgd"})
    tasks, names = affine_tasks(space, ["encoder/acc", "head"]), frozenset(space.trained)
    job = make_job(space, section, passes=(LocalPass(2, names, frozenset(["head", "fusion"]), 0.7, has_offset=True),))
    for task, result in zip(tasks, train_compiled(space, tasks, job), strict=True):
        (alone,) = SequentialEngine(space).train([task], job)
        assert_same_result(result, alone)


def test_blocks_take_turns_and_a_pass_that_is_not_recorded_counts_nothing() -> None:
    space, section = workspace(MLP | {"dropout": 0.3}), training(OPTIMIZERS["of blocks"])
    passes = (
        LocalPass(1, frozenset(["head"])),
        LocalPass(2, frozenset(["encoder/acc", "encoder/gyro"]), is_recorded=False),
        LocalPass(1, frozenset(["fusion", "encoder/gyro"]), frozenset(["fusion"]), 0.5),
    )
    assert_agrees(space, section, passes=passes)
    (result, *_) = train_compiled(space, make_tasks(space), make_job(space, section, passes=passes))
    assert dict(result.steps) == {"head": 1, "fusion": 1, "encoder/gyro": 1}


def test_a_copy_computes_in_the_model_s_place() -> None:
    """As in Ditto: the model is what it was, and what is trained is the copy, of those blocks that it has."""
    space, section = workspace(), training(OPTIMIZERS["momentum"])
    names = frozenset(["encoder/acc", "head"])
    passes = (
        LocalPass(1, frozenset(space.trained)),
        LocalPass(2, names, frozenset(["head"]), 0.3, copies=("own",), rates={"own": 0.5}, is_recorded=False),
        LocalPass(1, names, copies=("own",), is_recorded=False),
    )
    own = [{name: task.blocks[name] * 0.5 for name in names} for task in make_tasks(space)]
    tasks = [replace(task, extras={"own": held}) for task, held in zip(make_tasks(space), own, strict=True)]
    job = make_job(space, section, passes=passes)
    for task, result in zip(tasks, train_compiled(space, tasks, job), strict=True):
        (alone,) = SequentialEngine(space).train([task], job)
        assert_same_result(result, alone)
        assert_same_arrays(dict(result.extras), dict(alone.extras))


def test_frozen_blocks_stay_as_they_are() -> None:
    assert_agrees(workspace(MLP | {"dropout": 0.3}, frozen=("encoder/acc", "fusion")), training())


def test_a_label_without_an_output_does_no_harm_and_is_seen() -> None:
    space = workspace()
    task, other = make_tasks(space, [8, 8])
    wrong = replace(task, labels=np.where(np.arange(8) == 3, 10**6, task.labels))
    found, after = train_compiled(space, [wrong, other], make_job(space, training()))
    assert np.isnan(found.loss)
    assert not np.isfinite(found.blocks["head"]).all(), "so that the update is refused"
    assert_same_result(after, train_alone(space, other, training()))


def test_neither_tasks_nor_results_change_when_the_engine_goes_on() -> None:
    space, section = workspace(), training()
    tasks = make_tasks(space)
    before = [{name: values.copy() for name, values in task.blocks.items()} for task in tasks]
    steps = CompiledSteps(space)
    first = steps.train(tasks, make_job(space, section))
    kept = [{name: values.copy() for name, values in result.blocks.items()} for result in first]
    steps.train(tasks, make_job(space, section, round_index=2))
    steps.train(tasks, make_job(space, training(batch_size=7)))
    again = steps.train(tasks, make_job(space, section))
    for task, own, result, old, new in zip(tasks, before, first, kept, again, strict=True):
        for name, values in own.items():
            np.testing.assert_array_equal(task.blocks[name], values)
        for name, values in old.items():
            np.testing.assert_array_equal(result.blocks[name], values)
            np.testing.assert_array_equal(new.blocks[name], values)


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
def test_results_do_not_depend_on_the_company(optimizer: str) -> None:
    space, section = workspace(ENCODERS["conv-gru"] | {"dropout": 0.3}), training(OPTIMIZERS[optimizer])
    tasks, job = make_tasks(space), make_job(space, section)
    # A client whose numbers overflow leaves nothing behind for the next one.
    diverged = replace(tasks[1], client=77, inputs={n: v * np.float32(np.inf) for n, v in tasks[1].inputs.items()})
    engine = CompiledEngine(space)
    with np.errstate(all="ignore"):
        together = engine.train([tasks[0], diverged, *tasks[1:]], job)
    assert not all(np.isfinite(values).all() for values in together[1].blocks.values())
    for task, result in zip(tasks, [together[0], *together[2:]], strict=True):
        (alone,) = CompiledEngine(space).train([task], job)
        for name, values in alone.blocks.items():
            np.testing.assert_array_equal(result.blocks[name], values)
        assert (result.loss, result.drift) == (alone.loss, alone.drift)


@pytest.fixture
def compiled_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., None]]:
    """Forgets the library of this process, has a cache folder of its own, and sets compiler and further flags."""

    def forget(*flags: str, compiler: str = "cc", folder: Path = tmp_path) -> None:
        monkeypatch.setenv("CC", compiler)
        monkeypatch.setenv("BLOSSOM_RAY_CACHE", str(folder))
        monkeypatch.setattr(library_module, "_FLAGS", (*library_module._FLAGS, *flags))
        library.cache_clear()

    yield forget
    library.cache_clear()


@pytest.mark.parametrize("flags", [("-mno-avx512f",), ("-mno-avx512f", "-mno-avx2", "-mno-avx", "-mno-fma")])
def test_processors_with_shorter_vectors(flags: Sequence[str], compiled_anew: Callable[..., None]) -> None:
    if "flags" not in Path("/proc/cpuinfo").read_text(encoding="utf-8"):
        pytest.skip("no x86 processor")
    compiled_anew(*flags)
    encoder = {"kind": "conv-gru", "channels": [20, 35], "kernel_size": 3, "dim": 17}
    assert_agrees(workspace(encoder, fusion={"kind": "attention", "dim": 100}), training(batch_size=9))


def test_the_library_is_compiled_once_for_a_processor(compiled_anew: Callable[..., None], tmp_path: Path) -> None:
    compiled_anew()
    library()
    (file,) = tmp_path.glob("compiled/*.so")
    written = file.stat().st_mtime_ns
    library.cache_clear()
    library()
    assert [path.stat().st_mtime_ns for path in tmp_path.glob("compiled/*.so")] == [written]


def test_nothing_is_loaded_that_others_could_have_put_there(compiled_anew: Callable[..., None], tmp_path: Path) -> None:
    compiled_anew()
    library()
    library.cache_clear()
    (tmp_path / "compiled").chmod(0o777)
    assert missing_library() == f"others can write to {tmp_path / 'compiled'}; expected a folder of yours alone"


def test_what_is_wrong_with_the_compiler_is_said(
    compiled_anew: Callable[..., None], tmp_path: Path, small_scenario: Scenario
) -> None:
    compiled_anew(compiler="no-such-compiler")
    assert missing_library() == "there is no C compiler no-such-compiler; expected one, or its name in CC"
    with pytest.raises(RunError, match="no C compiler"):
        CompiledEngine(workspace())
    run = simulate(small_scenario.override({"training.engine": "compiled"}))
    assert run.manifest["engines"] == dict.fromkeys(("acc", "acc+gyro", "gyro"), "vectorized")
    assert "engine of acc: vectorized, since there is no C compiler no-such-compiler" in " ".join(run.manifest["notes"])
    stacked = simulate(small_scenario.override({"training.engine": "vectorized"}))
    assert run.manifest["digest"] == stacked.manifest["digest"]
    compiled_anew("--no-such-flag")
    assert re.match("the C compiler cc failed; it says .*no-such-flag", missing_library() or "")
    (tmp_path / "file").touch()
    compiled_anew(folder=tmp_path / "file")
    assert "cannot be written" in (missing_library() or "")
    assert not [*tmp_path.rglob("*.so"), *tmp_path.rglob("*.new")]


def test_a_run_says_what_it_was_computed_with(small_scenario: Scenario) -> None:
    run = simulate(small_scenario.override({"training.engine": "compiled"}))
    assert run.manifest["engines"] == dict.fromkeys(("acc", "acc+gyro", "gyro"), "compiled")
    assert not run.manifest["notes"]
    sequential = simulate(small_scenario)
    assert run.final["loss"] == pytest.approx(sequential.final["loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"training.loss": {"kind": "focal"}}, "training.loss is 'focal'"),
        ({"training.keep_optimizer_state": True}, "training.keep_optimizer_state is true"),
        ({"training.precision": "bfloat16"}, "training.precision is 'bfloat16'"),
        ({"training.transform": {"acc": {"kind": "noise"}}}, "training.transform is used"),
        ({"model.missing": "zero-input"}, "model.missing is 'zero-input'"),
        ({"model.head": {"kind": "mlp", "norm": "batch"}}, "head has a normalisation"),
        ({"model.head": {"kind": "mlp", "norm": "layer"}}, "head has GroupNorm"),
        ({"model.fusion": {"kind": "concat", "norm": "layer"}}, "fusion has GroupNorm"),
        ({"data.observed": {"acc": 0.5}, "data.without_modality": "keep-one"}, "samples may lack acc"),
        ({"algorithm": {"kind": "moon"}}, "the algorithm adds to the loss"),
    ],
)
def test_what_the_kernels_lack_is_stacked(changes: Mapping[str, Any], found: str, small_scenario: Scenario) -> None:
    run = simulate(small_scenario.override({"rounds": 1, "training.engine": "compiled"} | changes))
    assert run.manifest["engines"]["acc+gyro"] == "vectorized"
    assert any(found in note for note in run.manifest["notes"]), run.manifest["notes"]


def test_passes_that_the_kernels_lack_are_stacked(small_scenario: Scenario) -> None:
    run = simulate(
        small_scenario.override({"rounds": 1, "training.engine": "compiled", "algorithm": {"kind": "mixed"}})
    )
    stacked = simulate(
        small_scenario.override({"rounds": 1, "training.engine": "vectorized", "algorithm": {"kind": "mixed"}})
    )
    assert run.manifest["digest"] == stacked.manifest["digest"]
    assert "trained on stacks and not with compiled kernels" in " ".join(run.manifest["notes"])


def test_structures_and_numbers_are_those_of_the_kernels(tmp_path: Path) -> None:
    source = resources.files("blossom_ray.clients.compiled").joinpath("kernels.c").read_text(encoding="utf-8")
    kinds, losses = (re.split(r",\s*", names) for names in re.findall(r"enum \{ (.*?) \};", source, re.DOTALL))
    assert kinds == [kind.name for kind in Kind]
    assert [*LOSSES.values()] == [*range(len(losses))]
    structures = {"Buffer": BufferFields, "Op": OpFields, "Block": BlockFields, "Client": Client}
    places = {f"{c}.{name}": getattr(own, name).offset for c, own in structures.items() for name, *_ in own._fields_}
    printed = "".join(f'printf("%zu\\n", offsetof({place.replace(".", ", ")}));' for place in places)
    (tmp_path / "offsets.c").write_text(
        f"{source}\n#include <stddef.h>\n#include <stdio.h>\nint main(void) {{{printed}}}"
    )
    program = str(tmp_path / "offsets")
    cc = str(shutil.which("cc"))
    subprocess.run([cc, "-O0", "-march=native", str(tmp_path / "offsets.c"), "-o", program, "-lm"], check=True)
    found = subprocess.run([program], capture_output=True, text=True, check=True).stdout.split()
    assert [*map(int, found)] == [*places.values()]
    assert ctypes.sizeof(OpFields) % 8 == 0
