"""From sentences to vectors of their words: hashed, or by a pretrained model that lies on disk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from blossom_ray.core.progress import tracked
from blossom_ray.core.section import Section
from blossom_ray.core.seeding import Purpose, generator, stable_number
from blossom_ray.data.files.archives import open_archive
from blossom_ray.data.modalities.saved_models import model_folder, read_saved, read_tokenizer
from blossom_ray.data.modalities.text import words
from blossom_ray.data.targets import FloatArray
from blossom_ray.errors import DataError

_HASHING = 1
"""Raised when hashed vectors of the same words change, so that cached ones are not used."""
_GRAM_LENGTHS = (3, 4, 5)
_SENTENCES_AT_ONCE = 64
_MODEL = "data.text.model"
_VECTORS = "text"  # what the key of a draw begins with, so that other draws have other streams


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


def text_vectors(sentences: Sequence[str], settings: TextTokens) -> FloatArray:
    """The vectors of each sentence's first words or tokens.

    Args:
        sentences: N texts.
        settings: How many vectors, how wide, and whose.

    Returns:
        (N, settings.tokens, settings.dim) float32; zeros behind the end of a sentence.

    Raises:
        DataError: The pretrained model is missing, damaged or of another width; or `transformers` is not installed.
    """
    if settings.model is not None:
        return _pretrained(sentences, settings.tokens, settings.dim, settings.model)
    known: dict[str, npt.NDArray[np.float32]] = {}
    vectors = np.zeros((len(sentences), settings.tokens, settings.dim), np.float32)
    for row, sentence in enumerate(tracked(sentences, "words")):
        for position, word in enumerate(words(sentence)[: settings.tokens]):
            if word not in known:
                known[word] = word_vector(word, settings.dim)
            vectors[row, position] = known[word]
    return vectors


def text_key(settings: TextTokens) -> dict[str, object]:
    """All that vectors follow from besides the sentences, for the key of `cache.cached`.

    Raises:
        DataError: The pretrained model is missing.
    """
    key: dict[str, object] = {"tokens": settings.tokens, "dim": settings.dim}
    if settings.model is None:
        return {**key, "hashing": _HASHING}
    with open_archive(model_folder(settings.model, _MODEL), landmark="config.json") as archive:
        return {**key, "model": archive.states(archive.members())}


def word_vector(word: str, dim: int) -> npt.NDArray[np.float32]:
    """A vector that depends on the word alone, of root mean square 1; words with common parts have similar ones.

    Each string of 3 to 5 characters in the word (`<` and `>` stand for its ends), and the whole of it, has a vector
    of independent normal values. Their sum, scaled, is the word's. Nothing is trained, so no client's text says
    anything about another's.

    Args:
        word: Any text.
        dim: Width.

    Source: the subwords of Bojanowski et al. 2017 (arXiv:1607.04606), with random vectors instead of trained ones.
    """
    marked = f"<{word}>"
    grams = {marked[start : start + size] for size in _GRAM_LENGTHS for start in range(len(marked) - size + 1)}
    total = np.zeros(dim)
    for gram in sorted({marked, *grams}):
        total += generator(stable_number(_VECTORS), Purpose.DATA, 0, stable_number(gram)).standard_normal(dim)
    return np.asarray(total / np.sqrt(np.square(total).mean()), np.float32)


def _pretrained(sentences: Sequence[str], num_tokens: int, dim: int, path: str) -> FloatArray:
    folder = model_folder(path, _MODEL)
    tokenizer, model = read_tokenizer(folder, _MODEL), read_saved("AutoModel", folder, _MODEL)
    if model.config.hidden_size != dim:
        raise DataError(f"data.text.dim is {dim}; expected {model.config.hidden_size}, the width of {folder.name}")
    import torch

    model.eval()
    vectors = np.zeros((len(sentences), num_tokens, dim), np.float32)
    for start in tracked(range(0, len(sentences), _SENTENCES_AT_ONCE), "tokens"):
        part = slice(start, start + _SENTENCES_AT_ONCE)
        batch: Any = tokenizer(
            list(sentences[part]), padding="max_length", truncation=True, max_length=num_tokens, return_tensors="pt"
        )
        with torch.inference_mode():
            states = model(**batch).last_hidden_state
        vectors[part] = (states * batch["attention_mask"][:, :, None]).float().numpy()
    return vectors
