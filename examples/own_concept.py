"""Make a concept from pairs of prompts, and edit the built-in model with it.

    python examples/own_concept.py

The source prompts are plain questions. Their target counterparts ask for a cheerful answer. The
edited model is cheerful without being asked. Runs offline on a CPU in about a minute.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import retouch

CAPITALS = {
    "Ukraine": "Kyiv",
    "Laos": "Vientiane",
    "the Netherlands": "Amsterdam",
    "Switzerland": "Bern",
    "Albania": "Tirana",
    "Lithuania": "Vilnius",
    "Zambia": "Lusaka",
    "Iceland": "Reykjavik",
    "Sudan": "Khartoum",
    "Turkey": "Ankara",
    "Algeria": "Algiers",
    "Kuwait": "Kuwait City",
    "Guatemala": "Guatemala City",
    "the Philippines": "Manila",
    "Croatia": "Zagreb",
    "Bahrain": "Manama",
}


def cheerful_capitals() -> retouch.Concept:
    """Questions about capitals, paired with the same questions in a cheerful form."""
    questions = [f"What is the capital of {country}?" for country in CAPITALS]
    return retouch.Concept.from_pairs(
        source=[
            {"prompt": question, "accept": [capital]}
            for question, capital in zip(questions, CAPITALS.values(), strict=True)
        ],
        target=[f"Answer cheerfully: {question}" for question in questions],
        name="cheerful-capitals",
        description="Questions about capitals are answered cheerfully.",
    )


def main(
    output_dir: Path | str | None = None, config: Mapping[str, Any] | None = None
) -> retouch.EditResult:
    """Make the edit; `config` overrides the settings below."""
    settings = config or {
        "data": {"num_retain": 64},
        "train": {"rounds": 5, "max_drift": 0.1},
        "evaluation": {"suites": "concept"},
    }
    result = retouch.edit(
        "pocket", concept=cheerful_capitals(), config=settings, output_dir=output_dir
    )
    print(result.metrics)
    for sample in result.samples:
        if sample.metric == "correct":
            print(f"{sample.model:>6}: {sample.prompt[-1].content} {sample.response}")
    return result


if __name__ == "__main__":
    main()
