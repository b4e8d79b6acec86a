"""How far the edited model is from its base: the exact KL divergence, token by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from retouch.concepts.render import Rendered
from retouch.models.load import LoadedModel
from retouch.representations.batch import make_batches
from retouch.representations.likelihood import logit_room


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


@torch.no_grad()
def token_kl(
    loaded: LoadedModel,
    rows: Sequence[Rendered],
    batch_size: int = 32,
    progress: Callable[[int, int], None] | None = None,
    given: Sequence[Rendered] | None = None,
) -> list[RowKL]:
    r"""The exact KL divergence from base to edited over the full vocabulary, for each text.

    $$\sum_t \sum_v p_{base}(v | x_{<t}) (\log p_{base}(v | x_{<t}) - \log p_{edited}(v | x_{<t}))$$

    in nats. The base is the model with its adapters off: without adapters it is exactly 0.

    Where the edited model is `given` the same texts behind another prompt, they are compared at the
    tokens that both end in.
    """
    found: dict[int, RowKL] = {}
    pad, room = int(loaded.tokenizer.pad_token_id), logit_room(loaded) // 2
    for batch in make_batches(rows, batch_size, pad, room):
        ids = batch.ids.to(loaded.device)
        with loaded.reference():
            base = loaded.model(input_ids=ids, use_cache=False).logits
        other = batch.twin(given, pad) if given else batch
        edited = loaded.model(input_ids=other.ids.to(loaded.device), use_cache=False).logits
        for at, index in enumerate(batch.index):
            last, end = batch.lengths[at] - 1, other.lengths[at] - 1
            # The state at position t predicts token t + 1: the reply's first at start - 1.
            begin = 0 if given is None else last + 1 - _shared_end(rows[index], given[index])
            kl = _kl(base[at, begin:last], edited[at, end - last + begin : end])
            reply = kl[max(batch.starts[at] - 1 - begin, 0) :]
            found[index] = RowKL(
                float(kl.sum(dtype=torch.float64)),
                len(kl),
                float(reply.sum(dtype=torch.float64)),
                len(reply),
            )
        if progress:
            progress(len(found), len(rows))
    return [found[i] for i in range(len(rows))]


def _shared_end(a: Rendered, b: Rendered) -> int:
    """How many tokens both texts end in."""
    shared = 0
    for ours, theirs in zip(reversed(a.ids), reversed(b.ids), strict=False):
        if ours != theirs:
            break
        shared += 1
    return shared


def _kl(base: torch.Tensor, edited: torch.Tensor) -> torch.Tensor:
    """KL(base || edited) at each position, in nats: `[tokens, vocabulary]` to `[tokens]`."""
    p, q = base.float().log_softmax(-1), edited.float().log_softmax(-1)
    # What the base rules out (log p = -inf) adds nothing; -inf - -inf would be nan.
    terms = torch.where(p.isneginf(), 0.0, p.exp() * (p - q))
    return terms.sum(-1).clamp_min(0.0)  # never negative but for rounding
