"""How likely the first of two continuations is, and how unlike that is between two groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from retouch.concepts.render import render
from retouch.core.errors import DataError
from retouch.core.types import Example, Score
from retouch.evaluation.drift import batches, pad
from retouch.evaluation.statistics import bootstrap_gap

if TYPE_CHECKING:
    from retouch.models.load import LoadedModel

# Logits held at a time: 1 GiB in float32.
_LOGITS = 2**28


def first_shares(
    loaded: LoadedModel, rows: Sequence[Example], choices: Sequence[str], batch_size: int
) -> list[float]:
    """P(first) / (P(first) + P(second)) for each row, for the model as it is now.

    A choice stands where the reply (after the row's prefill) begins. Where the choices' first
    tokens differ, these decide; where they coincide, the whole continuations do.

    Raises:
        DataError: when there are not two choices, or one is the beginning of the other.
    """
    if len(choices) != 2:
        raise DataError(
            f"A gap is measured between two continuations, and {len(choices)} are given.",
            "Give the metric two `choices`.",
        )
    texts = [text for row in rows for text in _continued(loaded, row, choices)]
    scores = _log_probs(loaded, texts, batch_size)
    pairs = torch.tensor(scores, dtype=torch.float64).view(-1, 2)
    shares: list[float] = torch.sigmoid(pairs[:, 0] - pairs[:, 1]).tolist()
    return shares


def group_gap(rows: Sequence[Example], values: Sequence[float], groups: Sequence[str]) -> Score:
    """|mean over the first group - mean over the second|, with a bootstrap.

    Raises:
        ValueError: when a group has no row.
    """
    first, second = (
        [value for row, value in zip(rows, values, strict=True) if row.group == group]
        for group in groups
    )
    return bootstrap_gap(first, second)


def _continued(
    loaded: LoadedModel, row: Example, choices: Sequence[str]
) -> list[tuple[list[int], int]]:
    """For each choice the ids of prompt and choice, and where the ids to be scored begin."""
    # As the reply would be tokenized, less the end of the turn.
    texts = [render(loaded.tokenizer, row.prompt, choice, row.prefill) for choice in choices]
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
        return [(ids[: shared + 1], shared) for ids in full]
    # What the choices share has the same probability in both, so it drops out of the ratio.
    return [(ids, shared) for ids in full]


def _log_probs(
    loaded: LoadedModel, texts: Sequence[tuple[list[int], int]], batch_size: int
) -> list[float]:
    """Log P(ids[start:] | ids[:start]) in nats, for each text."""
    scores = [0.0] * len(texts)
    vocabulary = int(loaded.model.config.get_text_config().vocab_size)
    for batch in batches([len(ids) for ids, _ in texts], batch_size, _LOGITS // vocabulary):
        ids, mask = pad([texts[i][0] for i in batch], loaded.device)
        with torch.inference_mode():
            logits = loaded.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            for at, i in enumerate(batch):
                length, start = len(texts[i][0]), texts[i][1]
                table = logits[at, start - 1 : length - 1].float().log_softmax(-1)
                scores[i] = float(table.gather(1, ids[at, start:length, None]).sum())
    return scores
