"""What is known of each data set without reading it: where it comes from, what it holds, which file to give.

Checks of a scenario and the `data` commands read this table. How files are decoded is in `blossom_ray/data/`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from blossom_ray.core.scores import TASKS, Task
from blossom_ray.data.audio_text_data import AvMnistData, IemocapData, MeldData
from blossom_ray.data.options import Data, Downloaded, KuHarData, SyntheticData, UciHarData

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class DatasetFacts:
    """What people ask before they download a data set.

    Attributes:
        title: Its full name and source.
        holds: Number and kind of its samples.
        classes: Number of classes, or how they follow from the options.
        tasks: The tasks that its labels serve.
        held_out: What the held-out global test set is, or "none".
        download: What `data.path` must name, as a phrase that completes "expected ..."; "" where no file is needed.
        page: Where to get it, as a phrase that completes "get it from ...", or "".
        licence: Its licence, or "".
        extra: The extra of this package that decoding needs, as in `pip install "blossom-ray[extra]"`, or "".
        shapes: Shape of one sample by modality, with the default options; empty where the scenario decides.
    """

    title: str
    holds: str
    classes: str
    tasks: tuple[Task, ...]
    held_out: str
    download: str = ""
    page: str = ""
    licence: str = ""
    extra: str = ""
    shapes: Shapes = field(default_factory=dict)


DATASETS: Mapping[str, DatasetFacts] = {
    "synthetic": DatasetFacts(
        title="Generated samples; best attainable accuracy known",
        holds="data.samples, 2,000 by default",
        classes="data.classes, 6 by default",
        tasks=TASKS,
        held_out="data.held_out_samples, 500 by default",
    ),
    "uci-har": DatasetFacts(
        title="Human Activity Recognition Using Smartphones 1.0 (Anguita et al. 2013)",
        holds="7,352 windows of 2.56 s at 50 Hz from 21 subjects",
        classes="6 activities",
        tasks=("classification",),
        held_out="the official test part: 2,947 windows of 9 other subjects",
        download="the official 'UCI HAR Dataset.zip' or its unpacked folder",
        page="the UCI Machine Learning Repository, data set 240 (doi:10.24432/C54S4K)",
        licence="CC BY 4.0",
        shapes={"acc": (128, 3), "gyro": (128, 3)},
    ),
    "ku-har": DatasetFacts(
        title="KU-HAR, version 5 (Sikder & Nahid 2021)",
        holds="20,750 windows of 3 s at 100 Hz; from recordings, as many as fit, of 90 people",
        classes="18 activities, or the paper's 8",
        tasks=("classification",),
        held_out="none",
        download=(
            "the official '3.Time_domain_subsamples.zip', its folder or CSV file, or with windows: recordings "
            "'2.Trimmed_interpolated_data.zip' or its folder"
        ),
        page="Mendeley Data (doi:10.17632/45f952y38r.5)",
        licence="CC BY 4.0",
        shapes={"acc": (300, 3), "gyro": (300, 3)},
    ),
    "ptb-xl": DatasetFacts(
        title="PTB-XL 1.0.3 (Wagner et al. 2020)",
        holds="21,799 electrocardiograms of 10 s at 100 Hz; 16,244 have exactly one label",
        classes="5 diagnostic superclasses",
        tasks=("classification", "multilabel"),
        held_out="the official fold 10: 1,650 records with one label, 2,158 with any",
        download="the official PTB-XL 1.0.3 zip or its unpacked folder, or a prepared .npz file",
        page="PhysioNet (doi:10.13026/kfzx-aw45)",
        licence="CC BY 4.0",
        extra="ecg",
        shapes={"i_to_avf": (1000, 6), "v1_to_v6": (1000, 6)},
    ),
    "av-mnist": DatasetFacts(
        title="MNIST (LeCun et al.) paired with the Free Spoken Digit Dataset (Jackson et al.) by digit",
        holds="2,700 pairs by default, each recording once; up to 54,210 with recordings used again; 6 speakers",
        classes="10 digits",
        tasks=("classification",),
        held_out="MNIST's test images with the official test recordings: 300 pairs by default",
        download="a folder with the four idx files of MNIST and the Free Spoken Digit Dataset (zip or folder)",
        page="yann.lecun.com/exdb/mnist and github.com/Jakobovski/free-spoken-digit-dataset",
        licence="CC BY-SA 3.0 (MNIST), CC BY-SA 4.0 (spoken digits)",
        extra="audio",
        shapes={"audio": (2, 64, 141), "image": (1, 28, 28)},
    ),
    "meld": DatasetFacts(
        title="Multimodal EmotionLines Dataset (Poria et al. 2019): utterances of the series Friends",
        holds="9,988 utterances of 260 speakers; 8,152 of 244 with the paper's classes",
        classes="7 emotions, or the paper's 4",
        tasks=("classification",),
        held_out="the official test part: 2,610 utterances; 2,180 with the paper's classes",
        download="the unpacked MELD.Raw, or a folder with its train_sent_emo.csv and test_sent_emo.csv for text alone",
        page="github.com/declare-lab/MELD (affective-meld.github.io)",
        licence="GPL-3.0 (annotations); dialogues for research",
        extra="audio,video",
        shapes={"audio": (400, 80), "text": (32, 512)},
    ),
    "iemocap": DatasetFacts(
        title="Interactive Emotional Dyadic Motion Capture database (Busso et al. 2008)",
        holds="5,531 utterances of 4 emotions, 10 speakers in 5 sessions",
        classes="4 emotions (happiness includes excitement)",
        tasks=("classification",),
        held_out="session 5 by default, or none",
        download="the unpacked IEMOCAP_full_release, with Session1 to Session5",
        page="sail.usc.edu/iemocap (on request, no charge)",
        licence="for research, by agreement with the University of Southern California",
        extra="audio",
        shapes={"audio": (400, 80), "text": (32, 512)},
    ),
    "table": DatasetFacts(
        title="Own data: a Parquet, Arrow or Feather file, or a folder of them",
        holds="a row per sample",
        classes="as the column of labels says",
        tasks=TASKS,
        held_out="the rows whose column split says test",
        download="a Parquet, Arrow or Feather file, or a folder of them",
    ),
    "custom": DatasetFacts(
        title="Own data: what data.factory returns, or simulate(data=...) is given",
        holds="as the factory gives",
        classes="as the factory gives",
        tasks=TASKS,
        held_out="as the factory gives",
    ),
}


def shapes_of(data: Downloaded) -> Shapes:
    """Shape of one sample by modality, for all modalities of a downloaded data set with these options."""
    match data:
        case KuHarData():
            return {"acc": (3 * data.rate_hz, 3), "gyro": (3 * data.rate_hz, 3)}
        case AvMnistData():
            return {**DATASETS[data.dataset].shapes, "audio": data.spectrogram.shape}
        case MeldData() | IemocapData():
            return {"audio": (data.audio.frames, data.audio.mels), "text": (data.text.tokens, data.text.dim)}
        case _:
            return DATASETS[data.dataset].shapes


def num_subjects(data: Data) -> int | None:
    """Subjects among the samples that clients share in the whole data set, or None where that is unknown."""
    match data:
        case SyntheticData():
            return data.subjects
        case UciHarData():
            return 21
        case AvMnistData():
            return 6
        case MeldData():
            return 260 if data.classes == "all" else 244
        case IemocapData():
            num_sessions = 5 if data.held_out_session is None else 4
            return num_sessions if data.subjects == "session" else 2 * num_sessions
        case _:
            return None
