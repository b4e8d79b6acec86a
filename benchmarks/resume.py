"""Kill edits at random moments, resume them, and compare them with an uninterrupted one.

    python -m benchmarks.resume [--kills 20] [--out runs/resume]

The kill is SIGKILL. Adapters and discriminators are compared byte by byte, and the events of the
rounds without their timings. The exit code is 1 where a run differs.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import SEED, argument_parser, retouch_command
from retouch.core.run_dir import RunDir

# Fewer examples than by default, so that twenty edits take minutes.
EDIT = ("edit", "pocket", "--suites", "none", "--num-examples", "32", "--num-retain", "32")
KILL_RANGE = (0.15, 0.98)  # of the duration of the uninterrupted edit


def count_identical(out: Path, kills: int) -> int:
    """Kill and resume edits; the number of those that end like the uninterrupted one."""
    shutil.rmtree(out, ignore_errors=True)
    whole = out / "whole"
    began = time.monotonic()
    _run(*EDIT, "--quiet", "--out", str(whole))
    duration = time.monotonic() - began
    rng, identical = random.Random(SEED), 0
    for number in range(kills):
        path = out / f"run{number}"
        seconds = rng.uniform(*KILL_RANGE) * duration
        _kill_after(seconds, *EDIT, "--quiet", "--out", str(path))
        rounds = 0
        if (path / "config.yaml").exists():
            rounds = len(RunDir.open(path).events())
            _run("edit", "--resume", str(path), "--quiet")
        else:  # killed before anything was written
            _run(*EDIT, "--quiet", "--out", str(path))
        same = contents(path) == contents(whole)
        identical += same
        print(
            f"killed after {seconds:.1f} s and {rounds} rounds: "
            f"{'bit-identical' if same else 'DIFFERENT'}",
            file=sys.stderr,
            flush=True,
        )
    return identical


def _run(*words: str) -> None:
    subprocess.run(retouch_command(*words), check=True, stdout=subprocess.DEVNULL)


def _kill_after(seconds: float, *words: str) -> None:
    process = subprocess.Popen(retouch_command(*words), stdout=subprocess.DEVNULL)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()


def contents(run: Path) -> dict[str, Any]:
    """Adapter and discriminators as bytes, and the events of the rounds without their timings.

    The checkpoint is left out: the order of its header's entries is not fixed.
    """
    files: dict[str, Any] = {
        str(file.relative_to(run)): file.read_bytes()
        for folder in ("adapter", "discriminator")
        for file in (run / folder).rglob("*.safetensors")
    }
    lines = (run / "events.jsonl").read_text("utf-8").splitlines()
    files["events"] = [{**json.loads(line), "seconds": 0} for line in lines]
    return files


def main(words: Sequence[str] | None = None) -> int:
    """Parse the options, run and print; the exit code."""
    parser = argument_parser(__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("runs/resume"))
    options = parser.parse_args(words)
    identical = count_identical(options.out, options.kills)
    print(f"{identical} of {options.kills} killed and resumed edits are bit-identical.")
    return 0 if identical == options.kills else 1


if __name__ == "__main__":
    sys.exit(main())
