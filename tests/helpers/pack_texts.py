"""The texts of a pack: its prompts by label, their words, and how alike two splits are."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import combinations

from retouch.concepts.concept import Concept, Example
from retouch.core.types import SPLITS, Split


def select(concept: Concept, *labels: str) -> list[Example]:
    """The examples with any of the labels, of all splits."""
    return [example for split in SPLITS for example in concept.select(split, labels)]


def words(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return re.findall(r"[\w']+", text.lower())


def similarities(
    examples_of: Callable[[Split], Iterable[Example]],
) -> Iterator[tuple[float, str, str]]:
    """The Jaccard similarity of the words of any two last turns of different splits."""
    sets = {split: [set(words(one.last_turn)) for one in examples_of(split)] for split in SPLITS}
    for first, second in combinations(SPLITS, 2):
        for a in sets[first]:
            for b in sets[second]:
                yield len(a & b) / len(a | b), " ".join(sorted(a)), " ".join(sorted(b))
