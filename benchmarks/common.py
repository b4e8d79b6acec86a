"""Shared by the benchmarks: commands, the machine, memory, targets, and synthetic workloads."""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import torch

from retouch.concepts.chat import TokenizedChat
from retouch.core.config import (
    DiscriminatorConfig,
    LoadConfig,
    LoraConfig,
    LossConfig,
    MethodConfig,
    TrainConfig,
)
from retouch.core.run_dir import RunDir
from retouch.models.adapters import attach
from retouch.models.editable_model import EditableModel
from retouch.models.layout import find_layout
from retouch.models.load import load
from retouch.models.segment import Segment
from retouch.representations.batch import make_batches
from retouch.task.examples import EditExamples
from retouch.task.validation import ValidationResult
from retouch.training.context import TrainingContext
from retouch.training.dataset import EditDataset
from retouch.training.trainer import Trainer

SEED = 0
PROMPT_TOKENS = (24, 36)  # the range of a synthetic prompt's length
FIRST_TOKEN = 8  # below it: padding, and the tokens that the prompts of the two classes end in
STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")

Result = TypeVar("Result")


# --- command lines ---------------------------------------------------------------------------


def argument_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser whose help shows the module's docstring as it is written."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def parse_names(
    parser: argparse.ArgumentParser, flag: str, text: str, known: Sequence[str]
) -> list[str]:
    """The names in a comma-separated option; one that is unknown ends the program."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in known]
    if unknown:
        parser.error(f"{flag} must be of {', '.join(known)}; got {unknown[0]!r}.")
    return names


def retouch_command(*words: str) -> list[str]:
    """The argument list of a `retouch` command under this interpreter."""
    return [sys.executable, "-m", "retouch", *words]


def edit_run(
    path: Path,
    concept: str,
    direction: str,
    options: Mapping[str, Any],
    *,
    model: str = "pocket",
    suites: str = "concept",
) -> RunDir:
    """The run of `retouch edit` at `path`, measured on whole test splits.

    A finished run is reused.

    Args:
        path: the run directory.
        concept: the concept to edit.
        direction: `raise` or `lower`.
        options: further options by their names without the dashes.
        model: the model to edit.
        suites: what is measured.
    """
    if not (path.exists() and RunDir.open(path).finished):
        shutil.rmtree(path, ignore_errors=True)
        words = ["edit", model, "--concept", concept, "--direction", direction]
        words += [word for key, value in options.items() for word in (f"--{key}", str(value))]
        words += ["--suites", suites, "--limit", "0", "--quiet", "--out", str(path)]
        subprocess.run(retouch_command(*words), check=True, stdout=subprocess.DEVNULL)
        print(f"wrote {path}", file=sys.stderr, flush=True)
    return RunDir.open(path)


def command_json(file: Path, *words: str) -> Any:
    """The output of a command with `--json`, stored in a file and reused if the file exists."""
    if not file.exists():
        command = retouch_command(*words, "--json")
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
        file.write_bytes(done.stdout)
        print(f"wrote {file}", file=sys.stderr, flush=True)
    return json.loads(file.read_text("utf-8"))


class Isolation:
    """How a piece of work runs: in a new process, or in this one."""

    @staticmethod
    def new_process(work: Callable[..., Result], *arguments: Any) -> Result:
        """Run it in a new process, whose memory no other work has touched."""
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            return pool.submit(work, *arguments).result()

    @staticmethod
    def this_process(work: Callable[..., Result], *arguments: Any) -> Result:
        """Run it in this process."""
        return work(*arguments)
