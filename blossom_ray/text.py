"""The way of text to people: what a terminal, a browser or a reader would obey or not see is written out.

Names in files and folders, arguments and exceptions' texts come from anywhere. Errors pass here when they become text,
and so does all that the command line, the console, a report and a comparison show.
"""

from __future__ import annotations

MAX_ECHOED_CHARACTERS = 200
"""Of a value or a name that a message repeats; names of modalities may have 64 each, and a key holds several."""


def printable(text: str, keep: str = "") -> str:
    r"""A text with escapes in place of what is no visible character: `\x1b`, `\u202e`, `\ud800`, `\n`.

    These are control characters, marks of direction and of zero width, unassigned and private characters, halves of
    surrogate pairs, and all white space but the space. A text that has passed stays as it is when it passes again.

    Args:
        text: Any text.
        keep: Characters that stay as they are, such as the line breaks of a text with several lines.
    """
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() or character in keep else character.encode("unicode_escape").decode()
        for character in text
    )


def is_unicode(text: str) -> bool:
    """Whether a text can be encoded: none of its characters is half of a surrogate pair."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def brief(text: str, limit: int = MAX_ECHOED_CHARACTERS) -> str:
    """A printable text of at most 200 characters of another one, its end replaced by points where it is longer."""
    whole = text if len(text) <= limit else f"{text[: limit - 3]}..."
    return printable(whole)


def quoted(text: str) -> str:
    """A text in quotes, as Python writes it, of at most 200 characters of another one."""
    return repr(text if len(text) <= MAX_ECHOED_CHARACTERS else f"{text[: MAX_ECHOED_CHARACTERS - 3]}...")
