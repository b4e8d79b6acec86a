"""The cases: one endless generator for each kind of input, seeded."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from fuzz.mutations import BREAKERS, damage
from fuzz.originals import CHAT, Originals
from retouch.cli.app import app
from retouch.core.options import OPTIONS


@dataclass(frozen=True)
class Case:
    """One command with bad input.

    Attributes:
        kind: of input.
        words: the arguments of the command; `{here}` is its working directory.
        files: what lies there, by relative path.
        invalid: whether a success of the command is a fault: random damage may leave a file valid.
        prepare: makes what is no regular file, such as a FIFO.
    """

    kind: str
    words: tuple[str, ...]
    files: Mapping[str, bytes] = field(default_factory=dict)
    invalid: bool = False
    prepare: Callable[[Path], None] | None = None


Kind = Callable[[random.Random, Originals], Case]

LONG = "a" * 300
NOT_NUMBERS = (
    "x",
    "nan",
    "inf",
    "-inf",
    "",
    "1e",
    "0x1F",
    "1,5,",
    "½",
    "--1",
    LONG,
    "1 2",
    "\x1b[2J",
)
NOT_INTEGERS = (*NOT_NUMBERS, "1.5", "1e400", "9" * 5000, str(2**64), str(-(2**63) - 1))
NOT_CHOICES = ("other", "", LONG, "\x1b]52;c;eA==\x07", "../x", "none,none")
NOT_PATHS = (
    "nowhere",
    "nowhere/else",
    LONG,
    "x/" * 3000,
    "/dev/null",
    "/dev/zero",
    "/proc/self/mem",
    "",
)
NOT_OUTPUTS = (LONG, "x/" * 3000, "/dev/null", "/dev/zero", "/proc/self/mem", "/proc/no/where")

# What a command needs so that the option under test is all that is wrong.
COMMANDS: dict[str, tuple[str, ...]] = {
    "edit": ("edit", "pocket", "--rounds", "1", "--num-examples", "4", "--num-retain", "4"),
    "doctor": ("doctor", "pocket"),
    "evaluate": ("evaluate", "pocket", "--limit", "2"),
    "robustness": ("robustness", "pocket", "--adapter", "{here}/run", "--limit", "2"),
    "merge": ("merge", "{here}/run", "{here}/run", "--model", "pocket", "--out", "{here}/out"),
    "compare": ("compare", "pocket", "--methods", "none", "--seeds", "1", "--num-examples", "4"),
    "tune": ("tune", "pocket", "--method", "self-reminder", "--trials", "1"),
    "chat": ("chat", "pocket", *CHAT),
    "export": ("export", "{here}/run", "--out", "{here}/out"),
    "concept create": ("concept", "create", "pocket", "--instruction", "Be brief."),
    "concept check": ("concept", "check", "{here}/data.csv"),
}


def _command(name: str) -> Any:
    """The click command of a name."""
    import typer

    found: Any = typer.main.get_command(app)
    for part in name.split():
        found = found.commands[part]
    return found


def _bad_values(parameter: Any) -> tuple[str, ...]:
    """Values that an option must refuse; none where every text is one."""
    known = {one.name: one for one in OPTIONS}.get(parameter.name)
    metavar = parameter.metavar or ""
    if known is not None and known.kind in (int, float):
        values = NOT_INTEGERS if known.kind is int else NOT_NUMBERS
        limits = [getattr(one, "ge", None) for one in known.field.metadata]
        lowest = next((one for one in limits if one is not None), None)
        return values if lowest is None else (*values, str(lowest - 1))
    if known is not None and "|" in known.metavar:
        return NOT_CHOICES
    if known is None and metavar in ("N", "X"):
        return NOT_INTEGERS if metavar == "N" else NOT_NUMBERS
    if metavar in ("FILE", "RUN", "RUN|DIR"):
        written = bool(set(parameter.opts) & {"--out", "--output-file", "--save"})
        return NOT_OUTPUTS if written else NOT_PATHS
    return ()


@cache
def _tested_options() -> list[tuple[str, Any, tuple[str, ...]]]:
    """The command, the option and its bad values."""
    return [
        (name, one, values)
        for name in COMMANDS
        for one in _command(name).params
        if one.param_type_name == "option" and (values := _bad_values(one))
    ]


def option(rng: random.Random, originals: Originals) -> Case:
    """An option with a value that is none."""
    name, parameter, values = rng.choice(_tested_options())
    words = (*COMMANDS[name], rng.choice(parameter.opts), rng.choice(values))
    return Case("option", words, originals.files("run", "data.csv"), invalid=True)


def unknown_option(rng: random.Random, originals: Originals) -> Case:
    """An option that does not exist, or a word too many."""
    name = rng.choice(list(COMMANDS))
    more = rng.choice(
        ("--nonsense", "--nonsense=1", "-z", "--", "-", LONG, "\x1b[2J", "--rounds==")
    )
    words = (*COMMANDS[name], more, *(["x"] if more == "--" else []))
    return Case("option", words, originals.files("run", "data.csv"), invalid=name != "merge")


def _file(
    kind: str, original: str, words: tuple[str, ...], *with_files: str
) -> Callable[[random.Random, Originals], Case]:
    """Cases of one file that a command reads, damaged at random or broken in a known way."""
    suffix = Path(original).suffix

    def make(rng: random.Random, originals: Originals) -> Case:
        files = originals.files(*with_files, original)
        breakers = BREAKERS.get(kind) or BREAKERS.get(suffix, ())
        if breakers and rng.random() < 0.6:
            files[original] = rng.choice(breakers)(rng, files[original])
            return Case(kind, words, files, invalid=True)
        files[original] = damage(rng, files[original])
        return Case(kind, words, files)

    return make


def special_file(rng: random.Random, originals: Originals) -> Case:
    """A FIFO, a folder, a device, a link in a circle or an unreadable file in place of a file."""
    words, name = rng.choice(
        (
            (("concept", "check", "{here}/odd.csv"), "odd.csv"),
            (("concept", "check", "{here}/odd.jsonl"), "odd.jsonl"),
            (("doctor", "pocket", "--config", "{here}/odd.yaml"), "odd.yaml"),
            (("doctor", "pocket", "--chat-template", "{here}/odd"), "odd"),
            (
                ("chat", "pocket", "--adapter", "{here}/run", *CHAT),
                "run/adapter/adapter_config.json",
            ),
            (("evaluate", "pocket", "--suite", "{here}/odd.yaml", "--limit", "2"), "odd.yaml"),
            (("export", "{here}/run", "--out", "{here}/out"), "run/config.yaml"),
            (("export", "{here}/run", "--out", "{here}/out"), "run/run.json"),
        )
    )
    form = rng.choice(("fifo", "folder", "circle", "device", "unreadable"))

    def prepare(folder: Path) -> None:
        path = folder / name
        if path.exists():
            path.unlink()
        if form == "fifo":
            os.mkfifo(path)
        elif form == "folder":
            path.mkdir()
        elif form == "circle":
            path.symlink_to(path)
        elif form == "device":
            path.symlink_to("/dev/zero")
        else:
            path.write_bytes(b"x")
            path.chmod(0)

    return Case("special file", words, originals.files("run"), True, prepare)


def output(rng: random.Random, originals: Originals) -> Case:
    """An output that would replace something."""
    words = rng.choice(
        (
            ("export", "{here}/run", "--out"),
            ("merge", "{here}/run", "{here}/run", "--model", "pocket", "--out"),
            ("evaluate", "pocket", "--limit", "2", "--out"),
            ("edit", "pocket", "--rounds", "1", "--out"),
            ("compare", "pocket", "--methods", "none", "--seeds", "1", "--out"),
        )
    )
    form = rng.choice(("file", "fifo", "link", "full", "inside-file", "long", "device", "root"))
    target = {
        "inside-file": "{here}/mine.txt/out",
        "long": "{here}/" + "b" * 400,
        "device": "/dev/full",
        "root": "/proc/retouch",
    }.get(form, "{here}/mine.txt" if form == "file" else "{here}/target")

    def prepare(folder: Path) -> None:
        (folder / "mine.txt").write_text("a user's file")
        path = folder / "target"
        if form == "fifo":
            os.mkfifo(path)
        elif form == "link":
            path.symlink_to(folder / "mine.txt")
        elif form == "full":
            path.mkdir()
            (path / "mine.txt").write_text("a user's file")

    return Case("output", (*words, target), originals.files("run"), True, prepare)


def run_record(rng: random.Random, originals: Originals) -> Case:
    """A run with one damaged file, used by each command that reads runs."""
    names = ("config.yaml", "run.json", "metrics.json", "samples.jsonl", "events.jsonl")
    name = f"run/{rng.choice(names)}"
    words = rng.choice(
        (
            ("export", "{here}/run", "--out", "{here}/out"),
            ("edit", "pocket", "--resume", "{here}/run"),
            ("chat", "pocket", "--adapter", "{here}/run", *CHAT),
            (
                "merge",
                "{here}/run",
                "{here}/run",
                "--model",
                "pocket",
                "--out",
                "{here}/out",
                "--limit",
                "2",
            ),
        )
    )
    files = originals.files("run")
    files[name] = damage(rng, files[name])
    return Case("run", words, files)


def configuration(rng: random.Random, originals: Originals) -> Case:
    """A configuration with a key or a value that does not exist."""
    path = rng.choice([one for one in OPTIONS if one.group])
    value: Any = rng.choice(
        ([], {}, [[]], {"a": {"b": []}}, "\x00", LONG, -(10**30), float("nan"), 1e400, True, None)
    )
    kind = path.kind
    fine = (kind is bool and value is True) or value is None or isinstance(value, str)
    fine |= path.is_mapping and isinstance(value, dict)
    fine |= kind is str and isinstance(value, float)  # YAML has another word for NaN
    tree: dict[str, Any] = {path.group: {path.path.rpartition(".")[2]: value}}
    if rng.random() < 0.3:
        tree, fine = {rng.choice((LONG, "x.y", "model.x", "", "load")): value}, False
    text = json.dumps(tree)
    name = rng.choice(("settings.yaml", "settings.yml"))
    words = ("doctor", "pocket", "--config", f"{{here}}/{name}")
    empty = tree.get("load") in (None, {}) and list(tree) == ["load"]
    return Case(
        "configuration", words, {name: text.encode()}, not (fine or empty or value in ([], {}))
    )


KINDS: dict[str, tuple[int, Kind]] = {
    # A weight, and the generator.
    "option": (30, option),
    "unknown option": (4, unknown_option),
    "output": (4, output),
    "special file": (4, special_file),
    "configuration": (8, configuration),
    "configuration file": (
        6,
        _file("yaml", "settings.yaml", ("doctor", "pocket", "--config", "{here}/settings.yaml")),
    ),
    "csv": (10, _file("csv", "data.csv", ("concept", "check", "{here}/data.csv"))),
    "jsonl": (10, _file("jsonl", "data.jsonl", ("concept", "check", "{here}/data.jsonl"))),
    "parquet": (4, _file("parquet", "data.parquet", ("concept", "check", "{here}/data.parquet"))),
    "pack": (6, _file("yaml", "pack/concept.yaml", ("concept", "check", "{here}/pack"), "pack")),
    "run": (6, run_record),
    "adapter settings": (
        6,
        _file(
            "adapter",
            "run/adapter/adapter_config.json",
            ("chat", "pocket", "--adapter", "{here}/run", *CHAT),
            "run",
        ),
    ),
    "adapter weights": (
        5,
        _file(
            "safetensors",
            "run/adapter/adapter_model.safetensors",
            ("chat", "pocket", "--adapter", "{here}/run", *CHAT),
            "run",
        ),
    ),
    "model settings": (
        6,
        _file("json", "model/config.json", ("chat", "{here}/model", *CHAT), "model"),
    ),
    "model weights": (
        5,
        _file("safetensors", "model/model.safetensors", ("chat", "{here}/model", *CHAT), "model"),
    ),
    "tokenizer": (
        5,
        _file("json", "model/tokenizer.json", ("chat", "{here}/model", *CHAT), "model"),
    ),
    "gguf": (5, _file("gguf", "model.gguf", ("chat", "{here}/model.gguf", *CHAT))),
    "suite": (
        5,
        _file(
            "yaml",
            "suite.yaml",
            (
                "evaluate",
                "pocket",
                "--suite",
                "{here}/suite.yaml",
                "--data-dir",
                "{here}",
                "--limit",
                "2",
            ),
            "rows.jsonl",
        ),
    ),
    "chat template": (
        4,
        _file(
            "template",
            "template.jinja",
            ("chat", "pocket", "--chat-template", "{here}/template.jinja", *CHAT),
        ),
    ),
}


def cases(seed: int, originals: Originals) -> Iterator[Case]:
    """All kinds, by their weights, without end."""
    rng = random.Random(seed)
    names = list(KINDS)
    weights = [KINDS[name][0] for name in names]
    while True:
        (name,) = rng.choices(names, weights)
        yield KINDS[name][1](rng, originals)
