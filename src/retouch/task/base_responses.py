"""Responses of the base model: every stage that needs one before training gets it here."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from retouch.concepts.chat import prompt_ids
from retouch.concepts.concept import Example
from retouch.core.types import Message, Progress, no_progress
from retouch.models.base_responses import cached_base_responses
from retouch.models.editable_model import EditableModel
from retouch.models.generate import Response

Request = tuple[tuple[Message, ...], str]
"""The turns of a prompt and the beginning of its response."""


Shows = Callable[[Example, str], bool]
"""Whether a response to an example shows the behaviour that an edit aims at."""


def generate_base(
    editable: EditableModel,
    requests: Sequence[Request],
    *,
    max_new_tokens: int,
    progress: Progress = no_progress,
) -> list[Response]:
    """How the base model continues each request, greedily; equal requests are generated once.

    Adapters and interventions are switched off, so the result depends on the base model, the
    requests and `max_new_tokens` alone.
    """
    prompts = [prompt_ids(editable.tokenizer, *request) for request in requests]
    return cached_base_responses(
        editable, prompts, max_new_tokens=max_new_tokens, progress=progress
    )


def respond(
    editable: EditableModel,
    examples: Sequence[Example],
    prefix: str = "",
    *,
    max_new_tokens: int,
    progress: Progress = no_progress,
) -> list[Response]:
    """Each example's own response, or the base model's, which begins with `prefix`.

    A prefill is given to the model and not part of the response; the prefix is part of it.
    """
    missing = [example for example in examples if example.response is None]
    requests = [(one.prompt, join(one.prefill, prefix)) for one in missing]
    generated = iter(
        generate_base(editable, requests, max_new_tokens=max_new_tokens, progress=progress)
    )
    responses = []
    for example in examples:
        if example.response is not None:
            responses.append(Response(example.response))
        else:
            continued = next(generated)
            responses.append(Response(join(prefix, continued.text), continued.truncated))
    return responses


def join(first: str, second: str) -> str:
    """Two parts of a text, with a space between them unless a punctuation mark follows."""
    if not first or not second or second[0] in ".,;:!?)'’":
        return first + second
    return f"{first.rstrip()} {second.lstrip()}"
