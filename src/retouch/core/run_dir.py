"""The run directory: its files, written atomically and validated when they are read.

```
config.yaml          the resolved configuration
run.json             provenance: versions, seed, model, data hashes, layers, hardware, timings
events.jsonl         one line for each round
metrics.json         scores before and after the edit, with intervals and n
samples.jsonl        every generation that a score is computed from
adapter/             the PEFT adapter, as safetensors
discriminator/       the last discriminators
checkpoints/         the state that an interrupted run resumes from
concept/             the pack of a concept that was given as an object
chat_template.jinja  the chat template of a model that was given as an object
report.html          one file that opens offline
README.md            the model card
```
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from retouch.core import serialization
from retouch.core.atomic import atomic_write, cannot_write, restore_folder
from retouch.core.config import EditConfig
from retouch.core.config_file import dump_yaml, read_config_file, resolve
from retouch.core.errors import RunError
from retouch.core.types import Record, RoundEvent, Sample

T = TypeVar("T")


class RunDir:
    """One run on disk. Use `create` or `open` to make an instance.

    Attributes:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path, config: EditConfig) -> RunDir:
        """Create the folder and write the configuration into it.

        Raises:
            RunError: `path` is a file or not empty, or it cannot be written.
        """
        check_free(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(path, error) from error
        run = cls(path)
        run.write_config(config)
        return run

    @classmethod
    def open(cls, path: Path) -> RunDir:
        """Open the run at `path`, finished or not.

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
        try:
            for folder in (run.adapter, run.discriminator, run.checkpoints):
                restore_folder(folder)
            for previous in run.checkpoints.glob(".*.previous"):
                restore_folder(previous.with_name(previous.name[1 : -len(".previous")]))
        except OSError as error:
            raise cannot_write(path, error) from error
        return run

    @property
    def adapter(self) -> Path:
        """The folder of the adapter."""
        return self.path / "adapter"

    @property
    def discriminator(self) -> Path:
        """The folder of the last discriminators."""
        return self.path / "discriminator"

    @property
    def concept(self) -> Path:
        """The pack of a concept that was given as an object."""
        return self.path / "concept"

    @property
    def has_concept(self) -> bool:
        """Whether the concept was given as an object."""
        return (self.concept / "concept.yaml").is_file()

    @property
    def chat_template(self) -> Path:
        """The chat template of a model that was given as an object."""
        return self.path / "chat_template.jinja"

    @property
    def checkpoints(self) -> Path:
        """The folder of the state that an interrupted run resumes from."""
        return self.path / "checkpoints"

    @property
    def finished(self) -> bool:
        """Whether the edit was completed."""
        return bool(self.provenance().get("done", False))

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
        values = _parse(file, _read(file))
        if not isinstance(values, dict):
            raise _broken(file, ValueError("it is not a mapping"))
        return values

    def write_provenance(self, values: Mapping[str, Any]) -> None:
        """Write `run.json`."""
        self._write_json("run.json", dict(values), sort=True)

    def append_event(self, event: RoundEvent) -> None:
        """Append a round to `events.jsonl`.

        Raises:
            RunError: the file cannot be written, or a value is not finite.
        """
        file = self.path / "events.jsonl"
        line = _json_line(file, serialization.to_plain(event))
        try:
            with file.open("ab") as handle:
                size = handle.tell()
                try:
                    handle.write(line.encode("utf-8"))
                    handle.flush()
                except OSError:
                    handle.truncate(size)
                    raise
        except OSError as error:
            raise cannot_write(file, error) from error

    def events(self) -> list[RoundEvent]:
        """Read the finished rounds, without a last line that was not written completely.

        Raises:
            RunError: the file is broken.
        """
        return self._read_lines("events.jsonl", RoundEvent, allow_partial=True)

    def truncate_events(self, rounds: int) -> None:
        """Remove the events after the first `rounds` rounds, which a resumed run repeats."""
        kept = [event for event in self.events() if event.round <= rounds]
        self._write_lines("events.jsonl", map(serialization.to_plain, kept))

    def write_metrics(self, records: Sequence[Record]) -> None:
        """Write `metrics.json`."""
        self._write_json("metrics.json", [serialization.to_plain(record) for record in records])

    def metrics(self) -> list[Record]:
        """Read `metrics.json`.

        Raises:
            RunError: the run was not measured, or the file is broken.
        """
        file = self._require("metrics.json")
        values = _parse(file, _read(file))
        try:
            return [serialization.from_plain(Record, entry) for entry in values]
        except (TypeError, ValueError) as error:
            raise _broken(file, error) from error

    def write_samples(self, samples: Iterable[Sample]) -> None:
        """Write `samples.jsonl`."""
        self._write_lines("samples.jsonl", map(serialization.to_plain, samples))

    def samples(self) -> list[Sample]:
        """Read `samples.jsonl`, the generations that the scores are computed from.

        Raises:
            RunError: the run was not measured, or the file is broken.
        """
        self._require("samples.jsonl")
        return self._read_lines("samples.jsonl", Sample)

    def _require(self, name: str) -> Path:
        """A file that a measured run has."""
        file = self.path / name
        if file.is_file():
            return file
        if self.finished:
            raise RunError(
                f"{file} is missing: the run was not measured.",
                "Evaluate its adapter.",
                code="not-measured",
            )
        raise RunError(
            f"{file} is missing: the run is not finished.", "Resume it.", code="not-finished"
        )

    def _write_json(self, name: str, value: Any, *, sort: bool = False) -> None:
        file = self.path / name
        try:
            text = serialization.to_json(value, indent=2, sort=sort)
        except ValueError as error:
            raise _not_finite(file) from error
        atomic_write(file, text + "\n")

    def _write_lines(self, name: str, values: Iterable[Any]) -> None:
        file = self.path / name
        atomic_write(file, "".join(_json_line(file, value) for value in values))

    def _read_lines(self, name: str, kind: type[T], *, allow_partial: bool = False) -> list[T]:
        file = self.path / name
        if not file.exists():
            return []
        # Not str.splitlines: JSON strings may contain U+2028 and other line separators unescaped.
        *lines, partial = _read(file).split("\n")
        if partial and not allow_partial:
            lines.append(partial)
        values = []
        for number, line in enumerate(lines, start=1):
            try:
                values.append(serialization.from_plain(kind, _parse(file, line, number)))
            except (TypeError, ValueError) as error:
                raise _broken(file, error, number) from error
        return values


def check_free(path: Path) -> None:
    """Check that a run can be created at a path: it does not exist, or is an empty folder.

    Raises:
        RunError: it is a file, or a folder that is not empty.
    """
    if path.exists() and not path.is_dir():
        raise RunError(f"{path} is a file.", "Choose another output folder.", code="path-taken")
    if path.exists() and any(path.iterdir()):
        if (path / "config.yaml").exists():
            raise RunError(
                f"{path} already contains a run.",
                "Resume that run, or choose another output folder.",
                code="run-exists",
            )
        raise RunError(f"{path} is not empty.", "Choose another output folder.", code="path-taken")


def find_adapter(path: Path) -> Path:
    """The adapter's folder, given that folder or a run directory.

    Raises:
        RunError: there is no adapter.
    """
    for folder in (path, path / "adapter"):
        if (folder / "adapter_config.json").is_file():
            return folder
    if (path / "config.yaml").is_file() and not RunDir(path).finished:
        raise RunError(f"The run {path} has no adapter yet.", "Resume it.", code="not-finished")
    raise RunError(
        f"There is no adapter in {path}: adapter_config.json is neither there nor in "
        f"{path / 'adapter'}.",
        "Give a run directory or an adapter folder.",
        code="adapter-missing",
    )


def next_free(folder: Path, stem: str) -> Path:
    """The first of `folder/STEM-1`, `folder/STEM-2`, ... that does not exist.

    Characters other than letters, digits, `.`, `_` and `-` are replaced, so that the path is always
    inside the folder.
    """
    name = re.sub(r"[^\w.-]+", "-", stem).strip("-.") or "run"
    return next(path for i in count(1) if not (path := folder / f"{name}-{i}").exists())


def _read(file: Path) -> str:
    try:
        return file.read_text("utf-8", errors="replace")
    except OSError as error:
        raise RunError(
            f"{file} cannot be read: {error.strerror or error}.", code="file-unreadable"
        ) from error


def _parse(file: Path, text: str, line: int | None = None) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise _broken(file, error, line) from error


def _json_line(file: Path, value: Any) -> str:
    try:
        return serialization.to_json(value) + "\n"
    except ValueError as error:
        raise _not_finite(file) from error


def _broken(file: Path, error: Exception, line: int | None = None) -> RunError:
    location = f"{file}, line {line}," if line else f"{file}"
    return RunError(
        f"{location} is broken: {error}.",
        "Restore the file, or start a new run.",
        code="file-broken",
    )


def _not_finite(file: Path) -> RunError:
    return RunError(
        f"A value for {file} is not finite.",
        "The training has probably diverged: reduce `learning_rate`.",
        code="not-finite",
    )
