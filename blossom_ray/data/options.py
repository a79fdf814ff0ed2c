"""The `data` section: which data set, and how its samples are divided over clients."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from blossom_ray.core.section import Factory, ModalityName, NonNegative, Positive, Section, check_factory
from blossom_ray.data.audio_text_data import AvMnistData, IemocapData, MeldData
from blossom_ray.data.data_keys import DataKeys

ColumnNames = Annotated[str, Field(min_length=1)] | Annotated[tuple[str, ...], Field(strict=False, min_length=1)]


class SyntheticModality(Section):
    """Shape of one synthetic modality and how much it alone tells about the label."""

    kind: Literal["sequence", "image", "vector"] = "sequence"
    """Shape family: `sequence` (time, channels), `image` (channels, height, width), `vector` (features)."""
    shape: Annotated[tuple[Positive, ...], Field(strict=False)] | None = None
    """Shape of one sample. Default: (64, 3) for a sequence, (1, 16, 16) for an image, (32,) for a vector."""
    distinguishable_classes: Positive | None = None
    """How many groups of classes this modality tells apart; classes of one group look alike in it. Equal to
    `classes` (default): sufficient alone. 1: tells nothing. Best accuracy from it alone: this number / `classes`.
    With `task: multilabel` or `regression`: how many of the classes or targets it sees at all."""
    signal: NonNegative = 1.0
    """Root mean square of the class pattern, in units of the noise's standard deviation."""


class SyntheticData(DataKeys):
    """Generated samples; the formula stands in `blossom_ray/data/sets/synthetic.py` and in the docs."""

    dataset: Literal["synthetic"]
    path: None = None
    """Not used: synthetic data need no file."""
    samples: Positive = 2000
    """Samples over all clients."""
    classes: Annotated[int, Field(ge=2, le=1_000_000_000)] = 6
    """Number of classes, equally likely. With `task: multilabel` a sample has each with probability 0.3."""
    targets: Positive = 1
    """Number of targets, each standard normal, with `task: regression`."""
    modalities: dict[ModalityName, SyntheticModality] = Field(default_factory=dict)
    """Modality by name. A modality that clients own and that is not listed gets the defaults."""
    subjects: Positive | None = None
    """Number of subjects that samples are attributed to, or null for none."""
    subject_shift: NonNegative = 0.0
    """Root mean square of a pattern that each subject adds to all of its samples, in units of the noise."""
    held_out_samples: Annotated[int, Field(ge=0, le=1_000_000_000)] = 500
    """Samples of the held-out global test set that no client trains on."""


class UciHarData(DataKeys):
    """Human Activity Recognition Using Smartphones 1.0 (Anguita et al. 2013): 6 activities, 30 subjects.

    Modalities `acc` and `gyro`, windows of (128, 3). Clients share the official training part; the official test
    part (9 other subjects) is the held-out global test set.
    """

    dataset: Literal["uci-har"]
    path: str | None = None
    """The official `UCI HAR Dataset.zip`, or the folder it unpacks to. Relative to the working directory."""
    acceleration: Literal["body", "total"] = "body"
    """Which acceleration: `body` (gravity removed) or `total`, in g. Angular velocity is in rad/s."""
    zscore: bool = False
    """Whether each axis of each window is brought to mean 0 and deviation 1."""


class KuHarData(DataKeys):
    """KU-HAR, version 5 (Sikder & Nahid 2021): 18 activities, 90 people, 100 Hz.

    Modalities `acc` (m/s²) and `gyro` (rad/s), windows of 3 s: (300, 3), or (150, 3) at 50 Hz. There is no official
    test part, so no held-out set. The paper of BLOSSOM: `classes: paper`, `rate_hz: 50`, `zscore: true`.
    """

    dataset: Literal["ku-har"]
    path: str | None = None
    """The official `3.Time_domain_subsamples.zip`, its folder or its CSV file; with `windows: recordings`
    `2.Trimmed_interpolated_data.zip` or its folder. Relative to the working directory."""
    windows: Literal["official", "recordings"] = "official"
    """`official`: the 20,750 windows as the authors cut them, which do not say whose they are. `recordings`: windows
    cut here from the trimmed recordings, without overlap, with subjects."""
    classes: Literal["all", "paper"] = "all"
    """`all`: 18 activities. `paper`: the 8 Stand, Sit, Lay, Jump, Walk, Run, Stair-up, Stair-down."""
    rate_hz: Literal[100, 50] = 100
    """Steps per second: as recorded, or every second step of it, without a filter."""
    zscore: bool = False
    """Whether each axis of each window is brought to mean 0 and deviation 1."""


class PtbXlData(DataKeys):
    """PTB-XL 1.0.3 (Wagner et al. 2020): 12-lead electrocardiograms of 10 s at 100 Hz, five diagnostic superclasses.

    Modalities `i_to_avf` (leads I to aVF) and `v1_to_v6` (V1 to V6), each (1000, 6), in mV: the paper's iToAvf and
    v1ToV6. Clients share the official folds 1 to 8; fold 10 is the held-out global test set. The paper of BLOSSOM:
    `labels: single`, `zscore: true`.
    """

    dataset: Literal["ptb-xl"]
    path: str | None = None
    """The official zip or the folder that it unpacks to (decoding needs the extra `ecg` once, then the cache has it),
    or a prepared `.npz` file. Relative to the working directory."""
    labels: Literal["single", "multi"] = "single"
    """`single`: records with exactly one superclass, for `task: classification`. `multi`: records with at least one,
    for `task: multilabel`. Statements count whatever their likelihood."""
    use_validation_fold: bool = False
    """Whether clients share fold 9, too. Otherwise it is left out."""
    zscore: bool = False
    """Whether each lead of each record is brought to mean 0 and deviation 1."""


class TableModality(Section):
    """Where a modality stands in a table, and the shape of a sample."""

    column: ColumnNames | None = None
    """The column, or several columns of plain numbers that make up a vector. Default: the modality's name."""
    shape: Annotated[tuple[Positive, ...], Field(strict=False, min_length=1)] | None = None
    """Shape of a sample, where the column has flat lists of a tensor's values. Default: as the column says."""


class TableData(DataKeys):
    """Own data: a Parquet, Arrow or Feather file, or a folder of them, with a row per sample.

    A modality is a column of fixed-shape tensors, of lists (nested lists) of numbers that are equally long in all
    rows, or of plain numbers.
    """

    dataset: Literal["table"]
    path: str
    """The file, or a folder: all its files are read, in the order of names. Relative to the working directory."""
    modalities: dict[ModalityName, TableModality] = Field(default_factory=dict)
    """Modality by name, where its column has another name or needs a shape."""
    label_column: ColumnNames = "label"
    """Classification: text or whole numbers. Multilabel: lists of 0 and 1, lists of class names, or several columns
    of 0 and 1. Regression: numbers, lists of numbers, or several columns of numbers."""
    class_names: Annotated[tuple[str, ...], Field(strict=False, min_length=1)] | None = None
    """Names of the classes in order: text labels must be among them, whole numbers count them from 0. Default: the
    labels that occur, sorted. In a regression the names of the targets."""
    subject_column: str | None = None
    """Whose sample a row is, whole numbers or text. Default: the column `subject` if there is one."""
    client_column: str | None = None
    """Which client's row it is, whole numbers or text, with `data.partition: {kind: given}`. Default: the column
    `client`. Clients that have no value of a modality in any row do not own it."""
    recording_column: str | None = None
    """Which recording a row comes from, whole numbers or text: the rows of one stand on one side of the splits of all
    clients. Default: the column `recording`, with `split: recording` or `partition: {kind: given}`."""
    split_column: str | None = None
    """`train`: a row that the clients share. `test` or `held-out`: one of the held-out global test set. With
    `data.partition: {kind: given}`, `train`, `validation` and `test` are the client's own splits, and `held-out` is
    the held-out set. Default: the column `split` if there is one, else the clients share all rows."""
    standardize: bool = False
    """Whether each channel of each modality is brought to mean 0 and deviation 1 over the training rows of all clients
    together: each feature of a vector, the last dimension of a sequence, the first of an image."""


class CustomData(DataKeys):
    """Own data: a callable that returns a `blossom_ray.Dataset`, or the data set given to `simulate`."""

    dataset: Literal["custom"]
    factory: Factory | None = None
    """`module:attribute` of a callable that returns a `Dataset`, or, from Python, the callable itself. null: the data
    set is given as `simulate(scenario, data=...)`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments for the factory."""
    standardize: bool = False
    """Whether each channel of each modality is brought to mean 0 and deviation 1 over the training rows of all clients
    together: each feature of a vector, the last dimension of a sequence, the first of an image."""

    @field_validator("factory")
    @classmethod
    def _factory(cls, value: Factory | None) -> Factory | None:
        return None if value is None else check_factory(value)


Downloaded = UciHarData | KuHarData | PtbXlData | AvMnistData | MeldData | IemocapData
"""The data sets that are read from files as one downloads them, named by `path`."""
Data = Annotated[SyntheticData | Downloaded | TableData | CustomData, Field(discriminator="dataset")]
