import pickle

import pytest

from blossom_ray.core.blocks import BlockInstance, ClientProfile, Scope, SharingScheme, block_names

BOTH = ClientProfile(4, ("acc", "gyro"), "home")


def test_block_names_are_encoders_in_order_then_fusion_then_head() -> None:
    assert block_names(["gyro", "acc"]) == ("encoder/acc", "encoder/gyro", "fusion", "head")


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
    instances = [SharingScheme.of(scheme).instance(name, BOTH) for name in block_names(BOTH.modalities)]
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
    instance = scheme.instance("head", BOTH)
    assert instance == BlockInstance("head", Scope(scope), key)
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
