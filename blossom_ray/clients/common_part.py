"""What is the same in the forward passes of several clients, as where all are scored on the held-out set."""

from __future__ import annotations

from collections.abc import Sequence

from blossom_ray.clients.job import ClientTask
from blossom_ray.clients.workspace import Workspace
from blossom_ray.core.blocks import Block
from blossom_ray.models.late_fusion import Later

_MAX_VALUES = 2**26
"""The most values (256 MiB) of a forward pass that are kept for all clients."""


def until_own(tasks: Sequence[ClientTask], workspace: Workspace) -> Later | None:
    """The kind of the first blocks in which these clients differ, which see the same samples; None: they need not.

    Samples and blocks are the same where they are the same memory.

    Args:
        tasks: The clients.
        workspace: A model of their kind.
    """
    first, others, model = tasks[0], tasks[1:], workspace.model
    if not others or len(first.labels) * sum(model.embedding_dims.values()) > _MAX_VALUES:
        return None
    for task in others:
        if task.labels is not first.labels or any(task.inputs[name] is not own for name, own in first.inputs.items()):
            return None
        if any(task.observed.get(name) is not first.observed.get(name) for name in first.inputs):
            return None

    def is_common(name: Block) -> bool:
        if name in model.own_modules or workspace.has_local_statistics:
            states = [task.local_state.get(name) for task in tasks]
            if any(state is not states[0] for state in states):
                return False
        return all(task.blocks[name] is first.blocks[name] for task in others)

    own = {name.kind for name in model.blocks if not is_common(name)}
    if own <= {"head"}:
        return "head"
    return "fusion" if own <= {"head", "fusion"} else None
