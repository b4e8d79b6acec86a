"""What the speed benchmarks found: records, rows of the table, figures beside their targets."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.loops import AttackOutcome, Measured
from benchmarks.workload import Case

SAME = ("full", "cut", "segment")  # compute the same
TOLERANCE = {"float32": 1e-3, "bfloat16": 3e-2}  # of a loss, relative
HEAD = (
    "| case | variant | once, s | a round, s | all, s | CPU, s | samples/s | peak, MB "
    "| x published (a round) | x full (a round) |\n|---|---|---|---|---|---|---|---|---|---|"
)

Record = dict[str, Any]


class UnlikeError(Exception):
    """Variants that should compute the same do not."""


@dataclass(frozen=True)
class Target:
    """A figure that the benchmark is to reach, and whether it may be higher or lower."""

    name: str
    found: float
    wanted: float
    higher: bool = True

    @property
    def met(self) -> bool:
        """Whether it is reached."""
        return self.found >= self.wanted if self.higher else self.found <= self.wanted

    def line(self) -> str:
        """A row of the table."""
        sign, met = "≥" if self.higher else "≤", "yes" if self.met else "NO"
        return f"| {self.name} | {self.found:.3g} | {sign} {self.wanted:g} | {met} |"


def record_of(found: Measured, before: Mapping[str, AttackOutcome], case: Case) -> Record:
    """The record of a variant.

    Args:
        found: what was measured.
        before: the best runs of the variants of the same case that came before, by name.
        case: the case.
    """
    best, fine_tuned = found.best, found.variant == "sft-step"
    known = {**before, found.variant: best}

    def ratio(
        to: str, read: Callable[[AttackOutcome], float] = lambda run: run.seconds
    ) -> float | None:
        # Fine-tuning does other work: no ratio.
        return None if fine_tuned or to not in known else read(known[to]) / read(best)

    return {
        "case": found.case,
        "variant": found.variant,
        "seconds": best.seconds,
        "samples_per_second": found.samples / best.seconds,
        "peak_bytes": found.peak_bytes,
        "ratio_to_published": ratio("published"),
        "ratio_to_full": ratio("full"),
        "round_ratio_to_published": ratio("published", AttackOutcome.a_round),
        "round_ratio_to_full": ratio("full", AttackOutcome.a_round),
        "once_seconds": best.once,
        "round_seconds": best.a_round(),
        "step_seconds": sum(best.rounds) / case.steps if fine_tuned else None,
        "cpu_seconds": best.cpu,
        "rounds": len(best.rounds),
        "runs": found.runs,
        "losses": best.losses,
    }


def agreed(records: Sequence[Record], tolerance: float) -> str:
    """A sentence that the variants which compute the same end in the same losses.

    Raises:
        UnlikeError: they do not.
    """
    case = records[0]["case"]
    losses = {r["variant"]: r["losses"] for r in records if r["variant"] in SAME}
    if len(losses) < 2:
        return ""
    rounds = list(zip(*losses.values(), strict=True))
    far = max((max(one) - min(one)) / max(map(abs, one)) for one in rounds)
    finite = all(math.isfinite(loss) for one in rounds for loss in one)
    if not finite or far > tolerance:
        raise UnlikeError(
            f"{case}: {', '.join(losses)} should compute the same, but their losses are up to "
            f"{far:.2g} apart: {losses}. The figures progress nothing until they agree."
        )
    last = ", ".join(f"{name} {found[-1]:.6f}" for name, found in losses.items())
    return f"{case}: same losses within {tolerance:g} (farthest {far:.1g}): {last}."


def row(record: Record) -> str:
    """A row of the table."""

    def shown(key: str, digits: str, unit: float = 1) -> str:
        return "" if record.get(key) is None else format(record[key] / unit, digits)

    def both(name: str) -> str:
        whole, alone = shown(name, ".2f"), shown(f"round_{name}", ".2f")
        return f"{whole} ({alone})" if whole else ""

    step = shown("step_seconds", ".4f")
    points = [
        record["case"],
        record["variant"] + (f" ({step} s)" if step else ""),
        shown("once_seconds", ".2f"),
        shown("round_seconds", ".2f"),
        shown("seconds", ".2f"),
        shown("cpu_seconds", ".2f"),
        shown("samples_per_second", ".1f"),
        shown("peak_bytes", ".0f", 1e6),
        *(both(name) for name in ("ratio_to_published", "ratio_to_full")),
    ]
    return f"| {' | '.join(points)} |"


def write(
    out: Path, where: Mapping[str, Any], records: Sequence[Record], targets: Sequence[Target]
) -> None:
    """All figures as JSON."""
    reached = [
        {"target": t.name, "found": t.found, "wanted": t.wanted, "met": t.met} for t in targets
    ]
    out.parent.mkdir(parents=True, exist_ok=True)
    told = {"machine": dict(where), "records": list(records), "targets": reached}
    out.write_text(json.dumps(told, indent=1) + "\n", "utf-8")


def print_targets(targets: Sequence[Target]) -> None:
    """Figures beside their targets."""
    print("| figure | found | target | met |\n|---|---|---|---|")
    for target in targets:
        print(target.line())
