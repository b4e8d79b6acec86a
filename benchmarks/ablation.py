"""Measure what each part of the method contributes: a concept edited with one part left out.

    python -m benchmarks.ablation [--model pocket] [--concept pocket-safety] [--direction raise]
        [--num-examples 16] [--seeds 3] [--parts "none,adversarial loss"]

Each variant keeps the concept's settings but for the part; test splits. Finished runs are kept
under --out and reused. Without the adversarial and the matching loss, what remains is LoRA
fine-tuning with a KL penalty (SFT + KL), on the same adapters, examples, optimiser and validation.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import argument_parser, edit_run, parse_names
from retouch.concepts.registry import load_concept
from retouch.core.types import DIRECTIONS, Direction, Record

# The part that is left out, and the options of `retouch edit` that leave it out.
PARTS: dict[str, dict[str, Any]] = {
    "none": {},
    "adversarial loss": {"adversarial-weight": 0},
    "matching loss": {"matching-weight": 0},
    "adversarial and matching loss": {"adversarial-weight": 0, "matching-weight": 0},
    # Without the retain loss an edit may drift far; it is measured all the same.
    "retain loss": {"retain-weight": 0, "max-drift": 10},
    "SFT loss": {"sft-weight": 0},
    # The cross-entropy of single states in place of pairs, without a gradient penalty.
    "relativistic discriminators": {
        "discriminator-objective": "standard",
        "discriminator-label-smoothing": 0.1,
        "discriminator-gradient-penalty": 0,
    },
    "EMA": {"ema-decay": 0},
    "positions after the first": {"discriminator-positions": 1},
}
METRICS = (
    "harmful_refusal",
    "attack_refusal",
    "prefill_refusal",
    "prefill_short_refusal",
    "prefill_medium_refusal",
    "nested_refusal",
    "over_refusal",
    "wrapped_refusal",
    "ordinary_refusal",
    "prefill_long_refusal",
    "prefill_clean",
    "prefill_over_refusal",
    "legend_false",
    "facts_correct",
    "pronoun_bias",
    "answers_kept",
    "kl_per_token",
    "task_accuracy",
)


def value_after(records: Mapping[str, Record], metric: str) -> float:
    """A metric after the edit."""
    score = records[metric].after
    assert score is not None
    return score.value


def rows(
    model: str,
    concept: str,
    direction: Direction,
    num_examples: int,
    seeds: int,
    parts: Sequence[str],
    out: Path,
) -> Iterator[str]:
    """The lines of the table, each as soon as its edits are made.

    The effect is the mean over the seeds with the worst seed; other metrics are means.
    """
    spec = load_concept(concept).directions[direction]
    header = False
    for part in parts:
        runs = []
        for seed in range(seeds):
            name = f"{concept}-{direction}-{num_examples}-{part.replace(' ', '-')}-seed{seed}"
            options = {"num-examples": num_examples, "seed": seed, **PARTS[part]}
            run = edit_run(out / Path(model).name / name, concept, direction, options, model=model)
            runs.append({record.metric: record for record in run.metrics()})
        others = [metric for metric in METRICS if metric in runs[0] and metric != spec.effect]
        if not header:
            header = True
            yield f"| part left out | {spec.effect} (worst seed) | {' | '.join(others)} |"
            yield f"|---|---|{'---|' * len(others)}"
        effects = [value_after(run, spec.effect) for run in runs]
        worst = (min if spec.effect_better == "higher" else max)(effects)
        means = [statistics.fmean(value_after(run, metric) for run in runs) for metric in others]
        columns = " | ".join(f"{mean:.4f}" for mean in means)
        yield f"| {part} | {statistics.fmean(effects):.3f} ({worst:.3f}) | {columns} |"


def main(words: Sequence[str] | None = None) -> None:
    """Parse the options and print."""
    parser = argument_parser(__doc__)
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--concept", default="pocket-safety")
    parser.add_argument("--direction", choices=DIRECTIONS, default="raise")
    parser.add_argument("--num-examples", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--parts", default=",".join(PARTS), help="parts, separated by commas")
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    options = parser.parse_args(words)
    parts = parse_names(parser, "--parts", options.parts, list(PARTS))
    print(
        f"{options.model}, {options.concept}, {options.direction}, "
        f"{options.num_examples} examples, {options.seeds} seeds, test split.\n"
    )
    table = rows(
        options.model,
        options.concept,
        options.direction,
        options.num_examples,
        options.seeds,
        parts,
        options.out,
    )
    for line in table:
        print(line, flush=True)


if __name__ == "__main__":
    main()
