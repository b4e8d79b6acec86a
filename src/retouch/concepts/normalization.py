"""Texts as they are compared: blank ones, equal ones and near copies."""

from __future__ import annotations

import unicodedata

from retouch.concepts.concept import Example

Prompt = tuple[tuple[str, str], ...]
"""Role and normalised text of each turn."""


def is_blank(text: str) -> bool:
    """Whether a text has nothing but whitespace, control and zero-width characters."""
    stripped = text.strip()
    if not stripped or stripped.isascii():
        return not stripped
    return all(one.isspace() or unicodedata.category(one) in ("Cc", "Cf") for one in stripped)


def normalized(text: str) -> str:
    """A text after NFKC, case folding and collapsing of its whitespace."""
    if text.isascii():  # where the two forms are the same, and nothing is composed
        return " ".join(text.lower().split())
    # Case folding can undo the composition of characters.
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(text.split())


def without_punctuation(text: str) -> str:
    """A normalised text without punctuation, or with it if there is nothing else."""
    return " ".join(text.translate(_PUNCTUATION).split()) or text


def normalized_prompt(example: Example) -> Prompt:
    """The normalised turns of an example's prompt; empty for running text."""
    return tuple([(turn.role, normalized(turn.content)) for turn in example.prompt])


class _Punctuation(dict[int, int | None]):
    """A table for `str.translate` that removes punctuation, filled as characters occur."""

    def __missing__(self, code: int) -> int | None:
        value = None if unicodedata.category(chr(code)).startswith("P") else code
        self[code] = value
        return value


_PUNCTUATION = _Punctuation()
