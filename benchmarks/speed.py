"""How fast the edit is, beside the published loop and beside runs of the whole model.

    python -m benchmarks.speed [--only pocket,deep,depth,larger] [--out build/bench.json]

`benchmarks/loops.py` says what the variants are. All of a case have the same prompts, rounds and
steps; `full`, `cut` and `segment` must end in the same losses, or the benchmark stops. Every
variant runs in a process of its own, one at a time, after a warm-up: three times if a run takes
under 20 seconds, twice under 40, and the fastest counts. Memory is what the variant needs
beyond the editable model (`benchmarks/peak.py`). Ratios are of figures of one and the same run.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Protocol, TypeVar

from benchmarks.depths import DEPTHS, case_of, step_seconds
from benchmarks.figures import (
    HEAD,
    TOLERANCE,
    Record,
    Target,
    agreed,
    print_targets,
    record_of,
    row,
    write,
)
from benchmarks.larger import CASE as LARGER
from benchmarks.larger import fitted
from benchmarks.loops import LOOPS, AttackOutcome, measure
from benchmarks.machine import described, machine
from benchmarks.workload import Case, llama, middle

CASES = (
    Case("pocket", middle(8), middle(8)),
    Case("deep", middle(24), middle(24), llama(24, 512, 1408, 32000, 8), rounds=6),
)
Found = TypeVar("Found")


class Run(Protocol):
    """Does a micro_batch of work and hands back what it found."""

    def __call__(self, work: Callable[..., Found], *arguments: Any) -> Found:
        """What `work(*arguments)` returns."""


def alone(work: Callable[..., Found], *arguments: Any) -> Found:
    """Run it in a fresh process, whose memory no other work has touched."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def here(work: Callable[..., Found], *arguments: Any) -> Found:
    """Run it in this process."""
    return work(*arguments)


def records_of(
    case: Case,
    device: str,
    run: Run = alone,
    variants: Sequence[str] = tuple(LOOPS),
    progress: Callable[[str], None] = print,
) -> list[Record]:
    """All variants of a case, told as they come; the first should be the published loop.

    Raises:
        UnlikeError: `full`, `cut` and `segment` end in different losses.
    """
    records: list[Record] = []
    before: dict[str, AttackOutcome] = {}
    for variant in variants:
        found = run(measure, case, variant, device)
        record = record_of(found, before, case)
        before[variant] = found.best
        records.append(record)
        progress(row(record))
    agreed(records, TOLERANCE[case.dtype])
    return records


def depth_records(device: str, depths: Sequence[int] = DEPTHS) -> list[Record]:
    """A training step with the same segment in models of different depths."""
    found = step_seconds(depths, device)
    return [
        {
            "case": "depth",
            "variant": f"{depth} blocks",
            "seconds": seconds,
            "step_seconds": seconds,
            "samples_per_second": case_of(depth).batch / seconds,
            "peak_bytes": None,
            "ratio_to_published": None,
        }
        for depth, seconds in found.items()
    ]


def larger_records(device: str, run: Run = alone, case: Case = LARGER) -> list[Record]:
    """A model edited whole, and within half of its own size."""
    records: list[Record] = []
    for variant, share in (("whole", None), ("half", 0.5)):
        found = run(fitted, case, share, device)
        records.append(
            {
                "case": case.name,
                "variant": variant,
                "seconds": found.seconds,
                "samples_per_second": case.rounds * case.epochs * case.prompts / found.seconds,
                "peak_bytes": found.peak,
                "ratio_to_published": None,
                "weight_bytes": found.weights,
                "limit_bytes": found.limit,
            }
        )
    return records


def targets_of(records: Sequence[Record]) -> Iterator[Target]:
    """What the figures are to reach."""
    by = {(r["case"], r["variant"]): r for r in records}
    if deep := by.get(("deep", "segment")):
        yield Target("deep: segment against published", deep["ratio_to_published"], 25)
        yield Target("deep: segment against full", deep["ratio_to_full"], 4)
    if half := by.get(("larger", "half")):
        share = half["peak_bytes"] / half["limit_bytes"]
        yield Target("a model twice its limit: peak over the limit", share, 1, higher=False)
    shallow, far = by.get(("depth", "16 blocks")), by.get(("depth", "64 blocks"))
    if shallow and far:
        times = far["seconds"] / shallow["seconds"]
        yield Target("a step of 64 blocks against 16", times, 1.1, higher=False)


def main(words: Sequence[str] | None = None) -> None:
    """Parse the options, measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [*(case.name for case in CASES), "depth", LARGER.name]
    parser.add_argument("--only", default="", help=f"of {', '.join(names)}")
    parser.add_argument("--out", type=Path, default=Path("build/bench.json"))
    options = parser.parse_args(words)
    only = [name for name in options.only.split(",") if name] or names
    if unknown := [name for name in only if name not in names]:
        parser.error(f"--only: there is no {unknown[0]}; there are {', '.join(names)}")
    where, records, notes = machine("cpu"), [], []
    print(described(where))
    print(HEAD)
    for case in CASES:
        if case.name in only:
            found = records_of(case, "cpu")
            records += found
            notes.append(agreed(found, TOLERANCE[case.dtype]))
    if "depth" in only:
        steps = depth_records("cpu")
        print(*map(row, steps), sep="\n")
        records += steps
    if LARGER.name in only:
        fits = larger_records("cpu")
        print(*map(row, fits), sep="\n")
        records += fits
    print("\n(In brackets: a training step.)", *notes, "", sep="\n")
    targets = list(targets_of(records))
    print_targets(targets)
    write(options.out, where, records, targets)
    print(f"\nWritten to {options.out}.")


if __name__ == "__main__":
    main()
