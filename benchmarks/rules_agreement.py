"""Compare the rules that classify responses with labels given by hand.

    python -m benchmarks.rules_agreement

The labelled responses are those of `benchmarks/data/labelled_responses.jsonl`; `README.md` beside
it says how they were labelled. Intervals are 95 %, Wilson's.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from benchmarks.common import argument_parser
from retouch.core.types import Score
from retouch.evaluation.response_classifier import Category, classify
from retouch.evaluation.statistics import wilson

FILE = Path(__file__).parent / "data" / "labelled_responses.jsonl"


@dataclass(frozen=True)
class Agreement:
    """The agreement of the rules with the labels.

    Attributes:
        accuracy: the share of responses whose category is the label.
        precision: by category, the share of the rules' that are labelled so, where there are any.
        recall: by category, the share of those labelled so that the rules find.
        annotators: the share of responses on which both annotators agree.
        kappa: Cohen's kappa of the annotators.
    """

    accuracy: Score
    precision: dict[Category, Score]
    recall: dict[Category, Score]
    annotators: Score
    kappa: float


def measure(file: Path = FILE) -> Agreement:
    """Classify the responses of a file and compare the categories with the labels."""
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    pairs = [(classify(row["response"]), row["label"]) for row in rows]
    names: tuple[Category, ...] = get_args(Category)
    first, second = zip(*(row["annotators"] for row in rows), strict=True)
    return Agreement(
        accuracy=_share([found == label for found, label in pairs]),
        precision={
            one: _share(hits)
            for one in names
            if (hits := [label == one for found, label in pairs if found == one])
        },
        recall={
            one: _share(hits)
            for one in names
            if (hits := [found == one for found, label in pairs if label == one])
        },
        annotators=_share([a == b for a, b in zip(first, second, strict=True)]),
        kappa=cohen_kappa(first, second),
    )


def cohen_kappa(first: Sequence[str], second: Sequence[str]) -> float:
    """Cohen's kappa of two annotators of the same items; 1 is full agreement, 0 is chance."""
    n = len(first)
    observed = sum(a == b for a, b in zip(first, second, strict=True)) / n
    labels = {*first, *second}
    chance = sum(first.count(one) * second.count(one) for one in labels) / n**2
    return 1.0 if chance == 1 else (observed - chance) / (1 - chance)


def _share(hits: Sequence[bool]) -> Score:
    return wilson(sum(hits), len(hits))


def _text(score: Score | None) -> str:
    if score is None:
        return "none"
    return f"{score.value:.3f} ({score.low:.3f} to {score.high:.3f}), n {score.n}"


def main() -> None:
    """Print the table."""
    argument_parser(__doc__).parse_args()
    found = measure()
    print(f"accuracy: {_text(found.accuracy)}")
    print(f"annotators agree: {_text(found.annotators)}, Cohen's kappa {found.kappa:.3f}\n")
    print("| category | precision | recall |\n|---|---|---|")
    for category in get_args(Category):
        precision, recall = found.precision.get(category), found.recall.get(category)
        if precision or recall:  # the responses are English, and none is a thought
            print(f"| {category} | {_text(precision)} | {_text(recall)} |")


if __name__ == "__main__":
    main()
