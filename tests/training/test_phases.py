from typing import Any

import pytest

from blossom_ray.clients.job import LocalPass, training_passes, tuning_pass
from blossom_ray.clients.options import FineTune, Training
from blossom_ray.core.blocks import ClientProfile, SharingScheme, model_blocks

CLIENT = ClientProfile(0, ("acc", "gyro"))
BODY = frozenset({"encoder/acc", "encoder/gyro", "fusion"})
HEAD = frozenset({"head"})


def trained(scheme: str | dict[str, str]) -> dict[str, Any]:
    sharing = SharingScheme.of(scheme)
    instances = {name: sharing.instance(name, CLIENT) for name in model_blocks(CLIENT.modalities)}
    return {name: instance for name, instance in instances.items() if instance.is_trained}


def test_blocks_are_trained_together_and_those_that_are_shared_are_anchored() -> None:
    passes = training_passes(Training(local_epochs=3, proximal_mu=0.1), trained("private-head"))
    assert passes == (LocalPass(3, BODY | HEAD, anchored=BODY, mu=0.1),)
    assert training_passes(Training(), trained("private-head")) == (LocalPass(1, BODY | HEAD),)


def test_alternation_trains_private_blocks_first() -> None:
    section = Training.model_validate({"alternate": {"private_epochs": 5, "shared_epochs": 2}})
    assert training_passes(section, trained("private-head")) == (LocalPass(5, HEAD), LocalPass(2, BODY))


@pytest.mark.parametrize(("scheme", "epochs"), [("full-model", 2), ("local", 5)])
def test_a_part_without_blocks_is_left_out(scheme: str, epochs: int) -> None:
    section = Training.model_validate({"alternate": {"private_epochs": 5, "shared_epochs": 2}})
    (phase,) = training_passes(section, trained(scheme))
    assert (phase.num_epochs, phase.blocks) == (epochs, BODY | HEAD)


@pytest.mark.parametrize(
    ("blocks", "expected"), [("all", BODY | HEAD), ("fusion-head", {"fusion", "head"}), ("head", {"head"})]
)
def test_fine_tuning_takes_the_blocks_it_is_told(blocks: Any, expected: frozenset[str]) -> None:
    phase = tuning_pass(FineTune(epochs=4, blocks=blocks), trained("private-head"))
    assert phase == LocalPass(4, frozenset(expected))


def test_fine_tuning_leaves_frozen_blocks_alone() -> None:
    scheme = {"encoder/*": "frozen", "fusion": "shared", "head": "private"}
    assert tuning_pass(FineTune(), trained(scheme)).blocks == {"fusion", "head"}
