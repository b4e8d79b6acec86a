"""Whether a response contains what a correct one must contain, or ends in the right number."""

from __future__ import annotations

import re
from collections.abc import Iterable
from decimal import Decimal

# The letters of scripts that separate words; elsewhere the end of a word cannot be recognised.
_LETTER = "[a-z0-9à-ɏ]"
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")
_STRAIGHT_QUOTES = str.maketrans("‘’“”", "''\"\"")


def is_correct(response: str, accept: Iterable[str]) -> bool:
    """Whether a response contains all of `accept`; case, quotes and white space do not matter.

    Punctuation matters, and words and numbers are whole: `he` is not in "she" nor `4` in "40". A
    plural contains its singular.
    """
    text = _normalize(response)
    return all(_contains(text, _normalize(phrase)) for phrase in accept)


def _normalize(text: str) -> str:
    return " ".join(text.translate(_STRAIGHT_QUOTES).casefold().split())


def _contains(text: str, phrase: str) -> bool:
    before = rf"(?<!{_LETTER})" if re.match(_LETTER, phrase) else ""
    after = rf"(?!{_LETTER})" if re.search(rf"{_LETTER}$", phrase) else ""
    if re.search("[a-z]$", phrase):
        after = f"(?:e?s)?{after}"
    return re.search(f"{before}{re.escape(phrase)}{after}", text) is not None


def final_number(text: str) -> Decimal | None:
    """The last number of a text; commas between digits do not matter. None where it has none."""
    found = _NUMBER.findall(text)
    return Decimal(found[-1].replace(",", "")) if found else None
