from __future__ import annotations

import pickle
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from blossom_ray.data.division.options import Partition
from blossom_ray.data.division.partition import PartitionError, partition
from blossom_ray.data.targets import IntArray, Targets

SPEC = TypeAdapter(Partition)


def spec_of(kind: str, **values: Any) -> Partition:
    return SPEC.validate_python({"kind": kind, **values})


def targets_of(num_rows: int, num_classes: int = 4, num_subjects: int | None = None) -> Targets:
    rng = np.random.default_rng(num_rows)
    labels = rng.integers(num_classes, size=num_rows)
    subjects = None if num_subjects is None else rng.permutation(np.arange(num_rows) % num_subjects)
    return Targets(labels, num_classes, subjects)


def sizes_of(parts: list[IntArray]) -> list[int]:
    return [len(part) for part in parts]


def class_shares(parts: list[IntArray], targets: Targets) -> np.ndarray:
    counts = np.stack([np.bincount(targets.labels[part], minlength=targets.num_classes) for part in parts])
    return counts / counts.sum(axis=1, keepdims=True)


SPECS = [
    spec_of("iid"),
    spec_of("dirichlet", alpha=0.5, min_samples=2),
    spec_of("dirichlet", alpha=0.05, min_samples=2, equal_sizes=True),
    spec_of("dirichlet", alpha=5.0, min_samples=2, equal_sizes=True),
    spec_of("quantity", alpha=1.0, min_samples=2),
    spec_of("subject"),
]


@given(
    spec=st.sampled_from(SPECS),
    num_clients=st.integers(1, 8),
    num_rows=st.integers(200, 300),
    num_classes=st.integers(1, 5),
    seed=st.integers(0, 2**63 - 1),
)
@settings(deadline=None, max_examples=60)
def test_parts_are_sorted_disjoint_complete_and_repeatable(
    spec: Partition, num_clients: int, num_rows: int, num_classes: int, seed: int
) -> None:
    targets = targets_of(num_rows, num_classes, num_subjects=12)
    parts = partition(spec, targets, num_clients, seed)
    assert len(parts) == num_clients
    assert all(part.dtype == np.int64 and len(part) >= 2 and (np.diff(part) > 0).all() for part in parts)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(num_rows))
    again = partition(spec, targets, num_clients, seed)
    assert all(np.array_equal(first, second) for first, second in zip(parts, again, strict=True))


@pytest.mark.parametrize("spec", SPECS)
def test_another_seed_gives_another_partition(spec: Partition) -> None:
    targets = targets_of(200, num_subjects=12)
    first, second = (partition(spec, targets, 4, seed)[0].tolist() for seed in (0, 1))
    assert first != second


def test_iid_sizes_differ_by_at_most_one() -> None:
    assert sorted(sizes_of(partition(spec_of("iid"), targets_of(23), 5, 0))) == [4, 4, 5, 5, 5]


def test_one_client_gets_everything() -> None:
    for spec in SPECS:
        assert sizes_of(partition(spec, targets_of(50, num_subjects=3), 1, 0)) == [50]


def test_large_alpha_approaches_iid() -> None:
    targets = targets_of(20_000)
    overall = np.bincount(targets.labels) / 20_000
    for equal_sizes in (False, True):
        parts = partition(spec_of("dirichlet", alpha=1e5, equal_sizes=equal_sizes), targets, 10, 0)
        np.testing.assert_allclose(sizes_of(parts), 2000, rtol=0.02)
        np.testing.assert_allclose(class_shares(parts, targets), np.tile(overall, (10, 1)), atol=0.05)


def test_large_alpha_approaches_iid_where_classes_are_unequal() -> None:
    labels = np.repeat([0, 1, 2], [9000, 900, 100])
    targets = Targets(labels, 3)
    parts = partition(spec_of("dirichlet", alpha=1e5, equal_sizes=True), targets, 10, 0)
    np.testing.assert_allclose(class_shares(parts, targets), np.tile([0.9, 0.09, 0.01], (10, 1)), atol=0.03)


def test_small_alpha_gives_each_client_few_classes() -> None:
    targets = targets_of(20_000, num_classes=10)
    skewed, even = (
        class_shares(
            partition(spec_of("dirichlet", alpha=alpha, min_samples=2, equal_sizes=True), targets, 20, 0), targets
        )
        for alpha in (0.02, 100.0)
    )
    # The last client takes what is left, so the median client is looked at.
    assert np.median(skewed.max(axis=1)) > 0.8
    assert np.median(even.max(axis=1)) < 0.2


def test_dirichlet_proportions_follow_the_distribution() -> None:
    """One class, so a client's share is Beta(a, (K-1) a): variance (1/K)(1 - 1/K) / (K a + 1)."""
    num_clients, alpha = 5, 2.0
    targets = Targets(np.zeros(10_000, np.int64), 1)
    shares = np.array(
        [
            sizes_of(partition(spec_of("dirichlet", alpha=alpha, min_samples=2), targets, num_clients, seed))
            for seed in range(300)
        ]
    )
    expected = (1 / num_clients) * (1 - 1 / num_clients) / (num_clients * alpha + 1)
    assert (shares / 10_000).var() == pytest.approx(expected, rel=0.15)


def test_equal_sizes_are_equal_within_one() -> None:
    for alpha in (1e-3, 0.5, 1e3):
        spec = spec_of("dirichlet", alpha=alpha, min_samples=2, equal_sizes=True)
        assert sorted(sizes_of(partition(spec, targets_of(203), 10, 1))) == [20] * 7 + [21] * 3


@pytest.mark.parametrize(("num_rows", "num_classes", "num_clients"), [(3000, 8, 300), (1003, 3, 100), (999, 40, 90)])
def test_mixes_of_many_clients_are_drawn_at_once_and_are_those_of_one_after_the_other(
    num_rows: int, num_classes: int, num_clients: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for alpha in (0.05, 0.3, 1e12):
        spec = spec_of("dirichlet", alpha=alpha, min_samples=2, equal_sizes=True)
        with monkeypatch.context() as patched:
            patched.setattr("blossom_ray.data.division.partition._MANY", num_clients + 1)
            in_turn = partition(spec, targets_of(num_rows, num_classes), num_clients, 1)
        at_once = partition(spec, targets_of(num_rows, num_classes), num_clients, 1)
        assert all(map(np.array_equal, at_once, in_turn))


def test_extreme_alphas() -> None:
    for alpha in (1e-300, 1e30):
        spec = spec_of("dirichlet", alpha=alpha, equal_sizes=True)
        assert sizes_of(partition(spec, targets_of(200), 10, 0)) == [20] * 10
    sizes = sizes_of(partition(spec_of("dirichlet", alpha=1e30), targets_of(200), 10, 0))
    assert max(sizes) - min(sizes) <= 8


def test_equal_sizes_with_a_class_that_no_sample_has() -> None:
    targets = Targets(np.repeat([0, 2], 50), 4)
    spec = spec_of("dirichlet", alpha=0.1, equal_sizes=True)
    assert sizes_of(partition(spec, targets, 10, 0)) == [10] * 10


def test_draws_are_repeated_until_everybody_has_enough() -> None:
    spec = spec_of("dirichlet", alpha=0.5, min_samples=30)
    for seed in range(10):
        assert min(sizes_of(partition(spec, targets_of(1000), 8, seed))) >= 30


def test_whole_subjects_go_to_the_client_with_the_fewest_samples() -> None:
    """Sizes 5, 4, 3, 3 on two clients: 5 | 4, then 3 to the 4, then 3 to the 5: 8 and 7."""
    subjects = np.repeat([10, 20, 30, 40], [5, 4, 3, 3])
    targets = Targets(np.zeros(15, np.int64), 1, subjects)
    for seed in range(5):
        parts = partition(spec_of("subject"), targets, 2, seed)
        assert sorted(sizes_of(parts)) == [7, 8]
        owners = [set(subjects[part].tolist()) for part in parts]
        assert not owners[0] & owners[1]
        assert {len(owned) for owned in owners} == {2}
        assert next(owned for owned in owners if 10 in owned) in ({10, 30}, {10, 40})


def test_a_clients_id_says_nothing_about_the_size_of_its_part() -> None:
    largest = {int(np.argmax(sizes_of(partition(SPECS[1], targets_of(200), 4, seed)))) for seed in range(30)}
    assert largest == {0, 1, 2, 3}


def test_quantity_skews_sizes_and_leaves_labels_alone() -> None:
    targets = targets_of(20_000)
    parts = partition(spec_of("quantity", alpha=0.5, min_samples=500), targets, 5, 0)
    assert max(sizes_of(parts)) > 2 * min(sizes_of(parts))
    overall = np.bincount(targets.labels) / 20_000
    np.testing.assert_allclose(class_shares(parts, targets), np.tile(overall, (5, 1)), atol=0.07)


@pytest.mark.parametrize(
    ("spec", "targets", "path", "message"),
    [
        (
            spec_of("dirichlet", alpha=0.01),
            targets_of(400),
            "data.partition.alpha",
            r"^data.partition.alpha is 0.01, which leaves \d+ of 10 clients with fewer than 10 samples "
            r"\(client \d has \d; 100 draws tried\); expected a larger alpha, fewer clients or more samples, or a "
            r"smaller data.partition.min_samples$",
        ),
        (
            spec_of("quantity", min_samples=50),
            targets_of(400),
            "data.partition.min_samples",
            "min_samples is 50, which 400 samples over 10 clients cannot give; expected at most 40, or fewer clients",
        ),
        (
            spec_of("dirichlet"),
            targets_of(15),
            "data.partition.min_samples",
            "min_samples is 10, which 15 samples .* expected fewer clients or more samples",
        ),
        (
            spec_of("iid"),
            targets_of(15),
            "data.partition",
            "divides 15 samples over 10 clients; expected at least 2 samples per client",
        ),
        (
            spec_of("subject"),
            targets_of(400),
            "data.partition.kind",
            "is 'subject', but the samples belong to no subject; expected 'iid', 'dirichlet' or 'quantity'",
        ),
        (
            spec_of("subject"),
            targets_of(400, num_subjects=9),
            "data.partition.kind",
            "but 9 subjects cannot be divided over 10 clients; expected at most 9 clients",
        ),
        (
            spec_of("subject"),
            Targets(np.zeros(40, np.int64), 1, np.array([*range(9), *[9] * 31])),
            "data.partition.kind",
            "leaves a client with 1 sample of one subject",
        ),
    ],
)
def test_what_cannot_be_met_is_told(spec: Partition, targets: Targets, path: str, message: str) -> None:
    with pytest.raises(PartitionError, match=message) as caught:
        partition(spec, targets, 10, 0)
    assert caught.value.path == path


def test_the_error_survives_pickling() -> None:
    error = PartitionError("data.split", "is bad", "good")
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.path, copy.found, copy.expected) == ("data.split", "is bad", "good")
    assert str(copy) == "data.split is bad; expected good"


@pytest.mark.parametrize(
    "spec",
    [
        spec_of("iid"),
        spec_of("dirichlet", alpha=1.0, min_samples=2),
        spec_of("dirichlet", alpha=0.5, min_samples=2, equal_sizes=True),
        spec_of("quantity", alpha=5.0, min_samples=2),
    ],
)
def test_ten_thousand_clients_in_seconds(spec: Partition) -> None:
    targets = targets_of(1_000_000, num_classes=10)
    start = time.process_time()
    assert len(partition(spec, targets, 10_000, 0)) == 10_000
    assert time.process_time() - start < 10


def test_absurd_numbers_are_refused_before_memory_is_asked_for() -> None:
    targets = targets_of(100)
    for spec in (spec_of("iid"), spec_of("dirichlet"), spec_of("subject")):
        with pytest.raises(PartitionError, match="fewer clients"):
            partition(spec, targets, 10**15, 0)
    many = Targets(np.zeros(100, np.int64), 10**9)
    with pytest.raises(PartitionError, match="classes times clients at most 10,000,000"):
        partition(spec_of("dirichlet"), many, 2, 0)


def test_many_proportions_get_fewer_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blossom_ray.data.division.partition._DRAWN_PROPORTIONS", 10**5)
    with pytest.raises(PartitionError, match="25 draws tried"):
        partition(spec_of("dirichlet", min_samples=50), Targets(np.zeros(100, np.int64), 2000), 2, 0)
