"""Kill edits (SIGKILL) at random moments, resume them, and compare them with one that was not.

    python -m benchmarks.resume [--kills 20] [--out runs/resume]

Adapters and discriminators are compared byte by byte, rounds without their seconds.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.runs import command
from retouch.core.run_dir import RunDir


def killed(out: Path, kills: int) -> str:
    """Kill edits at random moments, resume them, and compare the adapters byte by byte."""
    words = ["edit", "pocket", "--measure", "nothing", "--labels", "32", "--retain", "32"]
    words += ["--quiet", "--out"]  # fewer rows than by default, so that twenty take minutes
    whole = out / "whole"
    shutil.rmtree(out, ignore_errors=True)
    began = time.monotonic()
    subprocess.run(command(*words, str(whole)), check=True, stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - began
    rng, same = random.Random(0), 0
    for number in range(kills):
        path = out / f"run{number}"
        process = subprocess.Popen(command(*words, str(path)), stdout=subprocess.DEVNULL)
        at = rng.uniform(0.15, 0.98) * seconds
        try:
            process.wait(at)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        if not (path / "config.yaml").exists():
            resumed = command(*words, str(path))  # killed before anything was written
        else:
            resumed = command("edit", "--resume", str(path), "--quiet")
        rounds = len(RunDir.open(path).events()) if (path / "config.yaml").exists() else 0
        subprocess.run(resumed, check=True, stdout=subprocess.DEVNULL)
        equal = _files(path) == _files(whole)
        same += equal
        print(
            f"killed at {at:.1f} s after {rounds} rounds: "
            f"{'bit-identical' if equal else 'DIFFERENT'}",
            file=sys.stderr,
            flush=True,
        )
    return f"Killed at random moments and resumed: {same} of {kills} bit-identical (target: all)."


def _files(run: Path) -> dict[str, Any]:
    """The adapter and the discriminators as bytes, and the rounds without their seconds.

    The checkpoint is left out: its header keeps its entries in no fixed order.
    """
    files: dict[str, Any] = {
        str(file.relative_to(run)): file.read_bytes()
        for folder in ("adapter", "discriminator")
        for file in (run / folder).rglob("*.safetensors")
    }
    lines = (run / "events.jsonl").read_text("utf-8").splitlines()
    files["events"] = [{**json.loads(line), "seconds": 0} for line in lines]
    return files


def main() -> None:
    """Parse the options and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("runs/resume"))
    options = parser.parse_args()
    print(killed(options.out, options.kills))


if __name__ == "__main__":
    main()
