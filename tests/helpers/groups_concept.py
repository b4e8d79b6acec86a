"""A concept whose effect is the gap between two groups."""

from __future__ import annotations

from typing import Literal

from retouch.concepts.concept import Concept, DirectionSpec, Example, MetricSpec
from retouch.core.types import Message


def groups_concept(effect_better: Literal["higher", "lower"]) -> Concept:
    """Prompts of two groups; the effect is how differently `w7` and `w8` follow them."""

    def examples(begin: int) -> tuple[Example, ...]:
        made = []
        for i in range(begin, begin + 12):
            for group, word in (("a", "w80"), ("b", "w81")):
                made.append(Example((Message("user", f"w{i} {word}"),), "person", group=group))
            made.append(Example((Message("user", f"w60 w{i}"),), "retain", "w9"))
        return tuple(made)

    spec = DirectionSpec(("person",), ("person",), ("retain",), "gap", effect_better)
    gap = MetricSpec("g", "gap", ("person",), "group_gap", choices=("w7", "w8"), groups=("a", "b"))
    return Concept(
        "tiny",
        "Tiny",
        "",
        {"train": examples(0), "validation": examples(20), "test": examples(40)},
        {"raise": spec},
        metrics=(gap,),
    )
