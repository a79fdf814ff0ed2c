"""The `model` section: encoders, fusion, head, and what stands for a missing modality."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Literal

from pydantic import Field

from blossom_ray.core.blocks import FUSION, HEAD, Block
from blossom_ray.core.section import ModalityName, Section
from blossom_ray.models.block_options import Shape, Weights
from blossom_ray.models.encoder_options import EmbeddingEncoder, Encoder
from blossom_ray.models.fusion_options import AttentionFusion, Fusion, Head, MlpHead

MissingRule = Literal["mask", "zero-embedding", "zero-input", "prototype"]
NormStatistics = Literal["local", "same-modalities", "shared"]
Precision = Literal["float32", "bfloat16"]


class Model(Section):
    """A late-fusion model: an encoder per modality, a fusion, a head."""

    encoders: Annotated[dict[ModalityName, Encoder], Field(min_length=1)]
    """Encoder by modality. The modalities here are all that the federation has."""
    fusion: Fusion = AttentionFusion(kind="attention")
    """How embeddings become one representation."""
    head: Head = MlpHead(kind="mlp")
    """From the fused representation to the outputs."""
    missing: MissingRule = "mask"
    """What stands for a modality that a client does not own, in training and evaluation alike. `mask`: the fusion
    sees only what is there. `zero-embedding`: an embedding of zeros. `zero-input`: an input of zeros through the
    current encoder, which the client then holds without training it. `prototype`: the mean embedding of the clients
    that own the modality, measured after each local training and averaged by the server (PmcmFL, simplified)."""
    norm_statistics: NormStatistics = "shared"
    """Running statistics of normalisation layers: averaged with their block (`shared`), averaged over the clients that
    own exactly the same modalities (`same-modalities`), or kept by each client (`local`)."""

    @property
    def pretrained(self) -> dict[Block, Weights]:
        """What blocks start from, where that is not drawn."""
        sections = {Block("encoder", name): section.weights for name, section in self.encoders.items()}
        sections |= {FUSION: self.fusion.weights, HEAD: self.head.weights}
        return {block: weights for block, weights in sections.items() if weights is not None}

    @property
    def frozen_blocks(self) -> tuple[Block, ...]:
        """Blocks whose pretrained values stay as they are."""
        return tuple(block for block, weights in self.pretrained.items() if weights.frozen)

    def with_vocabularies(self, known: Callable[[str], int | None]) -> Model:
        """The section with how many numbers of tokens there are, for those encoders that leave it to the data.

        Args:
            known: From a modality to its number of them; None where the data do not say.
        """
        encoders = {
            name: section.model_copy(update={"vocabulary": known(name)})
            if isinstance(section, EmbeddingEncoder) and section.vocabulary is None
            else section
            for name, section in self.encoders.items()
        }
        return self.model_copy(update={"encoders": encoders})

    def embedding_dims(self, input_shapes: Mapping[str, Shape]) -> dict[str, int]:
        """Width of the embedding of each of these modalities, sorted; own encoders are built and tried to find out.

        Raises:
            InputError: An own encoder does not do what it should.
        """
        return {
            name: self.encoders[name].embedding_dim(shape, name)
            for name, shape in sorted(input_shapes.items())
            if name in self.encoders
        }


def place_of(block: Block) -> str:
    """Where a block's section stands in a scenario."""
    return f"model.encoders.{block.of}" if block.kind == "encoder" else f"model.{block.kind}"
