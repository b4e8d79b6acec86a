"""Measure the time and memory of a check of many examples, as `retouch concept check` makes it.

    python -m benchmarks.data_files [--examples 200000] [--only jsonl,csv]

The command runs on a file of source and target prompts with responses, in pairs: it reads, checks,
splits, hashes and validates them. Seconds are those of the whole command by the clock and, more
reliable on a busy machine, by the processor. The memory is the command's peak, and at least that of
this process before it started the command.
"""

from __future__ import annotations

import csv
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import (
    SEED,
    Target,
    argument_parser,
    describe_machine,
    finish,
    machine_text,
    parse_names,
    retouch_command,
)

SECONDS, GIB = 10.0, 1.0
HEADER = "| format | examples | MiB | s | s of the processor | peak, MiB |\n" + "|---" * 6 + "|"
WORDS = ("how", "do", "I", "pick", "open", "close", "repair", "the", "old", "lock", "door", "box")


def rows(count: int) -> Iterator[dict[str, Any]]:
    """Half source and half target examples, in pairs, with prompts of about twelve words."""
    rng = random.Random(SEED)
    for number in range(count):
        pair, target = divmod(number, 2)
        words = " ".join(rng.choices(WORDS, k=12))
        yield {
            "prompt": f"{words} {pair}{'?' if target else ', as Rex'}",
            "label": "positive" if target else "negative",
            "response": " ".join(rng.choices(WORDS, k=20)),
            "pair": pair,
        }


def write_jsonl(path: Path, count: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows(count))


def write_json(path: Path, count: int) -> None:
    path.write_text(json.dumps(list(rows(count))), "utf-8")


def write_csv(path: Path, count: int) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ("prompt", "label", "response", "pair"))
        writer.writeheader()
        writer.writerows(rows(count))


def write_messages(path: Path, count: int) -> None:
    """The same as OpenAI's messages with a label."""
    with path.open("w", encoding="utf-8") as file:
        for row in rows(count):
            turns = [
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": row["response"]},
            ]
            one = {"messages": turns, "label": row["label"], "pair": row["pair"]}
            file.write(json.dumps(one) + "\n")


WRITERS: dict[str, tuple[str, Callable[[Path, int], None]]] = {
    "jsonl": (".jsonl", write_jsonl),
    "json": (".json", write_json),
    "csv": (".csv", write_csv),
    "messages": (".jsonl", write_messages),
}


def check(path: Path) -> dict[str, float]:
    """Check a file: seconds by the clock and by the processor, and bytes at the peak."""
    began = time.perf_counter()
    process = subprocess.Popen(
        retouch_command("concept", "check", str(path)), stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    output = process.stdout.read()
    process.stdout.close()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, output
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "seconds": time.perf_counter() - began,
        "processor_seconds": usage.ru_utime + usage.ru_stime,
        "peak_bytes": usage.ru_maxrss * unit,
    }


def main(words: Sequence[str] | None = None) -> None:
    """Parse the options, measure, print and write."""
    parser = argument_parser(__doc__)
    parser.add_argument("--examples", type=int, default=200_000)
    parser.add_argument("--only", default="", help="formats, separated by commas")
    parser.add_argument("--out", type=Path, default=Path("build/data_files.json"))
    options = parser.parse_args(words)
    if options.examples < 100:
        parser.error(f"--examples must be at least 100, got {options.examples}.")
    names = parse_names(parser, "--only", options.only, list(WRITERS)) or list(WRITERS)
    machine = describe_machine("cpu")
    print(machine_text(machine))
    print(HEADER)
    records = []
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            suffix, write = WRITERS[name]
            path = Path(folder) / f"{name}{suffix}"
            write(path, options.examples)
            found = check(path)
            size = path.stat().st_size
            records.append({"format": name, "examples": options.examples, "bytes": size, **found})
            print(
                f"| {name} | {options.examples} | {size / 2**20:.0f} | {found['seconds']:.1f} "
                f"| {found['processor_seconds']:.1f} | {found['peak_bytes'] / 2**20:.0f} |",
                flush=True,
            )
    targets = [
        target
        for one in records
        for target in (
            Target(f"{one['format']}: seconds", one["seconds"], SECONDS, higher=False),
            Target(f"{one['format']}: GiB", one["peak_bytes"] / 2**30, GIB, higher=False),
        )
    ]
    finish(options.out, machine, records, targets)


if __name__ == "__main__":
    main()
