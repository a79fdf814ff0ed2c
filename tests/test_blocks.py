import copy
import json
import pickle
from typing import get_args

import pytest

from blossom_ray.core.blocks import (
    HEAD,
    Block,
    BlockInstance,
    ClientProfile,
    Scope,
    ScopeName,
    SharingScheme,
    model_blocks,
)

BOTH = ClientProfile(4, ("acc", "gyro"), "home")


def test_block_names_are_encoders_in_order_then_fusion_then_head() -> None:
    assert model_blocks(["gyro", "acc"]) == ("encoder/acc", "encoder/gyro", "fusion", "head")


@pytest.mark.parametrize(
    ("scheme", "shared"),
    [
        ("full-model", {"encoder/acc", "encoder/gyro", "fusion", "head"}),
        ("private-head", {"encoder/acc", "encoder/gyro", "fusion"}),
        ("private-head-fusion", {"encoder/acc", "encoder/gyro"}),
        ("local", set()),
    ],
)
def test_named_schemes_share_what_the_paper_says(scheme: str, shared: set[str]) -> None:
    instances = [SharingScheme.of(scheme).instance(name, BOTH) for name in model_blocks(BOTH.modalities)]
    assert {instance.name for instance in instances if not instance.is_private} == shared
    assert {instance.key for instance in instances if instance.is_private} <= {"4"}


@pytest.mark.parametrize(
    ("scope", "key", "text"),
    [
        ("shared", "", "head"),
        ("same-modalities", "acc+gyro", "head[acc+gyro]"),
        ("group", "home", "head[home]"),
        ("private", "4", "head[client 4]"),
        ("frozen", "", "head"),
    ],
)
def test_the_scope_decides_the_key(scope: str, key: str, text: str) -> None:
    scheme = SharingScheme.of({"encoder/*": "shared", "fusion": "shared", "head": scope})
    instance = scheme.instance(HEAD, BOTH)
    assert instance == BlockInstance(HEAD, Scope(scope), key)
    assert str(instance) == text


def test_names_match_exactly_and_never_by_prefix() -> None:
    scheme = SharingScheme.of({"encoder/acc": "private", "encoder/*": "shared", "fusion": "shared", "head": "shared"})
    assert scheme.scope("encoder/acc") is Scope.PRIVATE
    assert scheme.scope("encoder/acc2") is Scope.SHARED
    with pytest.raises(KeyError):
        scheme.scope("heads")


def test_a_scheme_survives_pickling() -> None:
    scheme = SharingScheme.of("private-head")
    assert pickle.loads(pickle.dumps(scheme)) == scheme


@pytest.mark.parametrize(
    ("block", "text"),
    [
        (Block("encoder", "acc"), "encoder/acc"),
        (Block("head"), "head"),
        (Block("prototype", "mag.x"), "prototype/mag.x"),
        (Block("statistics", Block("encoder", "acc")), "statistics/encoder/acc"),
    ],
)
def test_a_block_is_its_name_and_knows_what_it_is(block: Block, text: str) -> None:
    assert block == text
    assert hash(block) == hash(text)
    assert Block.named(block) is block
    assert f"{block}" == str(block) == json.loads(json.dumps(block)) == text
    for again in (Block.named(text), pickle.loads(pickle.dumps(block)), copy.deepcopy(block)):
        assert (again, again.kind, again.of) == (block, block.kind, block.of)
        assert type(again) is Block


def test_a_scheme_takes_the_names_of_blocks_for_them() -> None:
    for name in ("encoder/acc", "prototype/gyro"):
        instance = SharingScheme.of("full-model").instance(name, BOTH)
        assert (instance.name, instance.name.kind) == (name, name.split("/")[0])


def test_scopes_are_named_as_they_are() -> None:
    of_algorithms = (Scope.SERVER, Scope.CLIENT, Scope.DRAWN)
    assert (*get_args(ScopeName), *of_algorithms) == tuple(Scope)
