"""Print what each part of the edit buys: a concept edited with one part taken out at a time.

    python -m benchmarks.ablation [--concept safety] [--direction raise] [--labels 16] [--seeds 3]
        [--parts "whole,no game"]

Each variant keeps the concept's settings but for what it takes out; test splits. Finished edits are
kept under --out and not made again.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.runs import edited
from retouch.concepts.registry import load_concept
from retouch.core.types import Record

# What is taken out, and how: options of `retouch edit`.
PARTS: dict[str, dict[str, Any]] = {
    "whole": {},
    "no game": {"adversarial-weight": 0},
    "no pairs": {"pair-weight": 0},
    "no retain set": {"retain-weight": 0},
    "no words learnt": {"supervised-weight": 0},
    "no moving average": {"average": 0},
    "decision alone read": {"response-positions": 1},
}
METRICS = (
    "nested_refusal",
    "over_refusal",
    "prefill_long_refusal",
    "prefill_clean",
    "legend_false",
    "facts_correct",
    "pronoun_lean",
    "answers_kept",
    "kl_per_token",
    "task_accuracy",
)


def value(records: dict[str, Record], metric: str) -> float:
    """A metric after the edit."""
    score = records[metric].after
    assert score is not None
    return score.value


def table(
    concept: str, direction: str, labels: int, seeds: int, parts: Sequence[str], out: Path
) -> str:
    """Mean over the seeds, and the worst seed of the effect."""
    effect = load_concept(concept).directions[direction].effect  # type: ignore[index]
    higher = load_concept(concept).directions[direction].effect_better == "higher"  # type: ignore[index]
    lines: list[str] = []
    for part in parts:
        options, runs = PARTS[part], []
        for seed in range(seeds):
            path = out / f"{concept}-{direction}-{labels}-{part.replace(' ', '-')}-seed{seed}"
            # Without the retain set an edit may drift far: it is measured all the same.
            wide = {"drift-guard": 10} if part == "no retain set" else {}
            run = edited(
                path, concept, direction, {"labels": labels, "seed": seed, **options, **wide}
            )
            runs.append({record.metric: record for record in run.metrics()})
        shown = [m for m in METRICS if m in runs[0] and m != effect]
        if not lines:
            lines = [
                f"{concept}, {direction}, {labels} labels, {seeds} seeds, test split.",
                "",
                f"| part taken out | {effect} (worst seed) | {' | '.join(shown)} |",
                f"|---|---|{'---|' * len(shown)}",
            ]
        values = [value(run, effect) for run in runs]
        means = [statistics.fmean(value(run, metric) for run in runs) for metric in shown]
        worst = (min if higher else max)(values)
        points = " | ".join(f"{mean:.4f}" for mean in means)
        lines.append(f"| {part} | {statistics.fmean(values):.3f} ({worst:.3f}) | {points} |")
        print(lines[-1], flush=True)
    return "\n".join(lines)


def main() -> None:
    """Parse the options and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--concept", default="safety")
    parser.add_argument("--direction", default="raise")
    parser.add_argument("--labels", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--parts", default=",".join(PARTS), help="of those that can be taken out")
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    options = parser.parse_args()
    parts = [part for part in options.parts.split(",") if part]
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"--parts: there is no {unknown[0]!r}; there are {', '.join(PARTS)}")
    print()
    rest = (options.labels, options.seeds, parts, options.out)
    print(table(options.concept, options.direction, *rest))


if __name__ == "__main__":
    main()
