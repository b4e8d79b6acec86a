"""Compare Retouch with three baselines on the same examples, with few examples.

    python examples/compare_baselines.py

Writes compare.md, compare.json and compare.png. Runs offline on a CPU in about five minutes; an
interrupted comparison continues where it stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import retouch
from retouch.comparison.compare import Comparison


def main(
    output_dir: Path | str = "runs/compare-example",
    methods: Sequence[str] = ("none", "self-reminder", "lorra", "retouch"),
    num_examples: int = 16,
    seeds: int = 1,
    limit: int | None = 64,
) -> Comparison:
    """Run the comparison and print its table."""
    comparison = retouch.compare(
        "pocket",
        concept="pocket-safety",
        methods=methods,
        num_examples=num_examples,
        seeds=seeds,
        limit=limit,
        output_dir=output_dir,
    )
    print((comparison.path / "compare.md").read_text("utf-8"))
    return comparison


if __name__ == "__main__":
    main()
