"""The phases of local training: which blocks a client trains, and for how many epochs, one phase after the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from blossom_ray.clients.options import FineTune, Training
from blossom_ray.core.blocks import FUSION, HEAD, Block, BlockInstance


@dataclass(frozen=True)
class Phase:
    """Some epochs of local training in which some blocks are trained.

    The others stand still as frozen blocks do: no gradients, evaluation mode.

    Attributes:
        num_epochs: Passes over the training split.
        blocks: Names of the blocks that are trained.
        anchored: Those of them that the proximal term holds near the values that the client received.
    """

    num_epochs: int
    blocks: frozenset[str]
    anchored: frozenset[str] = frozenset()


def training_phases(section: Training, trained: Mapping[Block, BlockInstance]) -> tuple[Phase, ...]:
    """How a client trains in a round.

    Args:
        section: The scenario's `training` section.
        trained: The block instances that the client trains or measures, by block name.

    Returns:
        One phase with all blocks, or, with `alternate`, one with the private blocks and one with the others; a phase
        without blocks is left out. Blocks that are not private are anchored.

    Source: Collins et al. 2021 (arXiv:2102.07078), algorithm 1, for `alternate`; Li et al. 2020 (arXiv:1812.06127),
    algorithm 2, for the proximal term.
    """
    private = frozenset(name for name, instance in trained.items() if instance.is_private)
    shared = _stepped(trained) - private
    if section.alternate is None:
        return (Phase(section.local_epochs, private | shared, anchored=shared),)
    phases = (
        Phase(section.alternate.private_epochs, private),
        Phase(section.alternate.shared_epochs, shared, anchored=shared),
    )
    return tuple(phase for phase in phases if phase.blocks)


def tuning_phase(section: FineTune, trained: Mapping[Block, BlockInstance]) -> Phase:
    """How a client tunes its copy before it is scored; nothing is anchored.

    Args:
        section: The scenario's `evaluation.fine_tune` section.
        trained: The block instances that the client trains or measures, by block name.
    """
    names = {"all": _stepped(trained), "fusion-head": frozenset({FUSION, HEAD}), "head": frozenset({HEAD})}
    return Phase(section.epochs, names[section.blocks] & _stepped(trained))


def _stepped(trained: Mapping[Block, BlockInstance]) -> frozenset[str]:
    """The blocks that an optimizer steps; prototypes are measured afterwards."""
    return frozenset(name for name in trained if name.kind != "prototype")
