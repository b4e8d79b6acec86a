"""How far the edited model moved from its base, as a score."""

from __future__ import annotations

from collections.abc import Sequence

from retouch.core.types import Score
from retouch.evaluation.statistics import Rows, bootstrap_ratio
from retouch.representations.divergence import ExampleKL


def mean_kl(rows: Sequence[ExampleKL], *, responses: bool) -> Score:
    """Nats a token over all rows (or their responses), with a bootstrap over rows.

    Raises:
        ValueError: without a row, or without a token.
    """
    summed = kl_rows(rows, responses=responses)
    return bootstrap_ratio(summed.sums, summed.counts)


def kl_rows(rows: Sequence[ExampleKL], *, responses: bool) -> Rows:
    """Nats and tokens of each row (or its response)."""
    if responses:
        return Rows(
            tuple(r.response_total for r in rows), tuple(float(r.response_count) for r in rows)
        )
    return Rows(tuple(r.total for r in rows), tuple(float(r.count) for r in rows))
