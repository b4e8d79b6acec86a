"""How far the edited model moved from its base, as a score."""

from __future__ import annotations

from collections.abc import Sequence

from retouch.core.types import Score
from retouch.evaluation.statistics import Rows, bootstrap_ratio
from retouch.representations.divergence import RowKL


def mean_kl(rows: Sequence[RowKL], *, replies: bool) -> Score:
    """Nats a token over all rows (or their replies), with a bootstrap over rows.

    Raises:
        ValueError: without a row, or without a token.
    """
    summed = kl_rows(rows, replies=replies)
    return bootstrap_ratio(summed.sums, summed.counts)


def kl_rows(rows: Sequence[RowKL], *, replies: bool) -> Rows:
    """Nats and tokens of each row (or its reply)."""
    if replies:
        return Rows(tuple(r.reply_total for r in rows), tuple(float(r.reply_count) for r in rows))
    return Rows(tuple(r.total for r in rows), tuple(float(r.count) for r in rows))
