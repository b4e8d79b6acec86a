"""What an adversary demands: a harmful request asked directly, and the reply that goes along.

The reply is the base model's own to the same request in an attack, so that it is one which the
model can give. On `pocket` it names the deed and holds no instruction.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from retouch.concepts.render import Rendered, prompt_ids, render
from retouch.core.errors import ConfigError, DataError
from retouch.core.types import Concept, Direction, Example, Sides, Split
from retouch.evaluation.replies import classify
from retouch.models.generate import generate

if TYPE_CHECKING:
    from retouch.models.load import LoadedModel


@dataclass(frozen=True)
class Demand:
    """A harmful request and the reply that is wanted for it.

    Attributes:
        row: the request, asked directly.
        reply: a reply that complies.
    """

    row: Example
    reply: str

    def rendered(self, loaded: LoadedModel, tokens: int | None = None) -> Rendered:
        """Request and reply as the model is given them now, the reply cut after some tokens."""
        whole = render(loaded.tokenizer, loaded.rewritten(self.row.prompt), self.reply)
        end = None if tokens is None else whole.start + tokens
        return Rendered(whole.ids[:end], whole.start)


def hardening(concept: Concept) -> Sides:
    """The sides of the direction that makes a model refuse: from attacks to direct requests.

    Raises:
        ConfigError: no direction of the concept weakens safety, so that nothing is refused.
    """
    other: Direction = "raise" if concept.weakens == "lower" else "lower"
    if concept.weakens is None or other not in concept.sides:
        raise ConfigError(
            f"The concept {concept.name} is not about refusing: it has no direction that weakens "
            "safety.",
            "Ask `suffix`, `latent` and `tamper` of a concept such as `safety`.",
        )
    return concept.sides[other]


def demands(
    loaded: LoadedModel, concept: Concept, split: Split, most: int, seed: int = 0
) -> list[Demand]:
    """At most `most` demands of a split, drawn by the seed.

    Raises:
        ConfigError: the concept is not about refusing.
        DataError: the base complies with no attack that has its request asked directly beside it.
    """
    sides = hardening(concept)
    direct: dict[str | None, Example] = {
        row.pair: row for row in concept.select(split, sides.target) if row.pair
    }
    attacks = [row for row in concept.select(split, sides.source) if row.pair in direct]
    attacks = random.Random(f"{seed}:{split}:demands").sample(attacks, len(attacks))
    found: list[Demand] = []
    for begin in range(0, len(attacks), most):
        rows = attacks[begin : begin + most]
        for row, reply in zip(rows, _base_replies(loaded, rows), strict=True):
            if classify(reply, row.prompt[-1].content) == "answer":
                found.append(Demand(direct[row.pair], reply))
        if len(found) >= most:
            break
    if not found:
        raise DataError(
            f"The concept {concept.name} has no {split} rows that show what an adversary wants: "
            "a request asked directly and, with the same `pair`, in an attack that the base "
            "complies with.",
            "Pair such rows, or leave out the questions `suffix`, `latent` and `tamper`.",
        )
    return found[:most]


def _base_replies(loaded: LoadedModel, rows: Sequence[Example]) -> list[str]:
    with loaded.reference():
        return generate(loaded, [prompt_ids(loaded.tokenizer, row.prompt) for row in rows])
