"""The inputs of an estimate: shapes of the model, lengths of the texts, settings and hardware.

Responses that are not given count as `max_new_tokens`: estimates from them are upper bounds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from retouch.concepts.chat import prompt_ids
from retouch.concepts.concept import Concept, Example
from retouch.core.config import DataConfig, LoadConfig, MethodConfig
from retouch.evaluation.scorers import get_scorer
from retouch.models.layout import ModelLayout
from retouch.models.memory_estimate import (
    ParameterCounts,
    count_parameters,
    lora_parameters,
    quantised_bytes,
)
from retouch.models.offload import OffloadPlan
from retouch.models.shared_beginning import shared_beginning
from retouch.preflight.hardware import Hardware
from retouch.task.layers import LayerSelection
from retouch.task.prefill import prefill_counts
from retouch.task.sampling import SampledExamples


@dataclass(frozen=True)
class TokenLengths:
    """Lengths of texts in tokens."""

    prompts: tuple[int, ...] = ()
    responses: tuple[int, ...] = ()  # the end tokens included
    shared: tuple[int, ...] = ()  # of the beginning of its prompt that all texts of a set have

    def __add__(self, other: TokenLengths) -> TokenLengths:
        parts = ("prompts", "responses", "shared")
        return TokenLengths(*(getattr(self, part) + getattr(other, part) for part in parts))

    @property
    def count(self) -> int:
        """The number of texts."""
        return len(self.prompts)

    @property
    def total(self) -> int:
        """Tokens of all texts; padding is left out, since texts of similar length share a batch."""
        return sum(self.prompts) + sum(self.responses)

    @property
    def packed(self) -> int:
        """Tokens of all texts but for their shared beginnings, which a batch computes once."""
        return self.total - sum(self.shared)

    @property
    def longest(self) -> int:
        """Tokens of the longest text."""
        return max(map(sum, zip(self.prompts, self.responses, strict=True)), default=0)

    def batches(self, size: int) -> int:
        """The number of batches of `size` texts."""
        return -(-self.count // size)


@dataclass(frozen=True)
class SplitLengths:
    """The texts of a split; with pairs, source examples have the target responses."""

    source: TokenLengths
    target: TokenLengths
    retain: TokenLengths

    @property
    def all(self) -> TokenLengths:
        """All three sets."""
        return self.source + self.target + self.retain


def measure_examples(
    tokenizer: Any,
    examples: Iterable[Example],
    max_new_tokens: int,
    responders: Sequence[Example] = (),
) -> TokenLengths:
    """Tokenize examples, each with its own response, or with that of its responder."""
    examples = list(examples)
    prompts = [prompt_ids(tokenizer, one.prompt, one.prefill) for one in examples]
    shared = shared_beginning(prompts) if prompts else 0
    responses = [
        max_new_tokens
        if one.response is None
        else len(tokenizer(one.response, add_special_tokens=False)["input_ids"])
        for one in responders or examples
    ]
    return TokenLengths(
        tuple(map(len, prompts)),
        tuple(length + 1 for length in responses),
        (shared,) * len(prompts),
    )


def measure_split(tokenizer: Any, sampled: SampledExamples, data: DataConfig) -> SplitLengths:
    """The lengths of sampled examples, prefill-attack examples included.

    Raises:
        ModelError: the chat template rejects an example.
    """
    limit = data.max_new_tokens
    responders = sampled.target if sampled.paired else sampled.source
    source = measure_examples(tokenizer, sampled.source, limit, responders)
    retain = measure_examples(tokenizer, sampled.retain, data.max_base_tokens)
    if sampled.paired and data.prefill_tokens:
        counts = prefill_counts(len(source.prompts), data.prefills_per_example)
        index = [i for i, count in enumerate(counts) for _ in range(count)]
        kept = [i for i, one in enumerate(sampled.retain) if one.prompt and not one.prefill]
        source += _prefilled(source, index, data.prefill_tokens)
        retain += _prefilled(retain, kept[: len(index)], data.prefill_tokens)
    target = measure_examples(tokenizer, sampled.target, limit)
    return SplitLengths(source, target, retain)


def _prefilled(texts: TokenLengths, index: Sequence[int], longest: int) -> TokenLengths:
    """Some of the texts again, with prefills of 1 to `longest` tokens, as they are drawn."""
    shares = [(place + 0.5) / len(index) for place in range(len(index))]
    lengths = [int((longest + 1) ** share) for share in shares]
    return TokenLengths(
        tuple(texts.prompts[i] + length for i, length in zip(index, lengths, strict=True)),
        tuple(texts.responses[i] for i in index),
        tuple(texts.shared[i] for i in index),
    )


def measure_evaluation(
    tokenizer: Any, concepts: Iterable[Concept], limit: int | None, max_new_tokens: int
) -> TokenLengths:
    """The test examples whose responses the metrics need, `limit` of a metric, each once."""
    metrics = {(one.suite, one.metric): (one, c) for c in concepts for one in c.metrics}
    examples = {
        (example.prompt, example.prefill): example
        for metric, concept in metrics.values()
        if get_scorer(metric.scorer).needs & {"responses", "base_responses"}
        for example in concept.select("test", metric.labels)[:limit]
    }
    return measure_examples(tokenizer, examples.values(), max_new_tokens)


@dataclass(frozen=True)
class Workload:
    """An edit on a machine, before its weights are loaded."""

    load: LoadConfig
    method: MethodConfig
    max_new_tokens: int  # of the base model's responses to the examples
    evaluation_max_new_tokens: int
    model: Any  # the architecture on the meta device
    layout: ModelLayout
    checkpoint_bytes: int  # of a checkpoint that is quantised itself; else 0
    hardware: Hardware | None  # None if the device is not available
    layers: LayerSelection
    adapted: tuple[str, ...]  # full names of the linear layers that get adapters
    paired: bool  # whether source examples have target counterparts
    train: SplitLengths
    validation: SplitLengths
    generated: TokenLengths  # the texts whose responses the evaluation generates

    @cached_property
    def counts(self) -> ParameterCounts:
        """The parameters of the model."""
        return count_parameters(self.model, self.layout)

    @property
    def segment(self) -> range:
        """The layers from the first adapted or read one to the last, or to the logits."""
        layers = (*self.layers.adapted, *self.layers.read)
        last = self.layout.depth - 1 if self.method.loss.uses_logits else max(layers)
        return range(min(layers), last + 1)

    @property
    def itemsize(self) -> int:
        """Bytes of an element of weights and states."""
        return 2 if self.load.dtype == "bfloat16" else int(self.model.dtype.itemsize)

    @property
    def hidden_size(self) -> int:
        """The size of a hidden state."""
        return int(self.model.config.get_text_config().hidden_size)

    @property
    def vocabulary(self) -> int:
        """The number of logits of a token."""
        return int(self.model.config.get_text_config().vocab_size)

    @property
    def adapter_parameters(self) -> int:
        """Trainable parameters."""
        return lora_parameters(self.model, self.adapted, self.method.lora.r)

    @property
    def micro_batch_size(self) -> int:
        """Rows of a training batch that run at once."""
        train = self.method.train
        return min(train.micro_batch_size or train.batch_size, train.batch_size)

    @property
    def available(self) -> int:
        """Bytes of the device that the edit may use."""
        assert self.hardware is not None
        free = self.hardware.free_bytes
        return min(free, self.load.max_device_bytes or free)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights as they are loaded, without offloading."""
        if self.load.quantize == "none" or self.checkpoint_bytes:
            return self.checkpoint_bytes or self.counts.total * self.itemsize
        return quantised_bytes(self.model, self.load.quantize, self.itemsize)

    def plan_offload(self) -> OffloadPlan | None:
        """The placement of the weights under the device memory limit; None without one.

        Raises:
            ModelError: the limit is too low.
        """
        limit = self.load.max_device_bytes
        if limit is None:
            return None
        device = torch.device("cpu" if self.hardware is None else self.hardware.device)
        plan = OffloadPlan(self.model, self.layout, device, limit, self.itemsize)
        plan.keep_on_device(self.model, self.segment)
        return plan

    def with_settings(self, load: Mapping[str, Any], rows: int | None = None) -> Workload:
        """The same edit with other load options, and with micro-batches of `rows`."""
        train = self.method.train
        train = train.model_copy(update={"micro_batch_size": rows or train.micro_batch_size})
        return replace(
            self,
            load=self.load.model_copy(update=load),
            method=self.method.model_copy(update={"train": train}),
        )
