"""The `data` section of the data sets with sound or text, and how both become arrays."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from blossom_ray.core.section import Positive, Section
from blossom_ray.data.data_keys import DataKeys


class MelSpectrogram(Section):
    """How a spoken digit becomes an image of (channels, mels, 1 + rate_hz * duration_ms / 1000 / hop), in dB.

    The default is the paper's, (2, 64, 141).
    """

    rate_hz: Annotated[int, Field(ge=1000, le=192_000)] = 48_000
    """Samples per second, to which recordings are brought. They have 8000; more adds no information."""
    duration_ms: Annotated[int, Field(ge=10, le=10_000)] = 1500
    """Milliseconds that are kept; shorter recordings are followed by silence. Of 3,000 recordings 2 are longer than
    1500, 20 longer than 1000."""
    window: Annotated[int, Field(ge=2, le=65_536)] = 1024
    """Samples in a frame's window (Hann), and of its Fourier transform."""
    hop: Annotated[int, Field(ge=1, le=65_536)] = 512
    """Samples from one frame to the next."""
    mels: Annotated[int, Field(ge=1, le=512)] = 64
    """Mel bands between 0 and half of `rate_hz`."""
    channels: Annotated[int, Field(ge=1, le=8)] = 2
    """Copies of the spectrogram; recordings have one channel."""

    @property
    def num_samples(self) -> int:
        """Samples of the sound that is transformed."""
        return round(self.rate_hz * self.duration_ms / 1000)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, mels, frames)."""
        return self.channels, self.mels, 1 + self.num_samples // self.hop


class AvMnistData(DataKeys):
    """MNIST images (LeCun et al.) paired with spoken digits (Free Spoken Digit Dataset) of the same class: 10 digits.

    Modalities `image` (1, 28, 28) and `audio`, a mel spectrogram in dB. Clients share pairs of MNIST's training
    images and of recordings 5-49 of each speaker and digit; MNIST's test images with recordings 0-4 are the held-out
    global test set. Subjects are the six speakers. Needs the extra `audio`.
    """

    dataset: Literal["av-mnist"]
    path: str | None = None
    """Folder with the four MNIST files (idx, compressed or not) and the Free Spoken Digit Dataset (zip or folder).
    Relative to the working directory."""
    pairs: Positive | None = None
    """Pairs that clients share; no image is used twice. null: each recording once (2,700 pairs). With more pairs than
    recordings, one comes with several images, and `split: sample` puts it on one side of all clients' splits (but not
    with `draws: reference`)."""
    held_out_pairs: Positive | None = None
    """Pairs of the held-out set. null: each recording once (300 pairs)."""
    pairing_seed: Annotated[int, Field(ge=0, lt=2**63)] | None = 0
    """Seed of the pairing. null: the scenario's `seed`, so that pairs differ between seeds."""
    spectrogram: MelSpectrogram = MelSpectrogram()
    """How recordings become images."""


class SpeechFrames(Section):
    """How speech becomes a sequence of (frames, mels): 25 ms windows every 10 ms, at 16 kHz."""

    frames: Annotated[int, Field(ge=8, le=10_000)] = 400
    """Frames of 10 ms that are kept; shorter speech is followed by zeros. The paper's 1000 takes 320 kB an
    utterance, 400 takes 128 kB."""
    mels: Annotated[int, Field(ge=1, le=512)] = 80
    """Mel bands between 0 and 8 kHz."""
    scale: Literal["log", "power"] = "log"
    """`log`: log10(power) + 8, at least 0, so that silence equals the zeros behind the end. `power`: as it is, the
    paper's."""


class TextTokens(Section):
    """How a sentence becomes a sequence of (tokens, dim)."""

    tokens: Annotated[int, Field(ge=1, le=512)] = 32
    """Tokens that are kept; shorter sentences are followed by zeros."""
    dim: Annotated[int, Field(ge=1, le=8192)] = 512
    """Width of a token's vector. Of a pretrained model: its hidden size."""
    model: str | None = None
    """Folder of a pretrained model as the `transformers` library saves it; its last hidden state is the token's
    vector. Needs the extra `text`. The paper's: google/mobilebert-uncased. null: words are hashed to fixed random
    vectors, without any training."""


class MeldData(DataKeys):
    """MELD (Poria et al. 2019): utterances from the TV series Friends, 7 emotions.

    Modalities `text` (tokens, dim) and `audio` (frames, mels). Clients share the official training part; the official
    test part is the held-out global test set; the development part is not used. Subjects are the speakers. `audio`
    needs the clips and the extra `audio`; `text` alone needs the csv files only.
    """

    dataset: Literal["meld"]
    path: str | None = None
    """Folder (or zip) with `train_sent_emo.csv` and `test_sent_emo.csv`, such as the unpacked MELD.Raw. Sound is looked
    for as `dia<D>_utt<U>.wav`, else `.mp4` (extra `video`), in folders whose names contain `train` or `test`. Relative
    to the working directory."""
    classes: Literal["all", "paper"] = "all"
    """`all`: 7 emotions, all speakers. `paper`: anger, joy, neutral and sadness, without the speakers All, Man,
    Policeman, Tag and Woman."""
    audio: SpeechFrames = SpeechFrames()
    """The frames of speech."""
    text: TextTokens = TextTokens()
    """The vectors of words."""


class IemocapData(DataKeys):
    """IEMOCAP (Busso et al. 2008): acted dialogues of ten speakers in five sessions, 4 emotions.

    Classes are anger, happiness (with excitement), neutral and sadness: 5,531 utterances. Modalities `text`
    (tokens, dim) and `audio` (frames, mels), which needs the extra `audio`.
    """

    dataset: Literal["iemocap"]
    path: str | None = None
    """The unpacked `IEMOCAP_full_release`, with `Session1` to `Session5`. Relative to the working directory."""
    held_out_session: Annotated[int, Field(ge=1, le=5)] | None = 5
    """The session that is the held-out global test set. null: none, clients share all five, as in the paper."""
    subjects: Literal["speaker", "session"] = "speaker"
    """What a subject is: one of the ten speakers, or a session of two."""
    audio: SpeechFrames = SpeechFrames()
    """The frames of speech."""
    text: TextTokens = TextTokens()
    """The vectors of words."""
