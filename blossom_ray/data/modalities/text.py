"""Texts of any language as numbers of tokens: of a tokenizer that lies on disk, or of hashed words and their parts."""

from __future__ import annotations

import codecs
import hashlib
import re
import unicodedata
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from blossom_ray.core.extras import module_of_extra
from blossom_ray.core.locations import local_path
from blossom_ray.core.section import Finding, Positive
from blossom_ray.core.seeding import stable_number
from blossom_ray.data.modalities.base import Media, MediaValue, UndecodableError
from blossom_ray.data.modalities.saved_models import read_tokenizer
from blossom_ray.errors import DataError, first_line

GramLengths = Annotated[tuple[Annotated[int, Field(ge=1, le=8)], ...], Field(strict=False, max_length=8)]

_VERSION = 1
_CHARACTERS_PER_TOKEN = 64
_APOSTROPHES = str.maketrans("\u2018\u2019\u0092\u0091", "''''")
_HIGHEST_NUMBER = 2**24  # up to which float32, in which a model gets them, has every whole number


class TextModality(Media):
    """Texts, as numbers of tokens (max_length,): from 1 upwards, and 0 behind the end of a text.

    A column of text, or of bytes that are UTF-8. Of a long text the first 64 characters per token of `max_length`
    are looked at, so that its length costs nothing.
    """

    is_text: ClassVar[bool] = True

    kind: Literal["text"]
    max_length: Annotated[int, Field(ge=1, le=8192)] = 64
    """Tokens that are kept, from the beginning."""
    tokenizer: str | None = None
    """A `tokenizer.json`, or a folder with a tokenizer as the `transformers` library saves it; relative to the working
    directory. Its numbers count one more here, since 0 is padding; it decides about special tokens and normalisation.
    Needs the extra `text`. null: words and their parts are hashed, as the next three say; with
    `features.transformers`, the tokenizer in that folder."""
    words: GramLengths = (1,)
    """Lengths of the sequences of words that count as tokens: [1, 2] are words and pairs of neighbours. Words and signs
    are those of the text in lower case and Unicode's normal form NFKC."""
    characters: GramLengths = ()
    """Lengths of the strings of characters in each word, `<` and `>` standing for its ends, that are tokens, too, right
    behind their word: [3, 4] find what words have in common, [1, 2] suit languages without spaces."""
    buckets: Annotated[Positive, Field(le=_HIGHEST_NUMBER - 1)] = 16_384
    """Numbers that hashed tokens are spread over: a token's is 1 + the CRC-32 of its UTF-8 bytes, modulo this."""

    @property
    def are_amounts(self) -> bool:
        return self.features is not None

    @property
    def _own_tokenizer(self) -> str | None:
        """The tokenizer, if there is one: of features of a model in `transformers` that of the model."""
        return self.tokenizer or (self.features.transformers if self.features is not None else None)

    def conflicts(self) -> Iterator[Finding]:
        yield from super().conflicts()
        if self.features is not None and self.features.mean is not None:
            yield Finding("features.mean", "is given, while the numbers of words are no amounts", "null")
        if self.tokenizer is None and not self.words and not self.characters:
            yield Finding("words", "is empty, and so is characters", "lengths in one of them, or a tokenizer")

    def decoder(self) -> TextDecoder:
        if self._own_tokenizer is None:
            return TextDecoder(self.max_length, partial(_hashed, self.words, self.characters, self.buckets))
        found = _read_tokenizer(self._own_tokenizer, self.max_length)
        return TextDecoder(self.max_length, lambda text: (number + 1 for number in found.encode(text).ids))

    def version(self) -> int:
        if self._own_tokenizer is None:
            return _VERSION
        content = f"{_VERSION} {_read_tokenizer(self._own_tokenizer, self.max_length).to_str()}"
        return int.from_bytes(hashlib.sha256(content.encode()).digest()[:6])

    def num_tokens(self) -> int:
        """One more than the largest number that a token can have, so that an embedding has a row for each and for 0.

        Raises:
            DataError: The tokenizer cannot be read.
        """
        if self.tokenizer is None:
            return self.buckets + 1
        return 2 + max(
            _read_tokenizer(self.tokenizer, self.max_length).get_vocab(with_added_tokens=True).values(), default=0
        )


@dataclass(frozen=True)
class TextDecoder:
    """From a text to the numbers of its tokens.

    Attributes:
        max_length: Numbers of a sample.
        numbers: Those of a text's tokens, from 1, in their order.
    """

    max_length: int
    numbers: Callable[[str], Iterator[int]]
    dtype: ClassVar[np.dtype[Any]] = np.dtype(np.int32)
    factor: ClassVar[float] = 1.0

    @property
    def shape(self) -> tuple[int, ...]:
        """(max_length,)."""
        return (self.max_length,)

    def __call__(self, value: MediaValue) -> npt.NDArray[np.int32]:
        """(max_length,) int32, 0 behind the text's end; an empty text is all zeros."""
        longest = self.max_length * _CHARACTERS_PER_TOKEN
        if isinstance(value, str):
            # JSON and Python's own texts may hold halves of pairs, which are no characters.
            text = value[:longest].encode(errors="replace").decode()
        else:
            begin = value[: 4 * longest]
            try:
                decoder = codecs.getincrementaldecoder("utf-8-sig")()
                text = decoder.decode(begin, final=len(begin) == len(value))[:longest]
            except UnicodeDecodeError as error:
                found = f"has byte {error.start}, {begin[error.start]:#04x}, which is not UTF-8"
                raise UndecodableError(f"{found}; expected a text in UTF-8") from error
        sample = np.zeros(self.max_length, np.int32)
        numbers = list(islice(self.numbers(text), self.max_length))
        sample[: len(numbers)] = numbers
        return sample


def words(sentence: str) -> list[str]:
    """Words (with what follows an apostrophe) and signs of a sentence, in lower case.

    `words("You\u2019re late!")` is `["you're", "late", "!"]`. Marks belong to the letter before them, as vowels do in
    the scripts of India. Where a script has no spaces, what stands between two signs is one word.
    """
    return list(_words(sentence))


def _words(text: str) -> Iterator[str]:
    return (found[0] for found in _word_pattern().finditer(text.lower().translate(_APOSTROPHES)))


@cache
def _marks() -> str:
    """What stands on the letter before it, or joins letters within a word, as a class of a regular expression."""
    found = "".join(mark for mark in map(chr, range(0x20000)) if unicodedata.category(mark)[0] == "M")
    return f"[{found}\u200c\u200d]"


@cache
def _word_pattern() -> re.Pattern[str]:
    word = rf"(?:\w{_marks()}*)+"
    return re.compile(rf"{word}(?:'{word})*|[^\w\s]{_marks()}*")


def _hashed(lengths: GramLengths, parts: GramLengths, buckets: int, text: str) -> Iterator[int]:
    """The numbers of a text's tokens: for each word the sequences of words that end with it, then its own parts.

    Source: the hashing trick of Weinberger et al. 2009 (arXiv:0902.2206); parts of words as in Bojanowski et al. 2017
    (arXiv:1607.04606).
    """
    # Normalising takes the square of the number of marks on one letter: 30 are kept, as in UAX #15, "Stream-Safe".
    text = re.sub(f"({_marks()}{{30}}){_marks()}+", r"\1", text)
    last: deque[str] = deque(maxlen=max(lengths, default=1))
    for word in _words(unicodedata.normalize("NFKC", text)):
        last.append(word)
        marked = f"<{word}>"
        for length in lengths:
            if length <= len(last):
                yield 1 + stable_number(" ".join(["words", *islice(last, len(last) - length, None)])) % buckets
        for length in parts:
            for start in range(len(marked) - length + 1):
                yield 1 + stable_number(f"part {marked[start : start + length]}") % buckets


def _read_tokenizer(path: str, max_length: int) -> Any:
    """A tokenizer of the `tokenizers` library, which does not pad, and cuts in front of special tokens at the end."""
    place = local_path(path, "tokenizer")
    file = place / "tokenizer.json" if place.is_dir() else place
    if file.is_file() or not place.is_dir():
        tokenizers = module_of_extra("tokenizers", "a tokenizer needs the library tokenizers", "text")
        try:
            found = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # which is what the library raises
            expected = "a tokenizer.json, or a folder with a tokenizer that `transformers` has saved"
            raise DataError(f"tokenizer {path} cannot be read ({first_line(error)}); expected {expected}") from error
    else:
        found = getattr(read_tokenizer(place, "tokenizer"), "backend_tokenizer", None)
        if found is None:  # some of bytes or characters have no other form than code
            raise DataError(f"tokenizer {path} cannot be had without its code; expected one that has a tokenizer.json")
    found.enable_truncation(max_length)
    found.no_padding()
    return found
