"""A scorer in another package: the share of responses that end with an exclamation mark.

The package declares it in its pyproject.toml:

    [project.entry-points."retouch.scorers"]
    exclamation = "my_package.exclamation_scorer:ExclamationScorer"

A concept's metric then names it: `scorer: exclamation`.
"""

from __future__ import annotations

from retouch.concepts.concept import Example
from retouch.evaluation.scorer import ResponseScorer


class ExclamationScorer(ResponseScorer):
    """The share of responses that end with an exclamation mark."""

    name = "exclamation"

    def classify(self, example: Example, response: str) -> tuple[str, bool]:
        """The category of a response, and whether the metric counts it."""
        excited = response.rstrip().endswith("!")
        return ("excited" if excited else "calm"), excited
