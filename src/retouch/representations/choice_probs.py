"""How likely the first of two continuations is, of the two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from retouch.concepts.chat import TokenizedChat, tokenize_chat
from retouch.concepts.concept import Example
from retouch.core.errors import DataError
from retouch.representations.logprobs import response_logprob

if TYPE_CHECKING:
    from retouch.models.editable_model import EditableModel


def choice_probs(
    editable: EditableModel, rows: Sequence[Example], choices: Sequence[str], batch_size: int = 64
) -> list[float]:
    """P(first) / (P(first) + P(second)) for each row, for the model as it is now.

    A choice stands where the response (after the row's prefill) begins. Where the choices' first
    tokens differ, these decide; where they coincide, the whole continuations do.

    Raises:
        DataError: when there are not two choices, or one is the beginning of the other.
    """
    if len(choices) != 2:
        raise DataError(
            f"A gap is measured between two continuations, and {len(choices)} are given.",
            "Give the metric two `choices`.",
        )
    texts = [text for row in rows for text in _continued(editable, row, choices)]
    means = response_logprob(editable, texts, batch_size).double()
    pairs = (means * torch.tensor([len(t.ids) - t.start for t in texts])).view(-1, 2)
    shares: list[float] = torch.sigmoid(pairs[:, 0] - pairs[:, 1]).tolist()
    return shares


def _continued(
    editable: EditableModel, row: Example, choices: Sequence[str]
) -> list[TokenizedChat]:
    """For each choice prompt and choice, with what is to be scored as the response."""
    # As the response would be tokenized, less the end of the turn.
    prompt = editable.rewrite_prompt(row.prompt)
    texts = [tokenize_chat(editable.tokenizer, prompt, choice, row.prefill) for choice in choices]
    full, asked = [list(text.ids[:-1]) for text in texts], texts[0].start
    shared = 0
    while shared < min(map(len, full)) and full[0][shared] == full[1][shared]:
        shared += 1
    if shared in (len(full[0]), len(full[1])):
        raise DataError(
            f"Of the choices {choices[0]!r} and {choices[1]!r} one is the beginning of the other.",
            "Choose continuations that part ways.",
        )
    if shared == asked:
        return [TokenizedChat(tuple(ids[: shared + 1]), shared) for ids in full]
    # What the choices share has the same probability in both, so it drops out of the ratio.
    return [TokenizedChat(tuple(ids), shared) for ids in full]
