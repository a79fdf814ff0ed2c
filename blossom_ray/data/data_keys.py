"""The keys that the `data` section has for every data set."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from blossom_ray.core.section import Section
from blossom_ray.data.partition_options import IidPartition, Partition


class DataKeys(Section):
    """How samples are divided over clients, and into training, validation and test."""

    partition: Partition = IidPartition(kind="iid")
    """How samples are divided over clients."""
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Part of each client's samples kept for its own test split."""
    validation_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Part of each client's samples kept for its own validation split, on which one chooses. They are taken from what
    was for training: the test split is the same with and without. 0: no validation split."""
    split: Literal["sample", "recording", "subject", "common-subject"] = "sample"
    """`sample`: rows are drawn at random, so overlapping windows of one recording may fall on both sides and test
    scores are optimistic. `recording`: whole recordings (of UCI-HAR, of KU-HAR's `windows: recordings`, of a table's
    column `recording`) or dialogues, with one draw common to all clients: what one of them tests with, none trains on.
    Samples that share one recording (AV-MNIST, a table's column `recording`) are divided so by `sample`, too.
    `subject`: a client's test split holds whole subjects that its own training split has not; others may train on
    them. `common-subject`: whole subjects, with one draw common to all clients; what `subject` does where the
    partition is by subject."""
    draws: Literal["seed", "reference"] = "seed"
    """Where partition and split come from. `seed`: the scenario's seed. `reference`: drawn as the paper's code does,
    the same for every seed, which then only matches parts to clients; for `iid` and `dirichlet`, split by sample."""
