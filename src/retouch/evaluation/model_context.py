"""What scorers read of a model: its responses, log-probabilities, and divergence from the base."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from retouch.concepts.chat import TokenizedChat, tokenize_chat, tokenize_text
from retouch.concepts.concept import Example, MetricSpec
from retouch.core.errors import ConfigError
from retouch.core.types import Message, Progress, Sample
from retouch.evaluation.scorer import LogProb, Need, ScoringResult
from retouch.models.generate import Response
from retouch.representations.choice_probs import choice_probs
from retouch.representations.divergence import ExampleKL, token_kl
from retouch.representations.logprobs import response_logprob

if TYPE_CHECKING:
    from retouch.models.editable_model import EditableModel

LOGIT_BATCH_SIZE = 64  # texts whose logits are computed together

PromptKey = tuple[tuple[Message, ...], str, int]
"""The turns of a prompt, the prefill of its response, and the response's maximum length."""


def prompt_key(example: Example, max_new_tokens: int) -> PromptKey:
    """What a response to an example depends on."""
    return example.prompt, example.prefill, max_new_tokens


@dataclass(frozen=True)
class ModelContext:
    """The `ScoringContext` of the base or of the edited model.

    Attributes:
        editable: the model.
        model: which of the two it is.
        own_responses: its own responses.
        base_responses: those of the base.
        progress: called while texts are compared.
        max_new_tokens: the maximum length of the responses that a metric reads.
        known_kl: divergences that an earlier metric has read: metrics share a pass.
        known_logprobs: log-probabilities, likewise.
    """

    editable: EditableModel
    model: Literal["base", "edited"]
    own_responses: Mapping[PromptKey, Response]
    base_responses: Mapping[PromptKey, Response]
    progress: Progress
    max_new_tokens: int
    known_kl: dict[PromptKey, ExampleKL] = field(default_factory=dict)
    known_logprobs: dict[TokenizedChat, LogProb] = field(default_factory=dict)

    def responses(self, examples: Sequence[Example]) -> list[str]:
        """The model's responses to the examples."""
        return [self._response(example).text for example in examples]

    def choice_probs(self, examples: Sequence[Example], choices: Sequence[str]) -> list[float]:
        """The probability of the first choice relative to both, for each example."""
        with self.editable.base_model() if self.model == "base" else nullcontext():
            return choice_probs(self.editable, examples, choices, LOGIT_BATCH_SIZE)

    def response_logprobs(self, examples: Sequence[Example]) -> list[LogProb]:
        """Log-probability of each example's `response` after its prompt."""
        tokenizer, rewrite = self.editable.tokenizer, self.editable.rewrite_prompt
        # Without the end of the turn, which follows every response, whichever it is.
        chats = [
            tokenize_chat(
                tokenizer, rewrite(one.prompt), one.response or "", one.prefill, truncated=True
            )
            for one in examples
        ]
        return self._logprobs(chats)

    def text_logprobs(self, examples: Sequence[Example]) -> list[LogProb]:
        """Log-probability of each example's `response` as running text."""
        return self._logprobs(
            [tokenize_text(self.editable.tokenizer, one.response or "") for one in examples]
        )

    def _logprobs(self, chats: Sequence[TokenizedChat]) -> list[LogProb]:
        new = [chat for chat in dict.fromkeys(chats) if chat not in self.known_logprobs]
        with self.editable.base_model() if self.model == "base" else nullcontext():
            means = response_logprob(self.editable, new, LOGIT_BATCH_SIZE).tolist()
        for chat, mean in zip(new, means, strict=True):
            count = len(chat.ids) - chat.start
            self.known_logprobs[chat] = LogProb(mean * count, count)
        return [self.known_logprobs[chat] for chat in chats]

    def base_logprobs(self, examples: Sequence[Example]) -> list[float]:
        """Mean log-probability of each example's `response` under the base."""
        return base_logprobs(self.editable, examples)

    def kl(self, examples: Sequence[Example]) -> list[ExampleKL]:
        """KL(base || model) on the base model's responses, for each example."""
        if self.model == "base":
            return [ExampleKL(0.0, 1, 0.0, 1)] * len(examples)
        keys = [self._key(example) for example in examples]
        new = [key for key in dict.fromkeys(keys) if key not in self.known_kl]
        base, edited = [], []
        tokenizer, rewrite = self.editable.tokenizer, self.editable.rewrite_prompt
        for key in new:
            prompt, prefill, _ = key
            response = _find(self.base_responses, key, "base_responses").text
            base.append(tokenize_chat(tokenizer, prompt, response, prefill))
            edited.append(tokenize_chat(tokenizer, rewrite(prompt), response, prefill))
        found = token_kl(self.editable, base, LOGIT_BATCH_SIZE, self.progress, edited)
        self.known_kl.update(zip(new, found, strict=True))
        return [self.known_kl[key] for key in keys]

    def samples(
        self, spec: MetricSpec, examples: Sequence[Example], result: ScoringResult
    ) -> Iterator[Sample]:
        """The responses that a metric's result is computed from."""
        values = result.values
        for i, example in enumerate(examples):
            response = self._response(example)
            yield Sample(
                suite=spec.suite,
                metric=spec.metric,
                model=self.model,
                prompt=example.prompt,
                response=response.text,
                category=result.categories[i] if result.categories else "",
                value=values.sums[i] / (values.counts[i] or 1.0),
                prefill=example.prefill,
                group=example.group,
                entity=example.entity,
                truncated=response.truncated,
            )

    def _response(self, example: Example) -> Response:
        return _find(self.own_responses, self._key(example), "responses")

    def _key(self, example: Example) -> PromptKey:
        return prompt_key(example, self.max_new_tokens)


def base_logprobs(editable: EditableModel, examples: Sequence[Example]) -> list[float]:
    """Mean log-probability of each example's `response` under the base, nats a token."""
    chats = [
        tokenize_chat(editable.tokenizer, one.prompt, one.response or "", one.prefill)
        for one in examples
    ]
    with editable.base_model():
        values: list[float] = response_logprob(editable, chats, LOGIT_BATCH_SIZE).tolist()
    return values


def _find(responses: Mapping[PromptKey, Response], key: PromptKey, need: Need) -> Response:
    if key not in responses:
        prompt, prefill, _ = key
        text = prompt[-1].content if prompt else prefill
        raise ConfigError(
            f"A scorer uses responses to a prompt that it did not declare: {text!r}.",
            f"Add `{need}` to the scorer's `needs`, and use the examples that it is given.",
            code="scorer-needs",
        )
    return responses[key]
