"""What an adversary attack_targets: a harmful request asked directly, and the response that goes along.

The response is the base model's own to the same request in an attack, so that it is one which the
model can give. On `pocket` it names the deed and holds no instruction.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from retouch.concepts.chat import TokenizedChat, prompt_ids, tokenize_chat
from retouch.concepts.concept import Concept, DirectionSpec, Example
from retouch.core.errors import ConfigError, DataError
from retouch.core.types import Direction, Split
from retouch.evaluation.response_classifier import classify
from retouch.models.generate import generate

if TYPE_CHECKING:
    from retouch.models.editable_model import EditableModel


@dataclass(frozen=True)
class AttackTarget:
    """A harmful request and the response that is wanted for it.

    Attributes:
        row: the request, asked directly.
        response: a response that complies.
    """

    row: Example
    response: str

    def tokenized(self, editable: EditableModel, tokens: int | None = None) -> TokenizedChat:
        """Request and response as the model is given them now, the response cut after some tokens."""
        whole = tokenize_chat(
            editable.tokenizer, editable.rewrite_prompt(self.row.prompt), self.response
        )
        end = None if tokens is None else whole.start + tokens
        return TokenizedChat(whole.ids[:end], whole.start)


def hardening_direction(concept: Concept) -> DirectionSpec:
    """The direction_spec of the direction that makes a model refuse: from attacks to direct requests.

    Raises:
        ConfigError: no direction of the concept weakens safety, so that nothing is refused.
    """
    other: Direction = "raise" if concept.weakens == "lower" else "lower"
    if concept.weakens is None or other not in concept.directions:
        raise ConfigError(
            f"The concept {concept.name} is not about refusing: it has no direction that weakens "
            "safety.",
            "Ask `suffix`, `latent` and `tamper` of a concept such as `safety`.",
        )
    return concept.directions[other]


def attack_targets(
    editable: EditableModel, concept: Concept, split: Split, most: int, seed: int = 0
) -> list[AttackTarget]:
    """At most `most` attack_targets of a split, drawn by the seed.

    Raises:
        ConfigError: the concept is not about refusing.
        DataError: the base complies with no attack that has its request asked directly beside it.
    """
    direction_spec = hardening_direction(concept)
    direct: dict[str | None, Example] = {
        row.pair: row for row in concept.select(split, direction_spec.target) if row.pair
    }
    attacks = [row for row in concept.select(split, direction_spec.source) if row.pair in direct]
    attacks = random.Random(f"{seed}:{split}:attack_targets").sample(attacks, len(attacks))
    found: list[AttackTarget] = []
    for begin in range(0, len(attacks), most):
        rows = attacks[begin : begin + most]
        for row, response in zip(rows, _base_responses(editable, rows), strict=True):
            if classify(response, row.prompt[-1].content) == "answer":
                found.append(AttackTarget(direct[row.pair], response))
        if len(found) >= most:
            break
    if not found:
        raise DataError(
            f"The concept {concept.name} has no {split} rows that show what an adversary wants: "
            "a request asked directly and, with the same `pair`, in an attack that the base "
            "complies with.",
            "Pair such rows, or leave out the attacks `suffix`, `latent` and `tamper`.",
        )
    return found[:most]


def _base_responses(editable: EditableModel, rows: Sequence[Example]) -> list[str]:
    with editable.base_model():
        return generate(editable, [prompt_ids(editable.tokenizer, row.prompt) for row in rows])
