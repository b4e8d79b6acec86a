"""Validation during training: effect, drift and retain side on the validation split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from retouch.concepts.chat import TokenizedChat
from retouch.core.config import DiscriminatorConfig
from retouch.models.activation_cache import ActivationCache, Cached
from retouch.models.editable_model import EditableModel
from retouch.models.segment import Segment, SegmentInputs
from retouch.representations.activations import response_states
from retouch.representations.batch import ChatBatch, Positions
from retouch.representations.choice_probs import choice_chats, first_choice_probs
from retouch.representations.discriminator import Discriminators, States
from retouch.representations.divergence import kl_divergence
from retouch.representations.logprobs import mean_by_chat, token_logprobs
from retouch.representations.packing import Packer
from retouch.task.examples import EditExamples

BATCH_SIZE = 16  # chats whose logits are in memory at a time


@dataclass(frozen=True)
class ValidationResult:
    """A validation of the model as it is now.

    Attributes:
        score: the effect, higher is better; its unit is that of the `Validator`'s criterion.
        drift: KL(base || edited) on the retain responses, nats a token.
        retain_change: the share of retain examples whose most likely first token is the first
            token of a target response now, and was not in the base model. 0 without pairs.
    """

    score: float
    drift: float
    retain_change: float = 0.0


@dataclass(frozen=True)
class _CachedBatch:
    """Chats of the validation split with what the base model computes for them."""

    batch: ChatBatch
    inputs: Cached
    responses: Positions
    base_logprobs: Cached | None


class Validator:
    """Validates a model with its present adapter and steering.

    It is created on the base model. Its prompts are tokenized once, so that prompts which a method
    adds have no effect on it; `evaluation` measures those. The base model is run once; later
    validations run from cached inputs, and compute logits at the responses only.

    The score is the first of these that the concept allows:

    * with pairs, the mean log-probability of the target responses to the source prompts, nats a
      token;
    * where the effect is a gap between groups, that gap, with the sign of the direction;
    * otherwise the mean log-probability of the target class under discriminators that take no part
      in the training.
    """

    def __init__(
        self,
        editable: EditableModel,
        train: EditExamples,
        validation: EditExamples,
        layers: Sequence[int],
        discriminator: DiscriminatorConfig,
        seed: int,
        packer: Packer,
    ) -> None:
        """Choose the criterion and fit its discriminators, if it needs any.

        Args:
            editable: the base model.
            train: the examples that discriminators are fitted on.
            validation: the examples to validate on.
            layers: the layers that discriminators read.
            discriminator: their settings.
            seed: of their initial weights.
            packer: makes the batches.
        """
        self._editable, self._validation = editable, validation
        self._packer = packer
        self._whole = Segment(editable, 0, editable.layout.depth - 1)
        self._cached: dict[Segment, tuple[list[_CachedBatch], list[_CachedBatch]]] = {}
        targets = (*train.source, *validation.source) if validation.counterparts else ()
        self._target_tokens = torch.tensor(sorted({chat.ids[chat.start] for chat in targets}))
        # Responses whose log-probabilities are the score, from cached inputs as for the drift.
        self._scored: Sequence[TokenizedChat] = ()
        self._score: Callable[[], float] | None = None
        gap = validation.group_gap
        if validation.counterparts:
            self._scored = validation.source
        elif gap is not None:
            self._scored = choice_chats(editable, validation.source_examples, gap.choices)
        else:
            fixed = _fit(editable, train, tuple(layers), discriminator, seed)
            positions = discriminator.positions
            self._score = lambda: _target_class_logprob(
                editable, fixed, validation.source, positions
            )

    @torch.no_grad()
    def __call__(self, segment: Segment | None = None) -> ValidationResult:
        """Score, drift and change on the retain set of the model as it is now.

        Args:
            segment: runs from its first block on, below which nothing is changed, to the logits
                (default: the whole model).
        """
        segment = segment or self._whole
        if segment not in self._cached:
            with self._editable.base_model():
                self._cached[segment] = (
                    self._cache(segment, self._scored, base=False),
                    self._cache(segment, self._validation.retain, base=True),
                )
        scored_batches, retain_batches = self._cached[segment]
        drift, change = self._retain_side(segment, retain_batches)
        if self._score is not None:
            score = self._score()
        else:
            logprobs = self._response_logprobs(segment, scored_batches)
            paired = bool(self._validation.counterparts)
            score = float(logprobs.mean()) if paired else self._signed_gap(logprobs)
        return ValidationResult(score, drift, change)

    def _cache(
        self, segment: Segment, chats: Sequence[TokenizedChat], *, base: bool
    ) -> list[_CachedBatch]:
        """Run chats once through the base model."""
        editable = self._editable
        cache = ActivationCache(editable.device, editable.free_bytes)
        order = sorted(range(len(chats)), key=lambda i: len(chats[i].ids))
        batches = []
        for begin in range(0, len(order), BATCH_SIZE):
            index = order[begin : begin + BATCH_SIZE]
            batch = self._packer.batch(index, chats)
            layers = (segment.last,) if base else ()
            packing = self._packer.arguments(batch)
            inputs, states = segment.capture(batch.ids, layers, packing)
            rows, positions = batch.response_positions()
            responses = (rows.to(editable.device), positions.to(editable.device))
            base_logprobs = None
            if base:
                logits = segment.logits(states[segment.last][responses])
                base_logprobs = cache.put(logits.float().log_softmax(-1).half())
            batches.append(_CachedBatch(batch, cache.put(inputs), responses, base_logprobs))
        return batches

    def _response_logprobs(self, segment: Segment, batches: Sequence[_CachedBatch]) -> torch.Tensor:
        """The mean log-probability of each scored response `[chats]`, nats a token."""
        found = torch.zeros(len(self._scored), dtype=torch.float64)
        for one in batches:
            logits = _logits(segment, one.inputs(), one.responses)
            logprobs = token_logprobs(logits, one.batch.response_tokens())
            found[list(one.batch.index)] = mean_by_chat(logprobs, one.batch).cpu().double()
        return found

    def _retain_side(
        self, segment: Segment, batches: Sequence[_CachedBatch]
    ) -> tuple[float, float]:
        """KL(base || edited), nats a token, and the share of changed first tokens."""
        total, tokens, changed, chats = 0.0, 0, 0, 0
        for one in batches:
            assert one.base_logprobs is not None
            logits, base = _logits(segment, one.inputs(), one.responses), one.base_logprobs()
            kl = kl_divergence(base, logits)
            total, tokens = total + float(kl.sum(dtype=torch.float64)), tokens + len(kl)
            first = one.batch.first_positions(one.responses).to(logits.device)
            targets = self._target_tokens.to(logits.device)
            before, after = (
                torch.isin(values[first].argmax(-1), targets) for values in (base, logits)
            )
            changed, chats = changed + int((after & ~before).sum()), chats + len(before)
        return (total / tokens, changed / chats) if tokens else (0.0, 0.0)

    def _signed_gap(self, logprobs: torch.Tensor) -> float:
        """The gap between the groups' mean probabilities: up to 0 reduced, or up to 0 increased."""
        examples, gap = self._validation.source_examples, self._validation.group_gap
        assert gap is not None
        probs = first_choice_probs(self._scored, logprobs)
        first = torch.tensor([example.group == gap.groups[0] for example in examples])
        second = torch.tensor([example.group == gap.groups[1] for example in examples])
        size = float((probs[first].mean() - probs[second].mean()).abs())
        return -size if self._validation.reduce_gap else size - 1.0


def _logits(segment: Segment, inputs: SegmentInputs, at: Positions) -> torch.Tensor:
    """The logits `[n, vocabulary]` at positions `[n]`, as the model is now."""
    return segment.logits(segment.forward(inputs, (segment.last,))[segment.last][at])


def _states(
    editable: EditableModel,
    chats: Sequence[TokenizedChat],
    layers: tuple[int, ...],
    positions: int,
) -> States:
    """The states `[n, hidden]` by layer at the first response positions of all chats."""
    parts = [states for _, _, states in response_states(editable, chats, layers, positions)]
    return {layer: torch.cat([part[layer] for part in parts]) for layer in layers}


@torch.no_grad()
def _target_class_logprob(
    editable: EditableModel,
    discriminators: Discriminators,
    chats: Sequence[TokenizedChat],
    positions: int,
) -> float:
    states = _states(editable, chats, tuple(discriminators.by_layer), positions)
    logits = [discriminators.by_layer[layer](found) for layer, found in states.items()]
    return float(torch.cat([F.logsigmoid(one) for one in logits]).mean())


def _fit(
    editable: EditableModel,
    examples: EditExamples,
    layers: tuple[int, ...],
    config: DiscriminatorConfig,
    seed: int,
) -> Discriminators:
    """Discriminators fitted once, on the base model's states."""
    with torch.no_grad():
        target = _states(editable, examples.target, layers, config.positions)
        source = _states(editable, examples.source, layers, config.positions)
        pairs = zip(examples.retain, examples.retain_nontarget, strict=True)
        chats = [chat for chat, nontarget in pairs if nontarget]
        other = source
        if chats:
            retain = _states(editable, chats, layers, config.positions)
            other = {layer: torch.cat([source[layer], retain[layer]]) for layer in layers}
    size = target[layers[0]].shape[-1]
    fitted = Discriminators(layers, size, config, seed + 1).to(editable.device)
    fitted.standardise({layer: torch.cat([target[layer], source[layer]]) for layer in layers})
    fitted.fit(target, other, config.warmup_steps)
    return fitted
