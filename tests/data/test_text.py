from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blossom_ray.data.modalities.text import words
from blossom_ray.data.sets.text import TextTokens, text_key, text_vectors, word_vector
from blossom_ray.errors import DataError


def tokens(**values: object) -> TextTokens:
    return TextTokens.model_validate(values)


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("You\u2019re late!", ["you're", "late", "!"]),
        ("Don\u0092t...", ["don't", ".", ".", "."]),
        ("'Tis 5 o'clock", ["'", "tis", "5", "o'clock"]),
        ("  ", []),
        ("h\u00e9 KL-5", ["h\u00e9", "kl", "-", "5"]),
    ],
)
def test_words_by_hand(sentence: str, expected: list[str]) -> None:
    assert words(sentence) == expected


def test_a_sentence_is_its_words_then_zeros() -> None:
    vectors = text_vectors(["No, no.", ""], tokens(tokens=5, dim=16))
    assert vectors.shape == (2, 5, 16)
    assert vectors.dtype == np.float32
    expected = [word_vector("no", 16), word_vector(",", 16), word_vector("no", 16), word_vector(".", 16), np.zeros(16)]
    np.testing.assert_array_equal(vectors[0], np.stack(expected))
    assert not vectors[1].any()
    np.testing.assert_array_equal(text_vectors(["No, no."], tokens(tokens=2, dim=16))[0], np.stack(expected[:2]))


def test_words_with_common_parts_have_similar_vectors() -> None:
    def cosine(one: str, other: str) -> float:
        return float(word_vector(one, 512) @ word_vector(other, 512)) / 512

    assert cosine("laugh", "laughing") > 0.3
    assert abs(cosine("laugh", "monday")) < 0.2
    assert cosine("laugh", "laugh") == pytest.approx(1)


@given(word=st.text(min_size=1, max_size=12), dim=st.integers(1, 64))
@settings(deadline=None, max_examples=40)
def test_vectors_have_unit_root_mean_square_and_never_change(word: str, dim: int) -> None:
    vector = word_vector(word, dim)
    assert np.square(vector).mean() == pytest.approx(1, rel=1e-5)
    np.testing.assert_array_equal(vector, word_vector(word, dim))


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A MobileBERT of a few values that knows seven words, saved as `transformers` saves one."""
    import torch
    import transformers

    folder = tmp_path_factory.mktemp("mobilebert")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "no", "yes", "late"]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    config = transformers.MobileBertConfig(
        vocab_size=len(vocabulary), hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        embedding_size=6, true_hidden_size=8, intra_bottleneck_size=8, max_position_embeddings=16,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.MobileBertModel(config).save_pretrained(folder)
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


def test_a_pretrained_model(saved_model: Path) -> None:
    """[CLS] late [SEP] are three tokens, no no no no no are cut to four; sentences do not see each other."""
    settings_ = tokens(tokens=4, dim=12, model=str(saved_model))
    vectors = text_vectors(["late", "no no no no no", "yes"], settings_)
    assert vectors.shape == (3, 4, 12)
    assert (vectors != 0).any(axis=2).sum(axis=1).tolist() == [3, 4, 3]
    np.testing.assert_allclose(text_vectors(["yes"], settings_)[0], vectors[2], rtol=1e-5, atol=1e-5)
    assert not np.allclose(vectors[0], vectors[2])


def test_the_key_follows_from_the_model(saved_model: Path) -> None:
    with_model = text_key(tokens(dim=12, model=str(saved_model)))
    assert "model.safetensors" in [name for name, *_ in with_model["model"]]
    assert text_key(tokens()) != text_key(tokens(dim=511)) != with_model


def test_faults_of_a_pretrained_model(saved_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"data.text.dim is 512; expected 12, the width of mobilebert"):
        text_vectors(["no"], tokens(model=str(saved_model)))
    with pytest.raises(DataError, match=r"data.text.model no/where is no folder; expected one with a model"):
        text_vectors(["no"], tokens(model="no/where"))
    with pytest.raises(DataError, match=r"holds no config.json"):
        text_key(tokens(model=str(tmp_path)))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(DataError, match=r"cannot be loaded \(.*; expected a saved model"):
        text_vectors(["no"], tokens(model=str(tmp_path)))
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(DataError, match=r"needs transformers, .*\[text\]"):
        text_vectors(["no"], tokens(model=str(saved_model)))
