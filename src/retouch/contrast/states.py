"""Log-probabilities of responses and states of their prompts, and how far the states differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from inspect import signature

import torch

from retouch.concepts.chat import TokenizedChat
from retouch.core.config import DiscriminatorConfig
from retouch.core.types import Score
from retouch.evaluation.statistics import wilson
from retouch.models.editable_model import EditableModel
from retouch.models.segment import Segment
from retouch.representations.discriminator import Discriminators, States
from retouch.representations.logprobs import token_logprobs
from retouch.representations.packing import Packer

MAX_COMPARED = 32  # tokens of a response whose log-probability is compared
BATCH_SIZE = 16  # chats that run together
POSITIONS = 1  # response positions whose states are classified: that of the last prompt token


def run_chats(
    editable: EditableModel,
    chats: Sequence[TokenizedChat],
    layers: tuple[int, ...],
    packer: Packer,
) -> tuple[torch.Tensor, list[States]]:
    """Run chats through the model, with at most `MAX_COMPARED` tokens of their responses.

    Returns:
        The mean log-probability `[chats]` of each response, nats a token, and for each chat its
        states `[positions, hidden]` by layer.
    """
    chats = [replace(one, ids=one.ids[: one.start + MAX_COMPARED]) for one in chats]
    last = editable.layout.depth - 1
    segment = Segment(editable, last, last)
    hooked = tuple(sorted({*layers, last}))
    logprobs = torch.zeros(len(chats))
    states: list[States] = [{} for _ in chats]
    # The logits are computed at the response positions alone, below.
    supported = signature(editable.base.forward).parameters
    extra = {"logits_to_keep": 1} if "logits_to_keep" in supported else {}
    for begin in range(0, len(chats), BATCH_SIZE):
        batch = packer.batch(range(begin, min(begin + BATCH_SIZE, len(chats))), chats)
        arguments = {**packer.arguments(batch), **extra}
        found = segment.forward_states(batch.ids, hooked, arguments)
        rows, at = (one.to(editable.device) for one in batch.response_positions())
        values = token_logprobs(segment.logits(found[last][rows, at]), batch.response_tokens())
        numbers = batch.response_chats().to(values.device)
        rows, at = (one.to(editable.device) for one in batch.response_positions(POSITIONS))
        owner = batch.response_chats(POSITIONS).to(values.device)
        read = {layer: found[layer][rows, at].float() for layer in layers}
        for number, i in enumerate(batch.index):
            logprobs[i] = values[numbers == number].mean()
            states[i] = {layer: one[owner == number] for layer, one in read.items()}
    return logprobs, states


def separability(
    source: Sequence[States], target: Sequence[States], layers: tuple[int, ...]
) -> Score | None:
    """The held-out accuracy of linear classifiers of source and target, one for each layer.

    In two folds, so that every example is classified by classifiers that were not trained on it or
    on its counterpart. An example's class is that of the mean over its positions and the layers.
    """
    if min(len(source), len(target)) < 4:
        return None
    size = source[0][layers[0]].shape[-1]
    device = source[0][layers[0]].device
    config = DiscriminatorConfig(hidden_size=0, learning_rate=1e-2)
    correct = 0
    for fold in range(2):
        fitted = Discriminators(layers, size, config, seed=0).to(device)
        mine, other = _stack(source[fold::2]), _stack(target[fold::2])
        fitted.standardise({layer: torch.cat([mine[layer], other[layer]]) for layer in layers})
        fitted.fit(other, mine, steps=100)
        correct += sum(_log_odds(fitted, one) <= 0 for one in source[1 - fold :: 2])
        correct += sum(_log_odds(fitted, one) > 0 for one in target[1 - fold :: 2])
    return wilson(correct, len(source) + len(target))


def _stack(states: Sequence[States]) -> States:
    return {layer: torch.cat([one[layer] for one in states]) for layer in states[0]}


@torch.no_grad()
def _log_odds(fitted: Discriminators, states: Mapping[int, torch.Tensor]) -> float:
    parts = [one(states[layer]).mean() for layer, one in fitted.by_layer.items()]
    return float(torch.stack(parts).mean())
