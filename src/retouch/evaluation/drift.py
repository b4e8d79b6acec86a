"""How far the edited model moved from its base, as a score."""

from __future__ import annotations

from collections.abc import Sequence

from retouch.core.types import Score
from retouch.evaluation.statistics import bootstrap_ratio
from retouch.representations.divergence import RowKL


def mean_kl(rows: Sequence[RowKL], *, replies: bool) -> Score:
    """Nats a token over all rows (or their replies), with a bootstrap over rows.

    Raises:
        ValueError: without a row, or without a token.
    """
    if replies:
        return bootstrap_ratio([r.reply_total for r in rows], [r.reply_count for r in rows])
    return bootstrap_ratio([r.total for r in rows], [r.count for r in rows])
