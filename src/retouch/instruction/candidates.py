"""Candidates for the contrast set of an instruction: responses with it and without, filtered."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal

from retouch.concepts.concept import Context, Example
from retouch.core.types import Progress, Split, no_progress
from retouch.evaluation.built_in_scorers import MARGIN
from retouch.evaluation.instruction_rules import follows, is_decided_early
from retouch.evaluation.model_context import base_logprobs
from retouch.evaluation.response_classifier import is_degenerate
from retouch.models.editable_model import EditableModel
from retouch.models.generate import Response
from retouch.task.base_responses import generate_base

UNCHANGED = 0.9  # similarity from which a response counts as unchanged
# Nats a token by which the own prompt must make a response likelier. On SmolLM2-135M the responses
# below it, in English and in French, had nothing to do with their prompts.
TOPIC_MARGIN = 0.35

Reason = Literal["cut", "degenerate", "not-followed", "unchanged", "off-topic"]
REASONS: Mapping[Reason, str] = {
    "cut": "the response reached the maximum length before its end, which the rule needs",
    "degenerate": "the response is empty, a loop or no text (`response_classifier.is_degenerate`)",
    "not-followed": "the response does not follow the instruction, as the rule decides",
    "unchanged": f"its words are those of the response without the instruction, {UNCHANGED:.0%} "
    "or more of them in the same order",
    "off-topic": "under the instruction the base model finds it less than "
    f"{TOPIC_MARGIN} nats a token likelier after its own prompt than after another one",
}
Form = Literal["system", "user"]


@dataclass(frozen=True)
class Candidate:
    """A prompt with the base model's responses without the instruction and with it.

    Attributes:
        split: the split of the prompt.
        example: the prompt, without responses.
        plain: the response to the bare prompt.
        instructed: the response under the instruction.
        plain_follows: whether the plain response follows the instruction.
        follows: whether the instructed one does.
        similarity: of the two responses' words, 0 to 1.
        truncated: whether the instructed response reached the maximum length before its end.
        topic: how much likelier the instructed response is after its own prompt than after another
            one, both under the instruction, nats a token.
        dropped: the first reason that applies; None: the response is kept.
    """

    split: Split
    example: Example
    plain: str
    instructed: str
    plain_follows: bool
    follows: bool
    similarity: float
    truncated: bool
    topic: float
    dropped: Reason | None


@dataclass(frozen=True)
class Probe:
    """How often the base model follows an instruction in one form, on a few prompts.

    Attributes:
        form: whether the instruction is a system turn, or appended to the user's turn.
        follows: share of the responses that follow it.
        changed: mean share of the response's words that change.
        n: the number of prompts.
    """

    form: Form
    follows: float
    changed: float
    n: int


def contexts(instruction: str) -> dict[Form, Context]:
    """The two forms in which an instruction is given."""
    around = "{prompt}\n\n" + instruction
    return {"system": Context(system=instruction), "user": Context(around=around)}


def probe(
    editable: EditableModel,
    instruction: str,
    rule: str,
    examples: Sequence[Example],
    max_new_tokens: int,
    progress: Progress = no_progress,
) -> list[Probe]:
    """Try both forms of an instruction on a few prompts; the better form comes first.

    The better one is followed more often; of two that are followed equally often, it is the one
    that changes more of the responses' words.
    """
    plain = _generate(editable, examples, None, max_new_tokens, progress)
    probes = []
    for form, context in contexts(instruction).items():
        instructed = _generate(editable, examples, context, max_new_tokens, progress)
        texts = [one.text for one in instructed]
        followed = measure_follows(editable, rule, context, examples, texts)
        changed = [
            0.0 if is_degenerate(after.text) else 1 - similarity(before.text, after.text)
            for before, after in zip(plain, instructed, strict=True)
        ]
        n = len(examples)
        probes.append(Probe(form, sum(followed) / n, sum(changed) / n, n))
    return sorted(probes, key=lambda one: (one.follows, one.changed), reverse=True)


def make_candidates(
    editable: EditableModel,
    context: Context,
    rule: str,
    examples: Mapping[Split, Sequence[Example]],
    max_new_tokens: int,
    progress: Progress = no_progress,
) -> list[Candidate]:
    """Generate the responses to all prompts with the instruction and without, and filter them."""
    splits = [split for split, some in examples.items() for _ in some]
    prompts = [example for some in examples.values() for example in some]
    plain = _generate(editable, prompts, None, max_new_tokens, progress)
    instructed = _generate(editable, prompts, context, max_new_tokens, progress)
    progress("whether the responses follow the instruction", 0, 0)
    before = measure_follows(editable, rule, context, prompts, [one.text for one in plain])
    texts = [one.text for one in instructed]
    after = measure_follows(editable, rule, context, prompts, texts)
    progress("whether the responses are about their prompts", 0, 0)
    topics = measure_topic(editable, context, prompts, texts)
    found = []
    for i, (split, example) in enumerate(zip(splits, prompts, strict=True)):
        alike = similarity(plain[i].text, texts[i])
        cut = instructed[i].truncated
        reason = _reason(
            texts[i],
            cut=cut and not is_decided_early(rule),
            follows=after[i],
            similarity=alike,
            topic=topics[i],
        )
        found.append(
            Candidate(
                split,
                example,
                plain[i].text,
                texts[i],
                before[i],
                after[i],
                alike,
                cut,
                topics[i],
                reason,
            )
        )
    return found


def _generate(
    editable: EditableModel,
    examples: Sequence[Example],
    context: Context | None,
    max_new_tokens: int,
    progress: Progress,
) -> list[Response]:
    name = "responses with the instruction" if context else "responses without the instruction"
    requested = [context.apply(one) if context else one for one in examples]
    return generate_base(
        editable,
        [(one.prompt, one.prefill) for one in requested],
        max_new_tokens=max_new_tokens,
        progress=lambda _, done, total: progress(name, done, total),
    )


def measure_follows(
    editable: EditableModel,
    rule: str,
    context: Context,
    examples: Sequence[Example],
    responses: Sequence[str],
) -> list[bool]:
    """Whether responses follow an instruction: by the rule, or by likelihood where there is none.

    Both are as in the scorers `follows` and `follows_likelihood`.
    """
    if rule:
        return [follows(rule, response) for response in responses]
    under = _logprobs(editable, [context.apply(one) for one in examples], responses)
    bare = _logprobs(editable, examples, responses)
    triples = zip(responses, under, bare, strict=True)
    return [bool(text) and a - b > MARGIN for text, a, b in triples]


def measure_topic(
    editable: EditableModel,
    context: Context,
    examples: Sequence[Example],
    responses: Sequence[str],
) -> list[float]:
    """How much likelier responses are after their own prompts than after others, nats a token.

    It compares no words, so that a response in another language is on topic too.
    """
    requested = [context.apply(one) for one in examples]
    own = _logprobs(editable, requested, responses)
    # Half of the list away, so that neighbours in a file, which may be alike, are not compared.
    shift = max(1, len(requested) // 2)
    other = _logprobs(editable, [*requested[shift:], *requested[:shift]], responses)
    return [a - b for a, b in zip(own, other, strict=True)]


def _logprobs(
    editable: EditableModel, examples: Sequence[Example], responses: Sequence[str]
) -> list[float]:
    pairs = zip(examples, responses, strict=True)
    return base_logprobs(editable, [_with_response(*pair) for pair in pairs])


def _with_response(example: Example, response: str) -> Example:
    return Example(example.prompt, example.label, response, prefill=example.prefill)


def similarity(first: str, second: str) -> float:
    """The share of the words of two texts that both have in the same order, 0 to 1."""
    words: list[list[str]] = [re.findall(r"\w+", text.casefold()) for text in (first, second)]
    return SequenceMatcher(None, words[0], words[1], autojunk=False).ratio()


def _reason(
    response: str, *, cut: bool, follows: bool, similarity: float, topic: float
) -> Reason | None:
    checks: dict[Reason, bool] = {
        "cut": cut,
        "degenerate": is_degenerate(response),
        "not-followed": not follows,
        "unchanged": similarity >= UNCHANGED,
        "off-topic": topic < TOPIC_MARGIN,
    }
    return next((reason for reason, applies in checks.items() if applies), None)
