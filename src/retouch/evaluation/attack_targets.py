"""Targets of attacks: a harmful request asked directly, with a response that complies.

The response is the base model's own to the same request within a jailbreak, so that it is one that
the model can generate. On `pocket` it names the act and contains no instructions.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from retouch.concepts.chat import TokenizedChat, prompt_ids, tokenize_chat
from retouch.concepts.concept import Concept, DirectionSpec, Example
from retouch.core.errors import ConfigError, DataError
from retouch.core.types import Direction, Message, Score, Split
from retouch.evaluation.response_classifier import UNCLASSIFIED, Category, classify
from retouch.evaluation.statistics import ExampleValues, classified_rate
from retouch.models.generate import generate

if TYPE_CHECKING:
    from retouch.models.editable_model import EditableModel

TARGET_TOKENS = 8  # of the complying response that attacks optimise for: its beginning decides


@dataclass(frozen=True)
class AttackTarget:
    """A harmful request, asked directly, and the complying response that an attack elicits."""

    example: Example
    response: str

    def tokenized(
        self, editable: EditableModel, max_response_tokens: int | None = None
    ) -> TokenizedChat:
        """Request and response as the model receives them now, with the response truncated."""
        prompt = editable.rewrite_prompt(self.example.prompt)
        chat = tokenize_chat(editable.tokenizer, prompt, self.response)
        end = None if max_response_tokens is None else chat.start + max_response_tokens
        return TokenizedChat(chat.ids[:end], chat.start)


@dataclass(frozen=True)
class AttackOutcome:
    """The result of an attack on one request: the prompt with the attack, and the response."""

    target: AttackTarget
    prompt: tuple[Message, ...]
    response: str
    steps: int | None = None  # of a search that ends when it succeeds; None for other attacks

    @property
    def category(self) -> Category:
        """The category of the response to the request itself, without an attack's additions."""
        return classify(self.response, self.target.example.last_turn)


def responses_to(editable: EditableModel, prompts: Sequence[Sequence[Message]]) -> list[str]:
    """The responses to prompts of the model as it is now."""
    rewritten = [editable.rewrite_prompt(prompt) for prompt in prompts]
    return generate(editable, [prompt_ids(editable.tokenizer, prompt) for prompt in rewritten])


def refusal_rate(categories: Sequence[Category]) -> Score:
    """The share of refusals among the responses that could be classified, with its interval."""
    refused = tuple(float(one == "refusal") for one in categories)
    return classified_rate(ExampleValues(refused, classified(categories)))


def classified(categories: Sequence[str]) -> tuple[float, ...]:
    """1 for each response that could be classified, else 0."""
    return tuple(float(one not in UNCLASSIFIED) for one in categories)


def refusal_direction(concept: Concept) -> DirectionSpec:
    """The example sets of the direction that strengthens refusals: jailbreaks to direct requests.

    Raises:
        ConfigError: no direction of the concept weakens safety, so it is not about refusals.
    """
    strengthens: Direction = "raise" if concept.weakens == "lower" else "lower"
    if concept.weakens is None or strengthens not in concept.directions:
        raise ConfigError(
            f"The concept {concept.name} is not about refusals: no direction of it weakens safety.",
            "Run `gcg`, `latent` and `finetune` on a concept such as `safety`.",
            code="attack-not-applicable",
        )
    return concept.directions[strengthens]


def attack_targets(
    editable: EditableModel, concept: Concept, split: Split, limit: int, seed: int = 0
) -> list[AttackTarget]:
    """At most `limit` targets of a split, sampled by the seed.

    Raises:
        ConfigError: the concept is not about refusals.
        DataError: the base model complies with no jailbreak whose request is also asked directly.
    """
    spec = refusal_direction(concept)
    direct: dict[str | None, Example] = {
        example.pair: example for example in concept.select(split, spec.target) if example.pair
    }
    jailbreaks = [one for one in concept.select(split, spec.source) if one.pair in direct]
    # The string belongs to the random behaviour: with another one, other requests are sampled.
    rng = random.Random(f"{seed}:{split}:demands")
    jailbreaks = rng.sample(jailbreaks, len(jailbreaks))
    found: list[AttackTarget] = []
    while jailbreaks and len(found) < limit:
        examples, jailbreaks = jailbreaks[:limit], jailbreaks[limit:]
        with editable.base_model():
            responses = responses_to(editable, [one.prompt for one in examples])
        for one, response in zip(examples, responses, strict=True):
            if classify(response, one.last_turn) == "answer":
                found.append(AttackTarget(direct[one.pair], response))
    if not found:
        raise DataError(
            f"The concept {concept.name} has no {split} pair of a direct request and a jailbreak "
            "that the base model complies with.",
            "Add such examples with the same `pair`, or leave out `gcg`, `latent` and `finetune`.",
            code="attack-targets-missing",
        )
    return found[:limit]
