"""How fast the edit is on one GPU, with random models of 7 and 14 billion parameters in bf16.

    python -m benchmarks.speed_gpu [--device cuda] [--only llama-7b,qwen-14b,log] [--small]

For each model the table of `benchmarks.speed`; then training steps of the segment at rising sizes
of batch, as a share of the measured rate of a product of two 8192 x 8192 matrices, and their peak
memory beside what they cannot do without (`benchmarks/utilisation.py`). At last the work of the log
in the published repository: 256 prompts and 100 to test, 36 rounds of two epochs, discriminators of
30 epochs, LoRA on the up and down projections of blocks 9 to 13, blocks 10 to 14 read. What the
published loop would take for it is scaled from its rounds in the table.

`--small` runs the same on tiny models, which shows that it runs and nothing else.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.figures import HEAD, TOLERANCE, Record, Target, agreed, print_targets, write
from benchmarks.machine import described, machine
from benchmarks.speed import alone, here, records_of
from benchmarks.utilisation import Load, sweep
from benchmarks.workload import Case, llama, middle

LOG_ROUNDS, LOG_SECONDS = 36, 34 * 60  # of the published repository's log, on the authors' GPU
BLOCKS, NUM_READ = (9, 10, 11, 12, 13), (10, 11, 12, 13, 14)
MLP = ("up_proj", "down_proj")
QWEN: dict[str, Any] = {
    **llama(32, 6144, 16384, 152064, 48),
    "model_type": "qwen2",
    "num_key_value_heads": 8,
}
CASES = (
    Case(
        "llama-7b",
        BLOCKS,
        NUM_READ,
        llama(32, 4096, 11008, 32000, 32),
        prompts=256,
        tests=100,
        batch=64,
        rounds=2,
        modules=MLP,
        dtype="bfloat16",
    ),
    Case(
        "qwen-14b",
        middle(32),
        middle(32),
        QWEN,
        prompts=256,
        tests=100,
        batch=64,
        rounds=2,
        modules=MLP,
        dtype="bfloat16",
    ),
)
BATCHES, MATRIX = (16, 32, 64, 128, 256, 512, 1024, 2048), 8192
SWEEP = (
    "| case | batch | tokens | a step, s | samples/s | TFLOP/s | of the matrix rate | peak, GB "
    "| needed, GB |\n|---|---|---|---|---|---|---|---|---|"
)


def small(case: Case) -> Case:
    """A tiny model and little work in the place of a case."""
    model = {**case.model, **llama(4, 64, 128, 128, 4)}
    tiny = replace(case, name=f"small-{case.name}", model=model, layers=(1, 2), read_layers=(1, 2))
    return replace(tiny, prompts=8, tests=4, batch=4, discriminator_epochs=2, dtype="float32")


def log_of(case: Case) -> Case:
    """The work of the published repository's log on the model of a case."""
    return replace(case, name=f"{case.name}-log", rounds=LOG_ROUNDS)


def load_record(case: Case, load: Load) -> Record:
    """The record of a training step at one size of batch."""
    return {
        "case": case.name,
        "variant": f"step of {load.batch}",
        "samples_per_second": load.batch / load.seconds,
        "ratio_to_published": None,
        **asdict(load),
    }


def load_row(record: Record) -> str:
    """A row of the table of training steps."""
    rate = record["flops"] / record["seconds"] / 1e12
    points = [
        record["case"],
        str(record["batch"]),
        str(record["tokens"]),
        f"{record['seconds']:.4f}",
        f"{record['samples_per_second']:.0f}",
        f"{rate:.3g}",
        f"{record['used']:.1%}",
        f"{record['peak_bytes'] / 1e9:.3f}",
        f"{record['needed_bytes'] / 1e9:.3f}",
    ]
    return f"| {' | '.join(points)} |"


def targets_of(records: Sequence[Record], log: str) -> Iterator[Target]:
    """What the figures are to reach."""
    for name in dict.fromkeys(r["case"] for r in records):
        steps = [r for r in records if r["case"] == name and "used" in r]
        if steps:
            # The batch that the card is used best at, so that both figures are of one step.
            best = max(steps, key=lambda r: r["used"])
            share = best["peak_bytes"] / best["needed_bytes"]
            yield Target(f"{name}: peak over what is needed", share, 1.25, higher=False)
        for one in records:
            if one["case"] == name == log and one["variant"] == "segment":
                yield Target("the log's work, s", one["seconds"], 45, higher=False)


def compared(record: Record, tables: Sequence[Record], name: str) -> str:
    """The log's work in a sentence, beside the published loop's, scaled from its rounds."""
    words = f"The log's work: {record['seconds']:.1f} s; its authors took about {LOG_SECONDS} s"
    for one in tables:
        if one["case"] == name and one["variant"] == "published":
            scaled = one["once_seconds"] + LOG_ROUNDS * one["round_seconds"]
            words += f"; the published loop here about {scaled:.0f} s (scaled from its rounds)"
    return f"{words}."


def main(words: Sequence[str] | None = None) -> None:
    """Parse the options, measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [*(case.name for case in CASES), "log"]
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny models")
    parser.add_argument("--only", default="", help=f"of {', '.join(names)}")
    parser.add_argument("--out", type=Path, default=Path("build/bench_gpu.json"))
    options = parser.parse_args(words)
    only = [name for name in options.only.split(",") if name] or names
    if unknown := [name for name in only if name not in names]:
        parser.error(f"--only: there is no {unknown[0]}; there are {', '.join(names)}")
    # Tiny models need no processes of their own: starting one takes longer than all the work.
    run = here if options.small else alone
    where, device = machine(options.device), options.device
    print(described(where))
    cases = {case.name: small(case) if options.small else case for case in CASES}
    chosen = [case for name, case in cases.items() if name in only]
    records: list[Record] = []
    print(HEAD)
    notes = []
    for case in chosen:
        found = records_of(case, device, run)
        records += found
        notes.append(agreed(found, TOLERANCE[case.dtype]))
    tables = list(records)
    print("\n(In brackets: a training step.)", *notes, "", sep="\n")
    print(SWEEP)
    for case in chosen:
        batches, matrix = ((4, 8), 256) if options.small else (BATCHES, MATRIX)
        for load in run(sweep, case, device, batches, matrix):
            records.append(load_record(case, load))
            print(load_row(records[-1]))
    print()
    log = log_of(cases["llama-7b"])
    if "log" in only:
        print(HEAD)
        records += records_of(log, device, run, ["segment"])
        print(compared(records[-1], tables, cases["llama-7b"].name))
    targets = list(targets_of(records, log.name))
    print_targets(targets)
    write(options.out, where, records, targets)
    print(f"\nWritten to {options.out}.")


if __name__ == "__main__":
    main()
