from __future__ import annotations

import json
import subprocess
import sys
import unicodedata
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from blossom_ray.data.modalities.base import UndecodableError
from blossom_ray.data.modalities.text import TextModality, words
from blossom_ray.errors import DataError, InputError


def decoded(value: bytes | str, **options: object) -> list[int]:
    decode = TextModality.model_validate({"kind": "text", **options}).decoder()
    sample = decode(value)
    assert sample.dtype == decode.dtype == np.int32
    assert sample.shape == decode.shape
    assert decode.factor == 1
    return [int(number) for number in sample]


def number(token: str, buckets: int = 16_384) -> int:
    return 1 + zlib.crc32(token.encode()) % buckets


def test_words_by_hand() -> None:
    assert decoded("A cat, a Dog", max_length=6) == [
        number("words a"),
        number("words cat"),
        number("words ,"),
        number("words a"),
        number("words dog"),
        0,
    ]


def test_pairs_and_parts_stand_behind_their_word() -> None:
    found = decoded("no cat", max_length=12, words=[1, 2], characters=[4], buckets=99)
    expected = ["words no", "part <no>", "words cat", "words no cat", "part <cat", "part cat>"]
    assert found == [number(token, 99) for token in expected] + [0] * 6


def test_of_a_long_text_the_beginning_is_kept() -> None:
    text = "one two three four"
    assert decoded(text, max_length=2) == decoded(text, max_length=4)[:2]
    assert decoded("one " * 10_000_000, max_length=2) == [number("words one")] * 2


@settings(max_examples=60)
@given(st.text(max_size=60), st.integers(1, 12), st.integers(1, 50), st.lists(st.integers(1, 4), max_size=2))
def test_numbers_are_those_of_a_plain_loop(text: str, max_length: int, buckets: int, parts: list[int]) -> None:
    tokens = []
    normal = unicodedata.normalize("NFKC", text[: 64 * max_length])
    for word in words(normal):
        tokens.append(f"words {word}")
        marked = f"<{word}>"
        tokens += [f"part {marked[i : i + n]}" for n in parts for i in range(len(marked)) if i + n <= len(marked)]
    expected = [number(token, buckets) for token in tokens][:max_length]
    found = decoded(text, max_length=max_length, buckets=buckets, characters=parts)
    assert found == expected + [0] * (max_length - len(expected))
    assert all(0 <= each <= buckets for each in found)
    assert decoded(text.encode(), max_length=max_length, buckets=buckets, characters=parts) == found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("नमस्ते दुनिया", ["नमस्ते", "दुनिया"]),  # vowels are marks on letters
        ("مرحبا بالعالم!", ["مرحبا", "بالعالم", "!"]),
        ("می\u200cخواهم", ["می\u200cخواهم"]),  # a joiner that keeps letters apart
        ("我爱你。", ["我爱你", "。"]),
        ("Straße ÉTÉ", ["straße", "été"]),
        ("e\u0301te\u0301 x", ["e\u0301te\u0301", "x"]),
        ("You\u2019re late!", ["you're", "late", "!"]),
    ],
)
def test_words_of_any_language(text: str, expected: list[str]) -> None:
    assert words(text) == expected


def test_one_text_in_several_unicode_forms_has_the_same_numbers() -> None:
    forms = [unicodedata.normalize(form, "Ａn étude ﬁne") for form in ("NFC", "NFD", "NFKC", "NFKD")]
    assert len({tuple(decoded(form)) for form in forms}) == 1


def test_a_letter_with_thousands_of_marks_costs_no_more_than_one_with_thirty() -> None:
    """Python's normal forms take the square of their number."""
    assert decoded("a" + "\u0301\u0327" * 2_000_000, max_length=8000)[1:] == [0] * 7999


def test_numbers_are_the_same_in_another_process() -> None:
    script = (
        "from blossom_ray.data.modalities.text import TextModality;"
        "print(TextModality(kind='text', max_length=4).decoder()('one two three').tolist())"
    )
    environment = {"PYTHONHASHSEED": "7", "PYTHONPATH": str(Path(__file__).parents[2]), "PATH": ""}
    found = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert json.loads(found.stdout) == decoded("one two three", max_length=4)


def test_bytes_are_utf8_with_or_without_a_mark() -> None:
    assert decoded(b"\xef\xbb\xbfone") == decoded("one") == decoded(b"one")
    assert decoded("é".encode() * 1000, max_length=1) == decoded("é" * 1000, max_length=1)  # cut within a character


def test_texts_without_tokens_are_all_padding() -> None:
    assert decoded("", max_length=3) == decoded(b" \n", max_length=3) == [0, 0, 0]


@pytest.mark.parametrize("value", [b"\xff\xfe\x00", b"caf\xe9 au lait", b"end\xc3"])
def test_other_bytes_are_refused(value: bytes) -> None:
    with pytest.raises(UndecodableError, match=r"^has byte \d, 0x\w\w, which is not UTF-8; expected a text in UTF-8$"):
        decoded(value)


def test_half_a_pair_is_no_character() -> None:
    assert decoded("a \ud800 b", max_length=3) == decoded("a ? b", max_length=3)


def test_how_many_numbers_there_are() -> None:
    assert TextModality(kind="text", buckets=10).num_tokens() == 11


def test_without_lengths_there_are_no_tokens() -> None:
    findings = list(TextModality(kind="text", words=()).conflicts())
    assert [(finding.path, finding.expected) for finding in findings] == [
        ("words", "lengths in one of them, or a tokenizer")
    ]


VOCABULARY = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "one": 3, "two": 4}


def save_tokenizer(file: Path) -> Path:
    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer.enable_padding(length=16)
    tokenizer.enable_truncation(2)
    tokenizer.save(str(file))
    return file


def test_a_tokenizer_of_the_user_by_hand(tmp_path: Path) -> None:
    """Its numbers count one more; what it says of padding and length does not count."""
    file = save_tokenizer(tmp_path / "tokenizer.json")
    for path in (str(file), str(tmp_path)):
        assert decoded("one two three", tokenizer=path, max_length=7) == [2, 4, 5, 1, 3, 0, 0]
        assert decoded("one two three", tokenizer=path, max_length=3) == [2, 4, 3]
        assert TextModality(kind="text", tokenizer=path).num_tokens() == 6


def test_a_folder_of_transformers_without_such_a_file(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "one", "two"]))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert decoded("one TWO three", tokenizer=str(tmp_path), max_length=6) == [3, 6, 7, 2, 4, 0]


def test_another_tokenizer_at_the_same_place_has_another_version(tmp_path: Path) -> None:
    """So what was decoded with one is not taken for the other."""
    modality = TextModality(kind="text", tokenizer=str(save_tokenizer(tmp_path / "tokenizer.json")))
    before = modality.version()
    assert modality.version() == before
    text = (tmp_path / "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(text.replace('"two"', '"tow"'))
    assert modality.version() != before


def test_what_is_no_tokenizer_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text("{")
    for name, found in {"broken.json": "EOF", "missing": "No such file"}.items():
        with pytest.raises(DataError, match=rf"^tokenizer .*{name} cannot be read \({found}.*; expected a tokenizer"):
            TextModality(kind="text", tokenizer=str(tmp_path / name)).decoder()
    with pytest.raises(DataError, match=r"^tokenizer .* cannot be loaded \(.*; expected a saved"):
        TextModality(kind="text", tokenizer=str(tmp_path)).num_tokens()
    with pytest.raises(InputError, match=r"tokenizer is .*, which is a URI; expected a path on this machine"):
        TextModality(kind="text", tokenizer="https://example.org/tokenizer.json").decoder()


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(DataError, match=r"pip install 'blossom-ray\[text\]'"):
        TextModality(kind="text", tokenizer=str(tmp_path / "tokenizer.json")).decoder()
