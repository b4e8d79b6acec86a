"""Shared by the benchmarks: commands, the machine, memory, targets, and synthetic workloads."""

from __future__ import annotations

import argparse
import ctypes
import gc
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
from retouch.representations.packing import Packer
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


def measurement_parser(description: str | None, out: str) -> argparse.ArgumentParser:
    """The parser of a benchmark that measures cases on a device and writes JSON to `out`."""
    parser = argument_parser(description)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--small", action="store_true", help="tiny models, in one process")
    parser.add_argument("--only", default="", help="cases, separated by commas")
    parser.add_argument("--out", type=Path, default=Path(out))
    return parser


def add_load_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that `load_config` reads."""
    parser.add_argument("--device", default="auto", help="cpu, cuda or cuda:N")
    parser.add_argument("--dtype", default="auto", help="float32 or bfloat16, of the weights")


def load_config(options: argparse.Namespace) -> LoadConfig:
    """How a benchmark of a real model loads it."""
    return LoadConfig(device=options.device, dtype=options.dtype)


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


def in_new_process(work: Callable[..., Result], *arguments: Any) -> Result:
    """Run `work` in a new process, whose memory no other work has touched."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def in_this_process(work: Callable[..., Result], *arguments: Any) -> Result:
    """Run `work` in this process."""
    return work(*arguments)


# --- the machine, time and memory ------------------------------------------------------------


def describe_machine(device: str) -> dict[str, Any]:
    """Processor, cores, threads, load, GPU and torch version of this machine.

    Args:
        device: the one that is measured, or `auto`.
    """
    uses_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text("utf-8").splitlines() if "model name" in line]
        cpu = lines[0].partition(":")[2].strip() if lines else cpu
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "gpu": torch.cuda.get_device_name() if uses_gpu else None,
        "torch": torch.__version__,
    }


def machine_text(machine: Mapping[str, Any]) -> str:
    """The machine in a sentence, with a warning if it was busy before the benchmark began."""
    values = ", ".join(f"{key} {value}" for key, value in machine.items() if value is not None)
    busy = machine["load"] is not None and machine["load"] > 0.5
    warning = "\nWarning: the machine is busy; timings are not reliable." if busy else ""
    return f"Measured on {values}.{warning}\n"


class Clock:
    """Measures time between laps, each after the device has finished its work."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._last, self._cpu_began = self._now(), time.process_time()

    def _now(self) -> float:
        if self._cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last lap."""
        before, self._last = self._last, self._now()
        return self._last - before

    def cpu(self) -> float:
        """Seconds of processor time, over all threads, since the clock was created."""
        return time.process_time() - self._cpu_began


def matrix_rate(device: str, dtype: str, size: int) -> float:
    """Operations per second of a square matrix product; the fastest of five measurements."""
    place = torch.device(device)
    a, b = (torch.randn(size, size, device=place, dtype=getattr(torch, dtype)) for _ in range(2))
    best = float("inf")
    for _ in range(6):
        clock = Clock(place)
        for _ in range(4):
            a @ b
        best = min(best, clock.lap() / 4)
    return 2 * size**3 / best


class PeakMemory:
    """A context that measures the peak memory of its body, less the memory in use at its start.

    On a CPU this is the resident set of the process, libraries included; weights that were loaded
    before are not counted. Linux allows a process to reset its high-water mark. On other systems
    the value is the increase of the mark, which is too low if an earlier peak was higher. On CUDA
    it is the memory that torch allocates.

    Attributes:
        bytes: the peak, once the context has ended.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda, self.bytes, self._before = device.type == "cuda", 0, 0

    def __enter__(self) -> PeakMemory:
        _release_free_memory()
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
        else:
            self._before = reset_high_water_mark() or _high_water_mark()
        return self

    def __exit__(self, *_: object) -> None:
        after = torch.cuda.max_memory_allocated() if self._cuda else _high_water_mark()
        self.bytes = max(0, after - self._before)


def _release_free_memory() -> None:
    """Free cycles, and return what the allocator keeps: either would hide what a body adds."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:  # glibc's
        trim(0)


def reset_high_water_mark() -> int:
    """Reset the mark to the resident set; its bytes, or 0 where the system does not allow it."""
    try:
        CLEAR_REFS.write_text("5")
    except OSError:
        return 0
    return _status_bytes("VmRSS")


def _high_water_mark() -> int:
    # Linux's own count comes first: `ru_maxrss` includes the parent's memory when it forked.
    if STATUS.exists():
        return _status_bytes("VmHWM")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _status_bytes(name: str) -> int:
    lines = STATUS.read_text("ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


# --- results ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """A measured value beside its threshold.

    Attributes:
        name: of the value.
        value: as measured.
        threshold: the value to reach.
        higher: whether higher values are better.
    """

    name: str
    value: float
    threshold: float
    higher: bool = True

    @property
    def met(self) -> bool:
        """Whether the threshold is reached."""
        return self.value >= self.threshold if self.higher else self.value <= self.threshold

    def row(self) -> str:
        """A row of the table."""
        sign, met = "≥" if self.higher else "≤", "yes" if self.met else "NO"
        return f"| {self.name} | {self.value:.3g} | {sign} {self.threshold:g} | {met} |"


def finish(
    out: Path,
    machine: Mapping[str, Any],
    records: Sequence[Mapping[str, Any]],
    targets: Sequence[Target],
) -> None:
    """Print the targets, if there are any, and write everything as JSON."""
    if targets:
        print("\n| value | measured | target | met |\n|---|---|---|---|")
        print(*(target.row() for target in targets), sep="\n")
    plain = [{**vars(target), "met": target.met} for target in targets]
    values = {"machine": dict(machine), "records": list(records), "targets": plain}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(values, indent=1) + "\n", "utf-8")
    print(f"\nWritten to {out}.")


# --- synthetic workloads ---------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A model and an amount of work, the same for all variants of a benchmark.

    Attributes:
        name: its name in the tables.
        layers: the layers that get adapters, 0-based.
        read_layers: the layers that the discriminators read.
        model: the configuration of a random model; empty: the built-in one.
        prompts: training prompts, half of them of each class.
        tests: prompts that the discriminators are tested on after each round.
        batch_size: prompts per training step; the original loop takes one.
        rounds: training rounds.
        epochs: passes over the prompts per round.
        discriminator_epochs: passes of a discriminator over the states, in batches of 64.
        target_modules: suffixes of the names of the adapted linear layers.
        dtype: the dtype of the frozen weights.
    """

    name: str
    layers: tuple[int, ...]
    read_layers: tuple[int, ...]
    model: dict[str, Any] = field(default_factory=dict)
    prompts: int = 64
    tests: int = 32
    batch_size: int = 32
    rounds: int = 3
    epochs: int = 2
    discriminator_epochs: int = 30
    target_modules: tuple[str, ...] = ("q_proj", "v_proj")
    dtype: str = "float32"

    @property
    def steps(self) -> int:
        """Training steps per round of the batched variants."""
        return self.epochs * -(-self.prompts // self.batch_size)

    @property
    def method(self) -> MethodConfig:
        """The original loop's settings and amount of work, for the library's trainer.

        The adversarial loss at the last prompt token, no pairs, no responses and no retain set;
        new discriminators in each round, with as many steps of the same size.
        """
        discriminator_steps = self.discriminator_epochs * -(-self.prompts // 64)
        return MethodConfig(
            lora=LoraConfig(target_modules=self.target_modules, r=8, lora_alpha=8.0),
            train=TrainConfig(
                rounds=self.rounds,
                patience=self.rounds + 1,
                steps_per_round=self.steps,
                batch_size=self.batch_size,
                learning_rate=1e-3,
            ),
            loss=LossConfig(matching_weight=0.0),
            discriminator=DiscriminatorConfig(
                positions=1,
                hidden_size=512,
                learning_rate=1e-3,
                reset_each_round=True,
                warmup_steps=discriminator_steps,
                steps_per_round=discriminator_steps,
            ),
        )

    def load(self, device: str) -> EditableModel:
        """The model on the device, frozen and without an adapter."""
        if self.model:
            return random_model(self.model, device, self.dtype)
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()  # it would appear between the rows of the table
        return load("pocket", LoadConfig(device=device, dtype=self.dtype))


@dataclass(frozen=True)
class Prompts:
    """The prompts of a case, each followed by one response token that is not trained on.

    Attributes:
        source: the class that is moved.
        target: the class that it is moved towards.
        tests: source and target prompts that the discriminators are tested on.
    """

    source: list[TokenizedChat]
    target: list[TokenizedChat]
    tests: tuple[list[TokenizedChat], list[TokenizedChat]]

    @property
    def trained(self) -> list[TokenizedChat]:
        """All training prompts: the original loop trains on both classes."""
        return [*self.source, *self.target]


def sample_prompts(case: Case, vocabulary: int) -> Prompts:
    """Random prompts of a case; the last token tells the classes apart."""
    rng = random.Random(case.name)

    def sample(count: int, last: int) -> list[TokenizedChat]:
        chats = []
        for _ in range(count):
            length = rng.randint(*PROMPT_TOKENS)
            ids = [rng.randrange(FIRST_TOKEN, vocabulary) for _ in range(length - 1)]
            # Discriminators read the states that predict a response, so one token of it follows.
            chats.append(TokenizedChat((*ids, last, 1), length))
        return chats

    half, tested = case.prompts // 2, case.tests // 2
    tests = (sample(tested, 2), sample(tested, 3))
    return Prompts(sample(case.prompts - half, 2), sample(half, 3), tests)


def case_prompts(case: Case, editable: EditableModel) -> Prompts:
    """The prompts of a case in the vocabulary of its model."""
    return sample_prompts(case, editable.model.config.vocab_size)


def examples_of(source: list[TokenizedChat], target: list[TokenizedChat]) -> EditExamples:
    """Prompts as the examples of a training, without pairs and without a retain set."""
    return EditExamples(source, (), target, (), ())


def build_case_trainer(
    editable: EditableModel, case: Case, prompts: Prompts, kind: type[Segment] = Segment
) -> Trainer:
    """A trainer of a case, with `kind` in the place of the segment; the adapter is attached."""
    layers = (*case.layers, *case.read_layers)
    segment = kind(editable, min(layers), max(layers))
    packer = Packer(editable, packed=False)
    context = TrainingContext(editable, segment, case.read_layers, case.method, SEED, packer)
    dataset = EditDataset(context, examples_of(prompts.trained, prompts.target))
    # As in the original loop, the test prompts are run after each round; nothing is validated.
    chats = [*prompts.tests[0], *prompts.tests[1]]
    batches = make_batches(chats, case.batch_size, context.pad)
    tests = [segment.capture_inputs(batch.ids) for batch in batches]

    @torch.no_grad()
    def run_tests(_: Segment | None) -> ValidationResult:
        for inputs in tests:
            segment.forward(inputs, case.read_layers)
        return ValidationResult(0.0, 0.0)

    attach(editable, case.layers, case.method.lora, SEED)
    return Trainer(context, dataset, run_tests)


def random_model(options: Mapping[str, Any], device: str, dtype: str) -> EditableModel:
    """A seeded random decoder, created on its device; a Llama unless `model_type` is given."""
    from transformers import AutoConfig, AutoModelForCausalLM

    defaults = {"model_type": "llama", "max_position_embeddings": 512, "pad_token_id": 0}
    options = {**defaults, **options}
    config = AutoConfig.for_model(options.pop("model_type"), **options)
    place = torch.device(device)
    with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []), place:
        torch.manual_seed(SEED)
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    model.requires_grad_(False).eval().to(place)
    tokenizer = SimpleNamespace(pad_token_id=0)  # the prompts are token ids already
    return EditableModel(model, tokenizer, "random", None, place, find_layout(model))


def llama(layers: int, hidden: int, mlp: int, vocabulary: int, heads: int) -> dict[str, Any]:
    """The configuration of a random Llama."""
    return {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "vocab_size": vocabulary,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
    }


def middle(depth: int, count: int = 4) -> tuple[int, ...]:
    """The layers in the middle of a model."""
    first = (depth - count) // 2
    return tuple(range(first, first + count))
