"""Runs that the benchmarks rest on: made by the command that a user would type, once, and kept."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from retouch.core.run_dir import RunDir


def command(*words: str) -> list[str]:
    """A `retouch` command of this interpreter."""
    return [sys.executable, "-c", "from retouch.cli.app import main; main()", *words]


def edited(
    path: Path,
    concept: str,
    direction: str,
    options: Mapping[str, Any],
    *,
    model: str = "pocket",
    measure: str = "own",
) -> RunDir:
    """The run of an edit, measured on the test split; made unless it is finished."""
    if not (path.exists() and RunDir.open(path).finished):
        shutil.rmtree(path, ignore_errors=True)
        words = ["edit", model, "--concept", concept, "--direction", direction]
        words += [w for key, value in options.items() for w in (f"--{key}", str(value))]
        words += ["--measure", measure, "--measure-rows", "0", "--quiet", "--out", str(path)]
        subprocess.run(command(*words), check=True, stdout=subprocess.DEVNULL)
        print(f"made {path}", file=sys.stderr, flush=True)
    return RunDir.open(path)


def told(file: Path, *words: str) -> Any:
    """What a command prints with --json, kept in a file and not asked again."""
    if not file.exists():
        done = subprocess.run(command(*words, "--json"), check=True, stdout=subprocess.PIPE)
        file.write_bytes(done.stdout)
        print(f"made {file}", file=sys.stderr, flush=True)
    return json.loads(file.read_text("utf-8"))
