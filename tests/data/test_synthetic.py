from __future__ import annotations

import numpy as np
import pytest
from data_sets import synthetic_dataset, synthetic_targets
from hypothesis import given, settings
from hypothesis import strategies as st

from blossom_ray.core.scores import Task
from blossom_ray.data.dataset import Dataset
from blossom_ray.data.sets.synthetic import SyntheticData, SyntheticModality, ceiling, seen_outputs, views
from blossom_ray.errors import DataError


def spec_of(modalities: dict[str, SyntheticModality] | None = None, **values: object) -> SyntheticData:
    return SyntheticData.model_validate({"dataset": "synthetic", "modalities": modalities or {}, **values})


COMPLEMENTARY = {
    "a": SyntheticModality(distinguishable_classes=3),
    "b": SyntheticModality(distinguishable_classes=2),
}


def test_views_by_hand() -> None:
    spec = spec_of({**COMPLEMENTARY, "c": SyntheticModality()})
    labels = np.arange(6)
    assert views(spec, "a", labels).tolist() == [0, 1, 2, 0, 1, 2]
    assert views(spec, "b", labels).tolist() == [0, 0, 0, 1, 1, 1]
    assert views(spec, "c", labels).tolist() == [0, 1, 2, 3, 4, 5]
    assert views(spec, "unlisted", labels).tolist() == [0, 1, 2, 3, 4, 5]


def test_a_later_modality_still_tells_its_groups_apart() -> None:
    spec = spec_of(
        {"a": SyntheticModality(distinguishable_classes=4), "b": SyntheticModality(distinguishable_classes=4)}
    )
    assert views(spec, "b", np.arange(6)).tolist() == [0, 1, 2, 3, 0, 1]


@pytest.mark.parametrize(
    ("modalities", "expected"), [(["a"], 3 / 6), (["b"], 2 / 6), (["a", "b"], 1.0), (["c"], 1.0), ([], 1 / 6)]
)
def test_ceiling_by_hand(modalities: list[str], expected: float) -> None:
    assert ceiling(spec_of(COMPLEMENTARY), modalities) == expected


@given(
    classes=st.integers(2, 12),
    groups=st.lists(st.integers(1, 12), min_size=1, max_size=4),
)
@settings(deadline=None, max_examples=60)
def test_each_modality_alone_reaches_its_number_of_groups(classes: int, groups: list[int]) -> None:
    groups = [min(number, classes) for number in groups]
    modalities = {f"m{i}": SyntheticModality(distinguishable_classes=k) for i, k in enumerate(groups)}
    spec = spec_of(modalities, classes=classes)
    for name, number in zip(modalities, groups, strict=True):
        assert ceiling(spec, [name]) == number / classes
    assert ceiling(spec, modalities) >= max(groups) / classes


def nearest_mean_accuracy(dataset: Dataset, modalities: tuple[str, ...]) -> float:
    """Fit class means on the samples, score on the held-out set."""
    assert dataset.held_out is not None
    train, test = (
        np.concatenate([part.inputs[name].reshape(part.num_samples, -1) for name in modalities], axis=1)
        for part in (dataset, dataset.held_out)
    )
    means = np.stack([train[dataset.labels == label].mean(axis=0) for label in range(dataset.num_classes)])
    distances = ((test[:, None] - means[None]) ** 2).sum(axis=-1)
    return float((distances.argmin(axis=1) == dataset.held_out.labels).mean())


@pytest.mark.parametrize("kind", ["sequence", "image", "vector"])
@pytest.mark.parametrize("modalities", [("a",), ("b",), ("a", "b")])
def test_a_simple_classifier_reaches_the_ceiling_and_not_more(kind: str, modalities: tuple[str, ...]) -> None:
    sections = {
        name: SyntheticModality.model_validate({"kind": kind, "signal": 3.0, "distinguishable_classes": number})
        for name, number in (("a", 3), ("b", 2))
    }
    spec = spec_of(sections, samples=600, held_out_samples=1200)
    accuracy = nearest_mean_accuracy(synthetic_dataset(spec, ("a", "b"), 0), modalities)
    assert accuracy == pytest.approx(ceiling(spec, modalities), abs=0.05)


@pytest.mark.parametrize(("kind", "shape"), [("sequence", (64, 3)), ("image", (1, 16, 16)), ("vector", (32,))])
def test_default_shapes_and_power(kind: str, shape: tuple[int, ...]) -> None:
    section = SyntheticModality.model_validate({"kind": kind, "signal": 2.0})
    spec = spec_of({"m": section}, samples=3000)
    values = synthetic_dataset(spec, ("m",), 0).inputs["m"]
    assert values.dtype == np.float32
    assert values.shape == (3000, *shape)
    # E[a^2] = 1 + 0.5^2 / 12 for a ~ U(0.75, 1.25), the pattern's mean square is 1, the noise adds 1.
    assert np.square(values).mean() == pytest.approx(1 + 4 * (1 + 0.25 / 12), rel=0.02)


def test_each_template_has_unit_root_mean_square() -> None:
    spec = spec_of({"m": SyntheticModality(signal=1000.0)}, samples=1200)
    dataset = synthetic_dataset(spec, ("m",), 0)
    for label in range(6):
        # The mean of a is 1, so the mean of a class is 1000 times its template, up to 2 % for 200 draws of a.
        template = dataset.inputs["m"][dataset.labels == label].mean(axis=0) / 1000
        assert np.sqrt(np.square(template).mean()) == pytest.approx(1, abs=0.04)


def test_labels_and_subjects_are_spread_evenly() -> None:
    targets = synthetic_targets(spec_of(samples=1001, classes=6, subjects=7), 3)
    assert targets.labels.dtype == targets.subjects.dtype == np.int64
    assert sorted(np.bincount(targets.labels)) == [166, 167, 167, 167, 167, 167]
    assert np.bincount(targets.subjects).tolist() == [143] * 7


def test_targets_are_those_of_the_data_set() -> None:
    spec = spec_of(samples=50, subjects=4)
    targets, dataset = synthetic_targets(spec, 5), synthetic_dataset(spec, ("m",), 5)
    assert np.array_equal(targets.labels, dataset.labels)
    assert np.array_equal(targets.subjects, dataset.subjects)
    assert synthetic_targets(spec_of(samples=50), 5).subjects is None


def test_same_seed_same_data_other_seed_other_data() -> None:
    spec = spec_of(samples=20, held_out_samples=10)
    first, again, other = (synthetic_dataset(spec, ("m",), seed).fingerprint() for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_a_modality_does_not_depend_on_the_others() -> None:
    alone = synthetic_dataset(spec_of(samples=20), ("acc",), 0)
    together = synthetic_dataset(spec_of({"aaa": SyntheticModality()}, samples=20), ("aaa", "acc"), 0)
    assert np.array_equal(alone.inputs["acc"], together.inputs["acc"])
    assert not np.array_equal(together.inputs["aaa"], together.inputs["acc"])


def test_the_held_out_set_has_other_samples_and_other_subjects() -> None:
    dataset = synthetic_dataset(spec_of(samples=30, held_out_samples=30, subjects=3), ("m",), 0)
    assert dataset.held_out is not None
    assert set(dataset.subjects) == {0, 1, 2}
    assert set(dataset.held_out.subjects) == {3, 4, 5}
    assert not np.array_equal(dataset.inputs["m"], dataset.held_out.inputs["m"])
    assert synthetic_dataset(spec_of(samples=30, held_out_samples=0), ("m",), 0).held_out is None


def test_a_subject_adds_one_pattern_to_all_of_its_samples() -> None:
    plain = synthetic_dataset(spec_of(samples=40, subjects=2), ("m",), 0)
    shifted = synthetic_dataset(spec_of(samples=40, subjects=2, subject_shift=5.0), ("m",), 0)
    shifts = shifted.inputs["m"] - plain.inputs["m"]
    for subject in (0, 1):
        own = shifts[plain.subjects == subject]
        assert np.abs(own - own[0]).max() < 1e-5
        assert np.sqrt(np.square(own[0]).mean()) == pytest.approx(5, rel=1e-4)
    assert np.abs(shifts[plain.subjects == 0][0] - shifts[plain.subjects == 1][0]).max() > 1


def test_patterns_of_sequences_and_images_are_smooth() -> None:
    sections = {
        "sequence": SyntheticModality(kind="sequence", shape=(128, 2), signal=1e4),
        "image": SyntheticModality(kind="image", shape=(2, 64, 64), signal=1e4),
    }
    dataset = synthetic_dataset(spec_of(sections, samples=6, held_out_samples=0), ("sequence", "image"), 0)
    for modality, axis in (("sequence", 1), ("image", 2), ("image", 3)):
        values = dataset.inputs[modality]
        steps = np.diff(values, axis=axis)
        assert np.square(steps).mean() < 0.25 * np.square(values).mean()


def test_unfit_sections_are_refused() -> None:
    spec = spec_of({"m": SyntheticModality(kind="image", shape=(8, 8))})
    with pytest.raises(DataError, match=r"data.modalities.m.shape is \[8, 8\]; expected 3 numbers for kind image"):
        synthetic_dataset(spec, ("m",), 0)
    spec = spec_of({"m": SyntheticModality(distinguishable_classes=7)}, classes=6)
    with pytest.raises(DataError, match=r"distinguishable_classes is 7; expected at most 6, the number of classes"):
        ceiling(spec, ["m"])


def test_seen_classes_follow_each_other_from_modality_to_modality() -> None:
    spec = spec_of({**COMPLEMENTARY, "c": SyntheticModality(), "d": SyntheticModality(distinguishable_classes=2)})
    seen = {name: seen_outputs(spec, name, 6) for name in ("a", "b", "c", "d", "unlisted")}
    everything = (0, 1, 2, 3, 4, 5)
    assert seen == {"a": (0, 1, 2), "b": (3, 4), "c": everything, "d": (5, 0), "unlisted": everything}


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_strata_without_the_inputs_are_those_of_the_data_set(task: Task) -> None:
    spec = spec_of(samples=60, targets=2, subjects=4)
    targets, dataset = synthetic_targets(spec, 5, task), synthetic_dataset(spec, ("m",), 5, task)
    assert targets.labels.tolist() == dataset.targets.labels.tolist()
    assert targets.num_classes == dataset.targets.num_classes
    assert targets.subjects is not None
    assert targets.subjects.tolist() == dataset.targets.subjects.tolist()
    dataset.check_task(task)
    assert dataset.held_out is not None


def test_labels_of_each_task() -> None:
    spec = spec_of(samples=4000, classes=3, targets=2, held_out_samples=0)
    several, numbers = (synthetic_dataset(spec, ("m",), 0, task) for task in ("multilabel", "regression"))
    assert several.labels.shape == (4000, 3)
    # Standard errors are 0.007 and 0.016.
    np.testing.assert_allclose(several.labels.mean(axis=0), 0.3, atol=0.03)
    assert several.class_names == ("class 0", "class 1", "class 2")
    np.testing.assert_allclose(numbers.labels.mean(axis=0), 0, atol=0.07)
    np.testing.assert_allclose(numbers.labels.std(axis=0), 1, atol=0.05)
    assert numbers.class_names == ("target 0", "target 1")


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_a_modality_tells_what_it_sees_and_nothing_else(task: Task) -> None:
    vector = SyntheticModality(kind="vector", distinguishable_classes=2)
    spec = spec_of({"a": vector, "b": vector}, samples=3000, classes=4, targets=4, held_out_samples=0)
    dataset = synthetic_dataset(spec, ("a", "b"), 0, task)
    for modality, seen in (("a", [0, 1]), ("b", [2, 3])):
        inputs, labels = dataset.inputs[modality], dataset.labels - dataset.labels.mean(axis=0)
        solution, *_ = np.linalg.lstsq(inputs, labels, rcond=None)
        explained = 1 - np.square(labels - inputs @ solution).mean(axis=0) / labels.var(axis=0)
        unseen = [output for output in range(4) if output not in seen]
        assert explained[seen].min() > 0.6
        assert explained[unseen].max() < 0.05


def test_an_unseen_number_of_targets_is_refused() -> None:
    spec = spec_of({"m": SyntheticModality(distinguishable_classes=3)}, targets=2)
    with pytest.raises(
        DataError, match=r"distinguishable_classes is 3; expected at most 2, the number of classes or t"
    ):
        synthetic_dataset(spec, ("m",), 0, "regression")
