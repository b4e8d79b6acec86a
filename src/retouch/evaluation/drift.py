"""How far the edited model moved from its base: the exact KL divergence, token by token."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from retouch.core.types import Score
from retouch.evaluation.statistics import bootstrap_ratio

if TYPE_CHECKING:
    from retouch.concepts.render import Rendered
    from retouch.models.load import LoadedModel

# Logits held at a time, for both models together: 1 GiB in float32.
_LOGITS = 2**28


@dataclass(frozen=True, slots=True)
class RowKL:
    """KL(base || edited) of one text, summed over positions, in nats.

    Attributes:
        total: over every position that predicts a next token.
        count: how many these are.
        reply_total: over those that predict the reply's tokens, its end included.
        reply_count: how many these are.
    """

    total: float
    count: int
    reply_total: float
    reply_count: int


def token_kl(
    loaded: LoadedModel,
    rendered: Sequence[Rendered],
    batch_size: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[RowKL]:
    """The exact KL divergence from base to edited over the full vocabulary, for each text.

    Σ_t Σ_v p_base(v | x_<t) (log p_base(v | x_<t) - log p_edited(v | x_<t)), in nats. The base is
    the model with its adapters off, so a model without adapters is at exactly 0.
    """
    rows: dict[int, RowKL] = {}
    room = _LOGITS // int(loaded.model.config.get_text_config().vocab_size) // 2
    for batch in batches([len(text.ids) for text in rendered], batch_size, room):
        ids, mask = pad([rendered[i].ids for i in batch], loaded.device)
        with torch.inference_mode():
            with loaded.reference():
                base = loaded.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            edited = loaded.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            for at, i in enumerate(batch):
                last = len(rendered[i].ids) - 1
                rows[i] = _row(_kl(base[at, :last], edited[at, :last]), rendered[i].start)
        if progress:
            progress(len(rows), len(rendered))
    return [rows[i] for i in range(len(rendered))]


def mean_kl(rows: Sequence[RowKL], *, replies: bool) -> Score:
    """Nats a token over all rows (or their replies), with a bootstrap over rows.

    Raises:
        ValueError: without a row, or without a token.
    """
    if replies:
        return bootstrap_ratio([r.reply_total for r in rows], [r.reply_count for r in rows])
    return bootstrap_ratio([r.total for r in rows], [r.count for r in rows])


def batches(lengths: Sequence[int], batch_size: int, tokens: int) -> Iterator[list[int]]:
    """Indices in batches of like length, at most `batch_size` rows and `tokens` padded tokens."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        # Sorted upwards: the row about to come in would be the longest of the batch.
        if batch and (len(batch) == batch_size or (len(batch) + 1) * lengths[i] > tokens):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def pad(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and attention mask, `[rows, tokens]`, padded on the right with id 0, which is masked."""
    width = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for at, row in enumerate(rows):
        ids[at, : len(row)] = torch.tensor(row, dtype=torch.long)
        mask[at, : len(row)] = 1
    return ids.to(device), mask.to(device)


def _kl(base: torch.Tensor, edited: torch.Tensor) -> torch.Tensor:
    """KL(base || edited) at each position, in nats: `[tokens, vocabulary]` to `[tokens]`."""
    p, q = base.float().log_softmax(-1), edited.float().log_softmax(-1)
    # What the base rules out (log p = -inf) adds nothing; -inf - -inf would be nan.
    terms = torch.where(p.isneginf(), 0.0, p.exp() * (p - q))
    # Never negative but for rounding.
    return terms.sum(-1).clamp_min(0.0)


def _row(kl: torch.Tensor, start: int) -> RowKL:
    # Position t predicts token t + 1, so the first of the reply's tokens is predicted at start - 1.
    reply = kl[max(start - 1, 0) :]
    sums = [float(part.sum(dtype=torch.float64)) if len(part) else 0.0 for part in (kl, reply)]
    return RowKL(sums[0], len(kl), sums[1], len(reply))
