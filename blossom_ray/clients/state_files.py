"""Whether a client's state from a checkpoint is one that this run could have written.

Checksums find damage; this finds files that are whole and hold something else.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from blossom_ray.clients.optimizers import counter_names, moment_names
from blossom_ray.clients.plan import ClientPlan, ClientState
from blossom_ray.clients.workspace import Workspace
from blossom_ray.core.blocks import ClientProfile

# Shape and dtype by name.
_Kinds = dict[str, tuple[tuple[int, ...], np.dtype]]


def state_problem(state: ClientState, plan: ClientPlan, profile: ClientProfile, workspace: Workspace) -> str | None:
    """What is wrong with a client's state, as one phrase; None if nothing is.

    Args:
        state: From a checkpoint.
        plan: What every client goes by.
        profile: The client.
        workspace: A model of its modality set.
    """
    trained = plan.trained_blocks(profile)
    private = {name: workspace.initial_blocks[name] for name, instance in trained.items() if instance.is_private}
    kept = trained.keys() & workspace.trained.keys() if plan.training.keep_optimizer_state else set()
    optimizer = {name: _optimizer_kinds(plan, workspace.flat[name].num_parameters) for name in kept}
    local = {name: _kinds(buffers) for name, buffers in workspace.initial_state.items()}
    return (
        _differs("private blocks", _kinds(private), _kinds(state.private))
        or _differs("blocks with normalisation state", local.keys(), state.local_state.keys())
        or _nested_differ("normalisation state", local, state.local_state)
        or _differs("blocks with optimizer state", optimizer.keys(), state.optimizer_state.keys())
        or _nested_differ("optimizer state", optimizer, state.optimizer_state)
        or _unknown_versions(state, plan, profile)
    )


def _kinds(arrays: Mapping[str, np.ndarray]) -> _Kinds:
    return {name: (values.shape, values.dtype) for name, values in arrays.items()}


def _optimizer_kinds(plan: ClientPlan, num_parameters: int) -> _Kinds:
    single = np.dtype(np.float32)
    section = plan.training.optimizer
    return dict.fromkeys(moment_names(section), ((num_parameters,), single)) | dict.fromkeys(
        counter_names(section), ((), single)
    )


def _differs(what: str, expected: object, found: object) -> str | None:
    # A client that never trained has nothing yet.
    return None if not found or found == expected else f"{what} {_text(found)}; expected {_text(expected)}"


def _nested_differ(
    what: str, expected: Mapping[str, _Kinds], found: Mapping[str, Mapping[str, np.ndarray]]
) -> str | None:
    problems = (_differs(f"{what} of {name}", expected[name], _kinds(arrays)) for name, arrays in found.items())
    return next((problem for problem in problems if problem), None)


def _unknown_versions(state: ClientState, plan: ClientPlan, profile: ClientProfile) -> str | None:
    unknown = state.versions.keys() - set(plan.sent_blocks(profile))
    return f"a version of {min(map(str, unknown))}, which it does not hold" if unknown else None


def _text(kinds: object) -> str:
    if not isinstance(kinds, Mapping):
        return "{" + ", ".join(sorted(map(str, kinds))) + "}"  # type: ignore[call-overload]  # names of blocks
    return "{" + ", ".join(f"{name}: {dtype}{list(shape)}" for name, (shape, dtype) in sorted(kinds.items())) + "}"
