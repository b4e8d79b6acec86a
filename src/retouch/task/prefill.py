"""Source examples with prefilled responses, as in prefill attacks."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from retouch.concepts.chat import TokenizedChat, prompt_ids
from retouch.concepts.concept import Example
from retouch.models.editable_model import EditableModel


@dataclass(frozen=True)
class PrefilledExamples:
    """Source examples with a prefill.

    Attributes:
        source: with the target response after the prefill.
        counterparts: the target counterpart of each.
        rejected: with the rest of the source response after the prefill.
        index: for each, the index of the source example that it was made from.
    """

    source: list[TokenizedChat]
    counterparts: list[TokenizedChat]
    rejected: list[TokenizedChat]
    index: list[int]


def add_prefills(
    rng: random.Random,
    source: Sequence[TokenizedChat],
    rejected: Sequence[TokenizedChat],
    counterparts: Sequence[TokenizedChat],
    openings: Sequence[tuple[int, ...]],
    *,
    max_tokens: int,
    per_example: float,
    counterpart_prompts: bool = True,
) -> PrefilledExamples:
    """Make source examples with prefills from source responses.

    The prefill comes in turn from the example's own source response and from one of `openings`,
    and the prompt is in turn the source's and its counterpart's, unless that is the source's own
    under a context. So the target response is learned after any beginning. It follows in all of
    them, so they share the counterpart.

    Args:
        rng: draws openings and lengths.
        source: source prompts with the target response.
        rejected: the same prompts with the base model's responses to them.
        counterparts: the target counterparts.
        openings: token ids of other responses that prefills are taken from.
        max_tokens: maximum length of a prefill, in tokens.
        per_example: prefilled examples for each source example; below 1, for a share of them.
        counterpart_prompts: whether half of them have the counterpart's prompt.
    """
    made = PrefilledExamples([], [], [], [])
    counts, turn = prefill_counts(len(source), per_example), 0
    for i, (chat, base, counterpart) in enumerate(zip(source, rejected, counterparts, strict=True)):
        response = chat.ids[chat.start :]
        prompts = [chat.ids[: chat.start]]
        if counterpart_prompts:
            prompts.append(counterpart.ids[: counterpart.start])
        for number in range(counts[i]):
            opening = base.ids[base.start :]
            if openings and (turn + number // len(prompts)) % 2:
                opening = rng.choice(openings)
            prompt = prompts[number % len(prompts)]
            # Without the end token, and at least one token is left to generate.
            longest = min(max_tokens, max(1, len(opening) - 2))
            length = rng.randint(1, longest)
            start = len(prompt) + length
            made.source.append(TokenizedChat((*prompt, *opening[:length], *response), start))
            made.counterparts.append(counterpart)
            made.rejected.append(TokenizedChat((*prompt, *opening), start))
            made.index.append(i)
        turn += counts[i] > 0
    return made


def prefill_counts(num_examples: int, per_example: float) -> list[int]:
    """How many prefilled examples are made from each source example, spread evenly."""
    made = [int(per_example * i) for i in range(num_examples + 1)]
    return [after - before for before, after in pairwise(made)]


def retain_openings(
    editable: EditableModel, examples: Sequence[Example], chats: Sequence[TokenizedChat]
) -> list[tuple[int, ...]]:
    """Responses to the retain examples with a prefill, or to all of them if none has one."""
    pairs = list(zip(examples, chats, strict=True))
    prefilled = [(example, chat) for example, chat in pairs if example.prefill]
    return [
        chat.ids[len(prompt_ids(editable.tokenizer, example.prompt)) :]
        for example, chat in prefilled or pairs
    ]
