"""The run directory: its files, written atomically and validated when they are read.

```
.lock                while a process works on the run
config.yaml          the resolved configuration
run.json             provenance: versions, seed, model, data hashes, layers, hardware, timings
events.jsonl         one line for each round
metrics.json         scores before and after the edit, with intervals and n
samples.jsonl        every generation that a score is computed from
adapter/             the PEFT adapter, as safetensors
discriminator/       the last discriminators
checkpoints/         the state that an interrupted run resumes from
concept/             the pack of a concept that was given as an object
chat_template.jinja  the chat template, of a model that was given as an object or if it was set
report.html          one file that opens offline
README.md            the model card
```
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from retouch.core.atomic import atomic_write, check_writable, is_free, leftovers, writing
from retouch.core.config import EditConfig
from retouch.core.config_file import dump_yaml, read_config_file, resolve
from retouch.core.errors import RunError
from retouch.core.files import MAX_RECORD, read_file
from retouch.core.lock import locked
from retouch.core.provenance import Provenance
from retouch.core.serialization import from_plain, parse_json, to_json, to_plain
from retouch.core.types import Record, RoundEvent, Sample

T = TypeVar("T")

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
CHECKPOINTS = "checkpoints"
MAX_NAME = 100  # characters of a file's name that a concept's name decides


class RunDir:
    """One run on disk, at `path`. Use `create` or `open` to make an instance."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.adapter = path / "adapter"
        self.discriminator = path / "discriminator"
        self.checkpoints = path / CHECKPOINTS
        self.concept = path / "concept"
        self.chat_template = path / "chat_template.jinja"

    @classmethod
    def create(cls, path: Path, config: EditConfig) -> RunDir:
        """Create the folder and write the configuration into it.

        Raises:
            RunError: `path` is a file or not empty, or it cannot be written.
        """
        check_free(path)
        run = cls(path)
        run.write_config(config)
        return run

    @classmethod
    def open(cls, path: Path) -> RunDir:
        """Open the run at `path`, finished or not.

        What killed processes have left in it is swept, unless another process works on it.

        Raises:
            RunError: it is not a run directory.
        """
        problem = ""
        if not path.is_dir():
            problem = "it is a file" if path.exists() else "it does not exist"
        elif not (path / "config.yaml").is_file():
            problem = "config.yaml is missing"
        if problem:
            raise RunError(
                f"{path} is not a run directory: {problem}.",
                "Give the folder that an edit wrote.",
                code="not-a-run",
            )
        run = cls(path)
        if leftovers(path) or leftovers(run.checkpoints):
            try:
                with run.locked():
                    pass
            except RunError as error:
                # Another process is writing, or the run can only be read: it is read as it is.
                if error.code not in ("run-locked", "no-permission"):
                    raise
        return run

    def locked(self) -> AbstractContextManager[None]:
        """The lock of the run; what killed processes have left in it is swept.

        Raises:
            RunError: another process holds it, or the folder cannot be written.
        """
        return locked(self.path, CHECKPOINTS)

    def check_exists(self) -> None:
        """Check that the run is still there; writing into it would make a part of it again.

        Raises:
            RunError: the folder or its configuration was removed.
        """
        if not (self.path / "config.yaml").is_file():
            raise RunError(
                f"The run {self.path} was removed or moved during the edit.",
                "Start a new run, or move it back and resume it.",
                code="run-vanished",
            )

    @property
    def has_concept(self) -> bool:
        """Whether the concept was given as an object."""
        return (self.concept / "concept.yaml").is_file()

    @property
    def finished(self) -> bool:
        """Whether the edit was completed."""
        return bool(self.provenance().get("done", False))

    def recorded(self, part: str, kind: type[T]) -> T | None:
        """A part of `run.json` as an object; None if it is not recorded.

        Raises:
            RunError: it is broken.
        """
        values = self.provenance().get(part)
        if values is None:
            return None
        return _convert(self.path / "run.json", kind, values)

    def mark_finished(self) -> None:
        """Record in `run.json` that the edit is complete; its last step."""
        self.write_provenance({**self.provenance(), "done": True})

    def config(self) -> EditConfig:
        """Read `config.yaml`.

        Raises:
            ConfigError: the file was changed and is not valid any more.
        """
        file = self.path / "config.yaml"
        return resolve(read_config_file(file), where=str(file))

    def load_options(self) -> dict[str, Any]:
        """The load options that decide the outputs of the run's model, for `LoadConfig`.

        The chat template is the run's copy. The device and whether code runs are the caller's.

        Raises:
            ConfigError: `config.yaml` is not valid.
            RunError: the copy of the chat template is missing.
        """
        load = self.config().load
        options: dict[str, Any] = {"revision": load.revision, "quantize": load.quantize}
        if load.chat_template_kwargs:
            options["chat_template_kwargs"] = load.chat_template_kwargs
        if load.chat_template_time is not None:
            options["chat_template_time"] = load.chat_template_time
        if self.chat_template.is_file():
            options["chat_template"] = str(self.chat_template)
        elif load.chat_template is not None:
            raise RunError(
                f"{self.chat_template} is missing: the run has a chat template of its own.",
                "Restore the file.",
                code="chat-template-missing",
            )
        return options

    def write_config(self, config: EditConfig) -> None:
        """Write `config.yaml`."""
        atomic_write(self.path / "config.yaml", dump_yaml(config))

    def provenance(self) -> dict[str, Any]:
        """Read `run.json`; an empty mapping if it does not exist yet.

        Raises:
            RunError: the file is broken.
        """
        file = self.path / "run.json"
        if not file.exists():
            return {}
        values = _parse(file, dict[str, Any], _read(file))
        _convert(file, Provenance, values)
        return values

    def write_provenance(self, values: Mapping[str, Any]) -> None:
        """Write `run.json`."""
        file = self.path / "run.json"
        self.write(file.name, _dump(file, dict(values), indent=2, sort=True))

    def write(self, name: str, text: str) -> None:
        """Write a file of the run.

        Raises:
            RunError: the run was removed, or the file cannot be written.
        """
        self.check_exists()
        atomic_write(self.path / name, text)

    def append_event(self, event: RoundEvent) -> None:
        """Append a round to `events.jsonl`.

        Raises:
            RunError: the file cannot be written, or a value is not finite.
        """
        file = self.path / "events.jsonl"
        line = _dump(file, to_plain(event))
        self.check_exists()
        with writing(file), file.open("ab") as handle:
            size = handle.tell()
            try:
                handle.write(line.encode("utf-8"))
                handle.flush()
            except OSError:
                handle.truncate(size)
                raise

    def events(self) -> list[RoundEvent]:
        """Read the finished rounds, without a last line that was not written completely.

        Raises:
            RunError: the file is broken.
        """
        file = self.path / "events.jsonl"
        return _read_lines(file, RoundEvent, allow_partial=True) if file.exists() else []

    def truncate_events(self, rounds: int) -> None:
        """Remove the events after the first `rounds` rounds, which a resumed run repeats."""
        self._write_lines("events.jsonl", (one for one in self.events() if one.round <= rounds))

    def write_metrics(self, records: Sequence[Record]) -> None:
        """Write `metrics.json`."""
        file = self.path / "metrics.json"
        self.write(file.name, _dump(file, to_plain(records), indent=2))

    def metrics(self) -> list[Record]:
        """Read `metrics.json`.

        Raises:
            RunError: the run was not measured, or the file is broken.
        """
        file = self._require("metrics.json")
        return _parse(file, list[Record], _read(file))

    def write_samples(self, samples: Iterable[Sample]) -> None:
        """Write `samples.jsonl`."""
        self._write_lines("samples.jsonl", samples)

    def samples(self) -> list[Sample]:
        """Read `samples.jsonl`, the generations that the scores are computed from.

        Raises:
            RunError: the run was not measured, or the file is broken.
        """
        return _read_lines(self._require("samples.jsonl"), Sample)

    def _require(self, name: str) -> Path:
        """A file that a measured run has."""
        file = self.path / name
        if file.is_file():
            return file
        problem, hint, code = "is not finished", "Resume it.", "not-finished"
        if self.finished:
            problem, hint, code = "was not measured", "Evaluate its adapter.", "not-measured"
        raise RunError(f"{file} is missing: the run {problem}.", hint, code=code)

    def _write_lines(self, name: str, values: Iterable[Any]) -> None:
        file = self.path / name
        self.write(name, "".join(_dump(file, to_plain(value)) for value in values))


def check_free(path: Path) -> None:
    """Check that a run can be created at a path: it does not exist, or is an empty folder.

    Raises:
        RunError: it is a file, or a folder that is not empty, or it cannot be written.
    """
    check_writable(path)
    if (path / "config.yaml").exists():
        raise RunError(
            f"{path} already contains a run.",
            "Resume that run, or choose another output folder.",
            code="run-exists",
        )
    if not is_free(path, leftovers=True):
        problem = "is not empty" if path.is_dir() else "is a file"
        raise RunError(f"{path} {problem}.", "Choose another output folder.", code="path-taken")


def find_adapter(path: Path) -> Path:
    """The adapter's folder, given that folder or a run directory.

    Raises:
        RunError: there is no adapter.
    """
    for folder in (path, path / "adapter"):
        if (folder / ADAPTER_CONFIG).is_file():
            return folder
    if (path / "config.yaml").is_file() and not RunDir(path).finished:
        raise RunError(f"The run {path} has no adapter yet.", "Resume it.", code="not-finished")
    raise RunError(
        f"There is no adapter in {path}: {ADAPTER_CONFIG} is neither there nor in "
        f"{path / 'adapter'}.",
        "Give a run directory or an adapter folder.",
        code="adapter-missing",
    )


def next_free(folder: Path, stem: str) -> Path:
    """The first of `folder/STEM-1`, `folder/STEM-2`, ... that does not exist, inside the folder."""
    name = safe_name(stem)
    return next(path for i in count(1) if not (path := folder / f"{name}-{i}").exists())


def safe_name(text: str) -> str:
    """A text as the name of a file or folder: of letters, digits, `.`, `_` and `-`."""
    return re.sub(r"[^\w.-]+", "-", text).strip("-.")[:MAX_NAME] or "run"


def _read(file: Path) -> str:
    try:
        return read_file(file, MAX_RECORD).decode("utf-8", errors="replace")
    except OSError as error:
        raise RunError(
            f"{file} cannot be read: {error.strerror or error}.", code="file-unreadable"
        ) from error


def _parse(file: Path, kind: type[T], text: str, line: int = 0) -> T:
    try:
        return from_plain(kind, parse_json(text))
    except ValueError as error:
        raise _broken(file, error, line) from error


def _convert(file: Path, kind: type[T], values: Any) -> T:
    try:
        return from_plain(kind, values)
    except ValueError as error:
        raise _broken(file, error) from error


def _broken(file: Path, error: Exception, line: int = 0) -> RunError:
    where = f", line {line}," if line else ""
    hint = "Restore the file, or start a new run."
    return RunError(f"{file}{where} is broken: {error}.", hint, code="file-broken")


def _read_lines(file: Path, kind: type[T], *, allow_partial: bool = False) -> list[T]:
    # Not str.splitlines: JSON strings may contain U+2028 and other line separators unescaped.
    *lines, partial = _read(file).split("\n")
    if partial and not allow_partial:
        lines.append(partial)
    return [_parse(file, kind, line, number) for number, line in enumerate(lines, start=1)]


def _dump(file: Path, value: Any, *, indent: int | None = None, sort: bool = False) -> str:
    try:
        return to_json(value, indent=indent, sort=sort) + "\n"
    except ValueError as error:
        raise RunError(
            f"A value for {file} is not finite.",
            "The training has probably diverged: reduce `learning_rate`.",
            code="not-finite",
        ) from error
