"""Pairs of source and target examples, from given or elicited responses."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from retouch.concepts.concept import Example
from retouch.concepts.examples import LocatedExample
from retouch.concepts.location import describe_type
from retouch.concepts.normalization import is_blank
from retouch.concepts.splits import turns_of
from retouch.core.errors import DataError


def add_responses(sources: Sequence[LocatedExample], responses: Any) -> list[LocatedExample]:
    """Source examples with the target responses of a list.

    Raises:
        DataError: the list has another length or an entry that is no text, or a source example has
            a target response already.
    """
    if isinstance(responses, str | Mapping) or not isinstance(responses, Iterable):
        message = f"`responses` must be a list of texts, got {describe_type(responses)}."
        raise DataError(message, "Give one for each source prompt.", code="argument-type")
    responses = list(responses)
    if len(sources) != len(responses):
        raise length_mismatch(len(sources), "responses", len(responses))
    for i, (one, response) in enumerate(zip(sources, responses, strict=True)):
        if not isinstance(response, str) or is_blank(response):
            message = f"responses[{i}] must be a text, got {response!r}."
            raise DataError(message, "Give one for each source prompt.", code="value-type")
        if one.target_response:
            message = "this entry has a `target_response`, and `responses` gives one too."
            raise one.location.error("response-twice", message, "Remove one of the two.")
    pairs = zip(sources, responses, strict=True)
    return [replace(one, target_response=response) for one, response in pairs]


def length_mismatch(count: int, argument: str, other: int) -> DataError:
    """The error for lists of different lengths."""
    return DataError(
        f"`source` has {count} entries and `{argument}` has {other}.",
        "Give equally many: they are paired index by index.",
        code="length-mismatch",
    )


def pair_by_index(
    sources: Sequence[LocatedExample], targets: Sequence[LocatedExample]
) -> tuple[list[LocatedExample], list[LocatedExample]]:
    """Source examples, and as many target examples or none, with the names of their pairs."""
    paired: tuple[list[LocatedExample], list[LocatedExample]] = ([], [])
    for both in zip(sources, targets, strict=True) if targets else ((one,) for one in sources):
        pair = _pair_of([one.example for one in both])
        for one, chosen in zip(both, paired, strict=False):
            chosen.append(replace(one, example=replace(one.example, pair=pair)))
    return paired


def pair_same_prompts(examples: Sequence[LocatedExample]) -> tuple[list[LocatedExample], int]:
    """The first example of each prompt and label; source and target of one prompt are a pair.

    Published files repeat a prompt with several responses.

    Returns:
        The examples, and the number of those that were left out.
    """
    first_of: dict[Hashable, LocatedExample] = {}
    for one in examples:
        example = one.example
        first_of.setdefault((example.prompt, example.prefill, example.label), one)
    chosen = list(first_of.values())
    for i, one in enumerate(chosen):
        example = one.example
        other = {"negative": "positive", "positive": "negative"}.get(example.label)
        partner = first_of.get((example.prompt, example.prefill, other))
        if partner and not example.pair and not partner.example.pair:
            chosen[i] = replace(one, example=replace(example, pair=_pair_of([example])))
    return chosen, len(examples) - len(chosen)


def add_targets(examples: Sequence[LocatedExample], *, elicited: bool) -> list[LocatedExample]:
    """Add a `positive` counterpart of each `negative` example whose target is given or elicited.

    It has the same prompt and the `target_response`, which a counterpart that the user gives gets
    as well.

    Raises:
        DataError: a source example has two target responses, or none where others have one.
    """
    made = list(examples)
    positive = {
        (one.example.pair, one.split): i
        for i, one in enumerate(examples)
        if one.example.label == "positive"
    }
    given = any(one.target_response for one in examples)
    for i, one in enumerate(examples):
        example, response = one.example, one.target_response
        if example.label != "negative":
            continue
        at = positive.get((example.pair, one.split)) if example.pair else None
        if at is not None and response:
            if examples[at].example.response:
                message = "this row has a target response, and its counterpart has one too."
                raise one.location.error("response-twice", message, "Remove one of the two.")
            made[at] = replace(made[at], example=replace(made[at].example, response=response))
        elif at is None and (response or (elicited and not positive)):
            pair = example.pair or _pair_of([example])
            made[i] = replace(one, example=replace(example, pair=pair))
            target = replace(example, label="positive", response=response, pair=pair)
            made.append(replace(one, example=target))
        elif given and not positive:
            message = "this row has no target response, and others have one."
            hint = "Give one to every `negative` row, or a row labelled `positive` with its `pair`."
            raise one.location.error("target-missing", message, hint, "target_response")
    return made


def _pair_of(examples: Sequence[Example]) -> str:
    """The name of a pair: it depends on the prompts alone, so that the order of pairs is free."""
    prompts = [[one.prefill, *turns_of(one)] for one in examples]
    return hashlib.sha256(json.dumps(prompts).encode()).hexdigest()[:16]
