from typing import Any

import pytest

from blossom_ray.clients.job import Phase, training_phases, tuning_phase
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
    phases = training_phases(Training(local_epochs=3), trained("private-head"))
    assert phases == (Phase(3, BODY | HEAD, anchored=BODY),)


def test_alternation_trains_private_blocks_first() -> None:
    section = Training.model_validate({"alternate": {"private_epochs": 5, "shared_epochs": 2}})
    assert training_phases(section, trained("private-head")) == (Phase(5, HEAD), Phase(2, BODY, anchored=BODY))


@pytest.mark.parametrize(("scheme", "epochs"), [("full-model", 2), ("local", 5)])
def test_a_part_without_blocks_is_left_out(scheme: str, epochs: int) -> None:
    section = Training.model_validate({"alternate": {"private_epochs": 5, "shared_epochs": 2}})
    (phase,) = training_phases(section, trained(scheme))
    assert (phase.num_epochs, phase.blocks) == (epochs, BODY | HEAD)


@pytest.mark.parametrize(
    ("blocks", "expected"), [("all", BODY | HEAD), ("fusion-head", {"fusion", "head"}), ("head", {"head"})]
)
def test_fine_tuning_takes_the_blocks_it_is_told(blocks: Any, expected: frozenset[str]) -> None:
    phase = tuning_phase(FineTune(epochs=4, blocks=blocks), trained("private-head"))
    assert phase == Phase(4, frozenset(expected))


def test_fine_tuning_leaves_frozen_blocks_alone() -> None:
    scheme = {"encoder/*": "frozen", "fusion": "shared", "head": "private"}
    assert tuning_phase(FineTune(), trained(scheme)).blocks == {"fusion", "head"}
