"""The exact KL divergence of an edited model from its base, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from retouch.concepts.chat import TokenizedChat
from retouch.core.types import Progress, no_progress
from retouch.models.editable_model import EditableModel
from retouch.representations.batch import make_batches
from retouch.representations.logprobs import max_logit_tokens


@dataclass(frozen=True, slots=True)
class ExampleKL:
    """KL(base || edited) of one text, summed over positions, in nats.

    Attributes:
        total: over every position that predicts a next token.
        count: the number of these positions.
        response_total: over those that predict the response's tokens, the end token included.
        response_count: the number of these positions.
    """

    total: float
    count: int
    response_total: float
    response_count: int


def kl_divergence(base: torch.Tensor, edited: torch.Tensor) -> torch.Tensor:
    r"""$\sum_v p(v) (\log p(v) - \log q(v))$ at each position, in nats; gradients flow to $q$.

    Args:
        base: logits of $p$, `[n, vocabulary]`.
        edited: logits of $q$, `[n, vocabulary]`.

    Returns:
        `[n]`, never negative.
    """
    p, q = base.float().log_softmax(-1), edited.float().log_softmax(-1)
    # Tokens that the base excludes (log p = -inf) contribute 0; -inf - -inf would be nan.
    terms = torch.where(p.isneginf(), 0.0, p.exp() * (p - q))
    return terms.sum(-1).clamp_min(0.0)  # negative only by rounding


def kl_from_logprobs(base: torch.Tensor, edited: torch.Tensor) -> torch.Tensor:
    """The same for finite log-probabilities of $p$ that are known, with fewer passes over them.

    Args:
        base: log-probabilities of $p$, `[n, vocabulary]`, of any dtype.
        edited: logits of $q$, `[n, vocabulary]`.

    Returns:
        `[n]`; negative by rounding at most.
    """
    base, edited = base.float(), edited.float()
    p = base.exp()
    total = p.sum(-1)  # 1 but for the rounding of the log-probabilities
    cross_entropy = total * edited.logsumexp(-1) - torch.linalg.vecdot(p, edited)
    kl: torch.Tensor = cross_entropy + torch.linalg.vecdot(p, base)
    return kl


@torch.no_grad()
def token_kl(
    editable: EditableModel,
    chats: Sequence[TokenizedChat],
    batch_size: int = 32,
    progress: Progress = no_progress,
    edited_chats: Sequence[TokenizedChat] | None = None,
) -> list[ExampleKL]:
    """The exact KL divergence from base to edited over the full vocabulary, for each text.

    The base is the model with its adapter and interventions switched off; without any, the result
    is exactly 0.

    Args:
        editable: the model.
        chats: the texts.
        batch_size: rows at a time.
        progress: called after every batch.
        edited_chats: the texts for the edited model where its prompts are extended; the models are
            compared at the tokens that both texts end in.
    """
    found: dict[int, ExampleKL] = {}
    pad, max_tokens = int(editable.tokenizer.pad_token_id), max_logit_tokens(editable) // 2
    for batch in make_batches(chats, batch_size, pad, max_tokens):
        ids = batch.ids.to(editable.device)
        with editable.base_model():
            base = editable.model(input_ids=ids, use_cache=False).logits
        other = batch.counterpart(edited_chats, pad) if edited_chats else batch
        edited = editable.model(input_ids=other.ids.to(editable.device), use_cache=False).logits
        for row, index in enumerate(batch.index):
            last, end = batch.lengths[row] - 1, other.lengths[row] - 1
            # The state at position t predicts token t + 1: the response's first at start - 1.
            begin = 0
            if edited_chats is not None:
                begin = last + 1 - _common_suffix(chats[index], edited_chats[index])
            kl = kl_divergence(base[row, begin:last], edited[row, end - last + begin : end])
            response = kl[max(batch.starts[row] - 1 - begin, 0) :]
            found[index] = ExampleKL(
                float(kl.sum(dtype=torch.float64)),
                len(kl),
                float(response.sum(dtype=torch.float64)),
                len(response),
            )
        progress("KL divergence from the base", len(found), len(chats))
    return [found[i] for i in range(len(chats))]


def _common_suffix(a: TokenizedChat, b: TokenizedChat) -> int:
    """How many tokens both texts end in."""
    shared = 0
    for one, other in zip(reversed(a.ids), reversed(b.ids), strict=False):
        if one != other:
            break
        shared += 1
    return shared
