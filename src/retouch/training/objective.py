"""The generator's loss: its terms of one step, micro-batch by micro-batch, and their gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from retouch.models import distributed
from retouch.models.adapters import parameters
from retouch.models.oom import free_memory, is_out_of_memory
from retouch.representations.activations import forward_with_states
from retouch.representations.batch import pad_right
from retouch.representations.discriminator import Discriminators, States
from retouch.representations.divergence import kl_from_logprobs
from retouch.representations.finetuning import LoraDelta, apply_lora_delta
from retouch.representations.latent_pgd import latent_pgd
from retouch.representations.logprobs import sum_by_chat, token_logprobs
from retouch.representations.losses import (
    balance_loss,
    domain_confusion_loss,
    normalized_mse_loss,
    npo_loss,
    sft_loss,
)
from retouch.training.context import TrainingContext
from retouch.training.dataset import EditDataset
from retouch.training.micro_batch import Batch, MicroBatch

# Weight of a response's first token under the fine-tuning adversary: it determines the others.
FINETUNE_FIRST_TOKEN_WEIGHT = 10.0

Terms = dict[str, torch.Tensor]
TermsOf = Callable[[Batch, MicroBatch], Terms]


@dataclass(frozen=True)
class Step:
    """The batches of a generator step, by number, since they are rebuilt when memory runs out.

    Attributes:
        source: the batch of source examples.
        sft: the batch of responses to learn, where these are not the source's.
        retain: the batch of the retain set.
        unlearned: the batch of responses to unlearn.
        finetuned: the adversary's update, and whether target prompts are used under it.
    """

    source: int
    sft: int | None
    retain: int | None
    unlearned: int | None
    finetuned: tuple[LoraDelta, bool] | None


class Objective:
    """The generator's loss and its gradients in the adapter weights.

    Attributes:
        kl_scale: factor of `kl_weight`, which the trainer raises while a limit is exceeded.
    """

    def __init__(self, context: TrainingContext, dataset: EditDataset) -> None:
        self._context, self._dataset = context, dataset
        self.kl_scale = 1.0
        self._loss, self._adversary = context.method.loss, context.method.adversary
        self._weights = parameters(context.editable)

    def gradients(self, step: Step, discriminators: Discriminators) -> Terms:
        """Set the gradients of a step; returns the terms of its loss for this process's rows.

        If memory runs out, the batches are divided further and the step is repeated.
        """
        while True:
            for weight in self._weights.values():
                weight.grad = None
            try:
                terms = self._backward(step, discriminators)
                break
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            free_memory()
            self._dataset.rebuild_smaller()
        distributed.all_reduce(p.grad for p in self._weights.values() if p.grad is not None)
        return terms

    def _backward(self, step: Step, discriminators: Discriminators) -> Terms:
        """Accumulate gradients, one micro-batch in memory at a time."""
        dataset, sums = self._dataset, Terms()

        def add(batch: Batch, terms_of: TermsOf) -> None:
            for micro_batch in batch.micro_batches:
                if not (terms := terms_of(batch, micro_batch)):
                    continue  # without pairs and discriminators, source examples have no loss
                share = 0.0 if micro_batch.is_dummy else 1.0
                loss = torch.stack(list(terms.values())).sum()
                (share * loss).backward()  # type: ignore[no-untyped-call]
                for name, term in terms.items():
                    sums[name] = sums.get(name, 0.0) + share * term.detach()

        source = dataset.source[step.source]
        add(source, lambda batch, micro: self._source_terms(batch, micro, discriminators))
        if step.sft is not None:
            add(dataset.sft[step.sft], self._sft_term)
        if step.finetuned is not None:
            delta, use_target = step.finetuned
            add(source, lambda batch, micro: self._finetune_term(batch, micro, delta, use_target))
        if step.retain is not None:
            add(dataset.retain[step.retain], self._retain_terms)
        if step.unlearned is not None:
            add(dataset.unlearned[step.unlearned], self._npo_term)
        return sums

    def _source_terms(
        self, batch: Batch, micro: MicroBatch, discriminators: Discriminators
    ) -> Terms:
        context, adversary, segment = self._context, self._adversary, self._context.segment
        inputs, terms = micro.cached.inputs, Terms()
        states: States = {}
        learned = self._loss.sft_weight and self._dataset.sft is self._dataset.source
        if learned or micro.base_logprobs is not None:
            states = segment.forward(inputs, (*context.read_layers, segment.last))
            terms |= self._response_terms(batch, micro, states[segment.last])
        if adversary.latent_epsilon:

            def objective(hidden: torch.Tensor) -> torch.Tensor:
                perturbed = segment.forward(replace(inputs, hidden=hidden), context.read_layers)
                parts = self._representation_terms(batch, micro, perturbed, discriminators)
                return torch.stack(list(parts.values())).sum()

            delta = latent_pgd(
                inputs.hidden, objective, adversary.latent_epsilon, adversary.latent_steps
            )
            inputs = replace(inputs, hidden=inputs.hidden + delta.to(inputs.hidden.dtype))
        if not (self._loss.adversarial_weight or self._loss.matching_weight):
            return terms
        if adversary.latent_epsilon or not states:
            states = segment.forward(inputs, context.read_layers)
        states = {layer: states[layer] for layer in context.read_layers}
        return terms | self._representation_terms(batch, micro, states, discriminators)

    def _representation_terms(
        self, batch: Batch, micro: MicroBatch, states: States, discriminators: Discriminators
    ) -> Terms:
        """The adversarial term and the matching term."""
        weights, normalizers, terms = self._loss, batch.normalizers, Terms()
        if weights.adversarial_weight:
            at, total = micro.read_positions, normalizers.positions
            if self._dataset.groups is None:
                parts = [
                    discriminators.generator_loss(
                        layer, states[layer][at], micro.reference_reads.get(layer), total
                    )
                    for layer in states
                ]
            else:
                parts = [
                    domain_confusion_loss(discriminators.by_layer[layer](states[layer][at]), total)
                    for layer in states
                ]
            terms["adversarial"] = weights.adversarial_weight * torch.stack(parts).mean()
        reference = micro.cached.states if weights.matching_weight else {}
        if reference:
            at = micro.cached.positions
            parts = [
                normalized_mse_loss(
                    states[layer][at], reference[layer], micro.weights, normalizers.states[layer]
                )
                for layer in states
            ]
            terms["matching"] = weights.matching_weight * torch.stack(parts).mean()
        return terms

    def _sft_term(self, batch: Batch, micro: MicroBatch) -> Terms:
        segment = self._context.segment
        states = segment.forward(micro.cached.inputs, (segment.last,))[segment.last]
        if not self._dataset.balances:
            return self._response_terms(batch, micro, states)
        # With both choices as examples to learn, the mean gradient would be the same, and that of
        # a batch mostly noise.
        assert micro.base_logprobs is not None
        assert micro.other_tokens is not None
        loss = balance_loss(
            segment.logits(states[micro.responses]),
            micro.base_logprobs(),
            micro.response_tokens,
            micro.other_tokens,
        )
        return {"balance": self._loss.sft_weight * loss.sum() / len(batch.index)}

    def _response_terms(self, batch: Batch, micro: MicroBatch, states: torch.Tensor) -> Terms:
        """Of the target responses, from the last block's outputs `[rows, tokens, hidden]`.

        The cross-entropy of their tokens, and the KL divergence from what the base predicts after
        the target counterparts: with a context, context distillation (Snell et al. 2022, arXiv
        2209.15189).
        """
        logits, terms = self._context.segment.logits(states[micro.responses]), Terms()
        weights, size = micro.response_weights, batch.normalizers.weights
        if self._loss.sft_weight:
            loss = sft_loss(logits, micro.response_tokens, weights, size)
            terms["sft"] = self._loss.sft_weight * loss
        if micro.base_logprobs is not None:
            kl = kl_from_logprobs(micro.base_logprobs(), logits) * weights
            terms["distillation"] = self._loss.distillation_weight * kl.sum() / size
        return terms

    def _npo_term(self, batch: Batch, micro: MicroBatch) -> Terms:
        """Of the source's own responses, which become less likely."""
        segment, weights = self._context.segment, self._loss
        states = segment.forward(micro.cached.inputs, (segment.last,))[segment.last]
        logits = segment.logits(states[micro.responses])
        logprobs = token_logprobs(logits, micro.response_tokens)
        assert micro.reference_logprobs is not None
        own, reference = (
            sum_by_chat(one, micro.batch) for one in (logprobs, micro.reference_logprobs)
        )
        chosen = [self._dataset.examples.rejected[i] for i in batch.index]
        tokens = sum(len(chat.ids) - chat.start for chat in chosen)
        return {"npo": weights.npo_weight * npo_loss(own, reference, weights.npo_beta, tokens)}

    def _finetune_term(
        self, batch: Batch, micro: MicroBatch, delta: LoraDelta, use_target: bool
    ) -> Terms:
        """Of the target responses to source or target prompts, under the adversary's update."""
        context, examples = self._context, self._dataset.examples
        chats = examples.counterparts if use_target else examples.source
        padded = pad_right(micro.batch.index, chats, context.pad)
        with apply_lora_delta(context.editable, delta):
            _, logits = forward_with_states(context.editable, padded.ids, ())
        at = padded.response_positions()
        weights = padded.position_weights(at, FINETUNE_FIRST_TOKEN_WEIGHT).to(logits.device)
        # A target response has the same length after either prompt.
        lengths = [len(examples.source[i].ids) - examples.source[i].start for i in batch.index]
        size = sum(lengths) + len(lengths) * (FINETUNE_FIRST_TOKEN_WEIGHT - 1)
        rows, positions = (index.to(logits.device) for index in at)
        loss = sft_loss(logits[rows, positions], padded.response_tokens(), weights, size)
        return {"finetune": self._adversary.finetune_weight * loss}

    def _retain_terms(self, batch: Batch, micro: MicroBatch) -> Terms:
        """The KL divergence from the base on the responses, and the distance of the states."""
        segment, loss, terms = self._context.segment, self._loss, Terms()
        states = segment.forward(micro.cached.inputs, (segment.last,))[segment.last]
        if micro.base_logprobs is not None:
            logits = segment.logits(states[micro.responses])
            kl = kl_from_logprobs(micro.base_logprobs(), logits) * micro.response_weights
            terms["kl"] = loss.kl_weight * self.kl_scale * kl.sum() / batch.normalizers.weights
        if loss.retain_weight:
            reference, normalizer = micro.cached.states[segment.last], batch.normalizers.states
            at = states[micro.cached.positions]
            distance = normalized_mse_loss(at, reference, None, normalizer[segment.last])
            terms["retain"] = loss.retain_weight * distance
        return terms
