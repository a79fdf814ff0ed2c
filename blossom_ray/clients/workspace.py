"""A client model with its block vectors: memory that clients of one modality set with the same tasks take turns in."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from blossom_ray.clients.losses import Loss, Objective, TaskLoss
from blossom_ray.clients.plan import ClientPlan, LocalState
from blossom_ray.clients.transforms import Transform, build_transforms
from blossom_ray.core.blocks import Block, ClientProfile
from blossom_ray.core.factories import shown_factory
from blossom_ray.core.section import Custom
from blossom_ray.core.sums import Vector
from blossom_ray.models.build import build_client_model
from blossom_ray.models.flat import FlatBlock
from blossom_ray.models.late_fusion import LateFusionModel
from blossom_ray.models.options import Model, NormStatistics, Precision
from blossom_ray.tasks.learned import Learned


class Workspace:
    """One late-fusion model whose blocks are flat vectors, loaded and read per client.

    Args:
        section: The scenario's `model` section.
        input_shapes: Shape of one sample by modality, for all modalities that the model knows.
        learned: What the model learns, its loss and its scores.
        owned: Modalities of the clients that work here.
        frozen: Names of blocks that are never trained.
        seed: The scenario's seed; initial values follow from it per block name.
        device: Where the model computes.
        precision: In what its matrix products and convolutions compute.
        loss: The scenario's `training.loss` section.
        transforms: Its `training.transform` section.
        sparse: Modalities that samples of owners may lack.
        fusions: The tasks that have a fusion each; "" is one for all.

    Attributes:
        own_functions: Own code that is called in training and is no part of the model: its place and its factory.

    Raises:
        InputError: A part of the sections does not fit, or own code does not do what it should.
    """

    def __init__(
        self,
        section: Model,
        input_shapes: Mapping[str, tuple[int, ...]],
        learned: Learned,
        *,
        owned: tuple[str, ...],
        frozen: frozenset[str] = frozenset(),
        seed: int,
        device: torch.device | str = "cpu",
        precision: Precision = "float32",
        loss: Loss | None = None,
        transforms: Mapping[str, Transform] | None = None,
        sparse: Iterable[str] = (),
        fusions: Iterable[str] = ("",),
    ) -> None:
        self.device, self.learned = torch.device(device), learned
        self.objective = Objective(loss or TaskLoss(kind="task"), learned, self.device)
        transforms = transforms or {}
        self.transforms = build_transforms(transforms, input_shapes, owned)
        called = {"training.loss": loss, **{f"training.transform.{name}": transforms[name] for name in self.transforms}}
        own = ((where, each) for where, each in called.items() if isinstance(each, Custom))
        self.own_functions = tuple(f"{where} ({shown_factory(each)})" for where, each in own)
        self.model = build_client_model(section, input_shapes, learned.outputs, owned, seed, sparse, fusions)
        self.model = self.model.to(self.device)
        self.model.precision = precision
        self.flat: dict[str, FlatBlock] = {}
        for name, module in self.model.blocks.items():
            trained = name not in frozen and name not in self.model.unowned_blocks
            # A prototype is nothing but an averaged statistic, whoever keeps those of normalisation layers.
            statistics = "shared" if name.kind == "prototype" else section.norm_statistics
            self.flat[name] = FlatBlock(module, statistics, trained=trained)
        self._norm_statistics = section.norm_statistics
        self._spares: dict[str, tuple[LateFusionModel, dict[str, FlatBlock]]] = {}
        self._active = frozenset(self.trained)
        self.initial_blocks: dict[str, Vector] = {name: flat.read() for name, flat in self.flat.items()}
        self.initial_state: LocalState = self.local_state()

    @property
    def trained(self) -> dict[str, FlatBlock]:
        """The blocks that local training changes, by name."""
        return {name: flat for name, flat in self.flat.items() if flat.trained}

    @property
    def num_parameters(self) -> dict[str, int]:
        """How many values of each block's vector are parameters, by name; they come first."""
        return {name: flat.num_parameters for name, flat in self.flat.items()}

    @property
    def has_local_statistics(self) -> bool:
        """Whether the running statistics of normalisation layers are each client's own."""
        return self._norm_statistics == "local"

    def idle_blocks(self, targets: Tensor) -> frozenset[Block]:
        """Heads, and fusions of theirs alone, of tasks of which no sample of a batch has a label.

        Args:
            targets: The labels of the batch, as the tasks have them.
        """
        if not self.learned.has_several:
            return frozenset()
        has_label = self.learned.known_samples(targets).amax(dim=0).tolist()
        heads = [Block("head", part.name) for part, own in zip(self.learned.parts, has_label, strict=True) if not own]
        return frozenset((*heads, *(fusion for head in heads if (fusion := self.model.fusion_of[head]).of)))

    def train_only(self, names: frozenset[str]) -> None:
        """Let training change only these of the `trained` blocks; the others stand still as frozen blocks do."""
        if names == self._active:
            return
        self._active = frozenset(names)
        for name, flat in self.trained.items():
            for parameter in flat.module.parameters():
                parameter.requires_grad_(name in names)
        self.model.eval()  # which blocks train is looked at when training mode is entered

    def spare(self, name: str) -> tuple[LateFusionModel, dict[str, FlatBlock]]:
        """A further model like this one under a name of its own, in evaluation mode, with its blocks by name."""
        if name not in self._spares:
            model = copy.deepcopy(self.model)
            flats: dict[str, FlatBlock] = {}
            for block, module in model.blocks.items():
                statistics: NormStatistics = "shared" if block.kind == "prototype" else self._norm_statistics
                flats[block] = FlatBlock(module, statistics, trained=False)
            self._spares[name] = model.eval(), flats
        return self._spares[name]

    def load(self, blocks: Mapping[str, Vector], local_state: Mapping[str, Mapping[str, np.ndarray]]) -> None:
        """Copy a client's blocks and local normalisation state in. The arrays are not modified or kept."""
        for name, flat in self.flat.items():
            flat.load(blocks[name])
            flat.load_local_state(local_state.get(name, {}))

    def local_state(self) -> LocalState:
        """Copies of the buffers that are the client's own: counters, constants, under `local` running statistics."""
        states = ((name, flat.local_state()) for name, flat in self.flat.items())
        return {name: state for name, state in states if state}


def client_workspace(plan: ClientPlan, profile: ClientProfile, device: torch.device | str = "cpu") -> Workspace:
    """The memory in which clients with the modalities and the tasks of `profile` are computed.

    Args:
        plan: What every client goes by.
        profile: One of the clients.
        device: Where the model computes.
    """
    frozen = frozenset(name for name, instance in plan.held_blocks(profile).items() if not instance.is_trained)
    return Workspace(
        plan.model,
        plan.shapes(profile),
        plan.learned(profile),
        owned=profile.modalities,
        frozen=frozen,
        seed=plan.seed,
        device=device,
        precision=plan.training.precision,
        loss=plan.training.loss,
        transforms=plan.training.transform,
        sparse=plan.sparse,
        fusions=plan.scheme.fusions(profile.tasks),
    )
