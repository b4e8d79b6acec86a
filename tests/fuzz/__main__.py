"""Run the cases: `python -m fuzz --cases 5000`, with `tests` on the path, as `make fuzz` does.

Prints, for each kind of input, how many were tried, how many ended in a traceback or a signal, how
many hung, and how many were accepted though they are invalid. The exit code is 1 if any was.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fuzz.cases import KINDS, Case, cases
from fuzz.originals import Originals, make_originals
from fuzz.sandbox import (
    SECONDS,
    TAIL,
    Finished,
    give_away,
    make_folder,
    run_command,
    start_server,
)
from helpers.forked_cli import ForkServer

FAULTS = ("traceback", "hang", "accepted")


def fault(case: Case, finished: Finished) -> str:
    """What is wrong with the way a command ended; empty where it is right."""
    if finished.hung:
        return "hang"
    if finished.crashed or not (finished.output.strip() or finished.exit_code == 0):
        return "traceback"
    return "accepted" if case.invalid and finished.exit_code == 0 else ""


def run_case(server: ForkServer, case: Case, folder: Path) -> Finished:
    """Make the files of a case and run its command."""
    make_folder(folder)
    for name, content in case.files.items():
        file = folder / name
        for parent in reversed(file.relative_to(folder).parents):
            if not (folder / parent).exists():
                (folder / parent).mkdir()
                give_away(folder / parent)
        file.write_bytes(content)
        give_away(file)
    if case.prepare is not None:
        case.prepare(folder)
    words = [word.replace("{here}", str(folder)) for word in case.words]
    return run_command(server, words, folder)


def _work(
    worker: int, workers: int, count: int, seed: int, originals: Originals, out: Path
) -> list[dict[str, Any]]:
    """Run every `workers`-th case; a record of each."""
    started, records = time.monotonic(), []
    with start_server(out / f"output-{worker}") as server:
        chosen = itertools.islice(cases(seed, originals), worker, count, workers)
        for number, case in enumerate(chosen):
            finished = run_case(server, case, out / f"case-{worker}")
            record = {"kind": case.kind, "fault": fault(case, finished)}
            if record["fault"]:
                index = worker + number * workers
                record |= {"case": index, "words": case.words, "output": finished.output[-TAIL:]}
            records.append(record)
            if worker == 0 and number % 50 == 49:
                done = (number + 1) * workers
                left = (time.monotonic() - started) * (count - done) / done
                print(f"{done} of {count}, {left / 60:.1f} min left", file=sys.stderr, flush=True)
    return records


def main(words: Sequence[str] | None = None) -> int:
    """Run the cases and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="one case, by its number; its output is printed")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as name:
        out = Path(name)
        out.chmod(0o755)
        originals = make_originals(out / "originals")
        if options.only is not None:
            case = next(itertools.islice(cases(options.seed, originals), options.only, None))
            print(case.kind, *case.words)
            with start_server(out / "output") as server:
                finished = run_case(server, case, out / "case")
            print(finished.output, fault(case, finished) or "no fault", finished.exit_code)
            return 0
        arguments = (options.workers, options.cases, options.seed, originals, out)
        with ThreadPoolExecutor(options.workers) as pool:
            found = pool.map(lambda worker: _work(worker, *arguments), range(options.workers))
            records = [record for one in found for record in one]
    return report(records)


def report(records: Sequence[dict[str, Any]]) -> int:
    """Print the faults, then the table; 1 if there is a fault."""
    for record in records:
        if record["fault"]:
            print(f"\ncase {record['case']}, {record['kind']}, {record['fault']}:")
            print(" ".join(str(word)[:200] for word in record["words"]))
            print(record["output"])
    counts = Counter((record["kind"], record["fault"]) for record in records)
    print(f"\n{'input':20} {'tried':>6}" + "".join(f"{one:>11}" for one in FAULTS))
    for kind in dict.fromkeys([*(record["kind"] for record in records)]):
        tried = sum(n for (name, _), n in counts.items() if name == kind)
        print(f"{kind:20} {tried:>6}" + "".join(f"{counts[kind, one]:>11}" for one in FAULTS))
    total = [sum(counts[kind, one] for kind in {k for k, _ in counts}) for one in FAULTS]
    print(f"{'all':20} {len(records):>6}" + "".join(f"{one:>11}" for one in total))
    print(f"A command that takes more than {SECONDS} s hangs. Kinds: {len(KINDS)}.")
    return int(any(total))


if __name__ == "__main__":
    sys.exit(main())
