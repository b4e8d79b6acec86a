"""The training that all LoRA methods share: one optimizer, one loop, one way to choose the round.

Methods differ in the loss alone. The checkpoint that is kept is the one that the task's judge
likes best within the guard on drift, as for Retouch; where none stays within it, the one with the
lowest drift.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

import torch
from torch.nn import functional as F

from retouch.concepts.chat import TokenizedChat
from retouch.core.errors import DivergedError
from retouch.methods.method import Progress, Settings, tunable
from retouch.models.adapters import attach, parameters
from retouch.models.editable_model import EditableModel
from retouch.representations.batch import PaddedBatch, make_batches
from retouch.task.task import EditTask
from retouch.training.ema import copy_into

Loss = Callable[[int], torch.Tensor]


class LoraSettings(Settings):
    """What every LoRA method has."""

    lr: float = tunable(1e-3, low=1e-4, high=1e-2, log=True, description="learning rate (Adam)")
    steps: int = tunable(96, low=24, high=200, log=True, description="training steps")
    rank: int = 8
    alpha: float = 16.0
    batch: int = 24
    num_validations: int = 8  # how often, over the training, the judge looks
    drift_guard: float = tunable(
        0.02, low=0.002, high=0.1, log=True, description="a checkpoint counts below this drift"
    )


def every_layer(editable: EditableModel) -> tuple[int, ...]:
    """All blocks: where a user's LoRA fine-tuning puts its adapters."""
    return tuple(range(editable.layout.depth))


def train(
    editable: EditableModel,
    task: EditTask,
    settings: LoraSettings,
    layers: Sequence[int],
    make_loss: Callable[[], Loss],
    progress: Progress,
) -> None:
    """Put a LoRA adapter on the blocks and train it; the best checkpoint stays on the model.

    Args:
        editable: the base model.
        task: for its judge and seed.
        settings: of the method.
        layers: the blocks that get adapters.
        make_loss: called once the adapter is on; gives the loss of a step, by its number.
        progress: progress.

    Raises:
        DivergedError: a loss is not finite.
    """
    attach(editable, layers, (), settings.rank, settings.alpha, task.config.seed)
    weights = parameters(editable)
    optimizer = torch.optim.Adam(weights.values(), lr=settings.lr)
    loss_of = make_loss()
    every = max(1, settings.steps // settings.num_validations)
    keeper = BestCheckpoint(weights, settings.drift_guard)
    for step in range(settings.steps):
        loss = loss_of(step)
        if not torch.isfinite(loss):
            raise DivergedError(f"The loss is not finite in step {step + 1}.", "Lower the lr.")
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)
        optimizer.step()
        if (step + 1) % every == 0 or step + 1 == settings.steps:
            result = task.validator()
            keeper.see(result.validation_score, result.drift)
            progress("training", step + 1, settings.steps)
    keeper.put_best()


class BestCheckpoint:
    """Keeps the best weights seen: best validation_score within the guard, else the lowest drift."""

    def __init__(self, weights: dict[str, torch.nn.Parameter], guard: float) -> None:
        self._weights, self._guard = weights, guard
        self._best: dict[str, torch.Tensor] = {}
        self._rank = (False, float("-inf"))

    def see(self, validation_score: float, drift: float) -> None:
        """Take the present weights if they are better than any before."""
        within = drift <= self._guard
        rank = (within, validation_score if within else -drift)
        if rank > self._rank or not self._best:
            self._rank = rank
            self._best = {name: p.detach().clone() for name, p in self._weights.items()}

    def put_best(self) -> None:
        """Put the best weights seen into the adapter."""
        copy_into(self._weights, self._best)


def cycle(
    editable: EditableModel, rows: Sequence[TokenizedChat], size: int, seed: str
) -> Iterator[PaddedBatch]:
    """Batches of the rows without end, in a new order every time through."""
    batches = make_batches(rows, size, int(editable.tokenizer.pad_token_id))
    return shuffled_forever(batches, random.Random(seed))


def response_loss(editable: EditableModel, batch: PaddedBatch) -> torch.Tensor:
    r"""Cross-entropy of the responses: $-\frac1T \sum_t \log p(y_t | x, y_{<t})$, nats a token."""
    logits = editable.model(input_ids=batch.ids.to(editable.device), use_cache=False).logits
    rows, at = batch.response_positions()
    told = batch.response_tokens().to(logits.device)
    loss: torch.Tensor = F.cross_entropy(logits[rows, at].float(), told)
    return loss


def base_kl(editable: EditableModel, batch: PaddedBatch) -> torch.Tensor:
    r"""$\frac1T \sum_t KL(p_{base} || p)$ over every real token of the batch, nats a token."""
    ids, real = batch.ids.to(editable.device), batch.token_mask()
    with torch.no_grad(), editable.base_model():
        base = editable.model(input_ids=ids, use_cache=False).logits[real].float().log_softmax(-1)
    ours = editable.model(input_ids=ids, use_cache=False).logits[real].float().log_softmax(-1)
    kl: torch.Tensor = (base.exp() * (base - ours)).sum(-1).mean()
    return kl
