"""The run directory: what is written where, so that nothing is ever half written.

```
config.yaml     the resolved configuration
run.json        provenance: versions, seed, model, data hashes, layers, hardware, timings
events.jsonl    one line a round, flushed
metrics.json    scores before and after, with intervals and n
samples.jsonl   every generation that a score rests on
adapter/        PEFT, safetensors only
discriminator/  the last discriminators
checkpoints/    what a killed run goes on from
report.html     one file, opens offline
README.md       the model card
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
from retouch.core.atomic import atomic_folder, atomic_write, cannot_write, restore_folder
from retouch.core.config import EditConfig
from retouch.core.config_file import dump_yaml, read_config_file, resolve
from retouch.core.errors import RunError
from retouch.core.types import Record, RoundEvent, Sample

__all__ = ["RunDir", "atomic_folder", "atomic_write", "check_free", "find_adapter", "next_free"]

T = TypeVar("T")


class RunDir:
    """One run on disk. Make it with `create` or `open`.

    Attributes:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path, config: EditConfig) -> RunDir:
        """Make the folder and write the configuration into it.

        Raises:
            RunError: something is at `path` already, or it cannot be written.
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
        """The run at `path`, finished or not.

        Raises:
            RunError: it is no run directory.
        """
        if not path.is_dir():
            what = "is a file" if path.exists() else "does not exist"
            raise RunError(
                f"{path} is not a run directory: it {what}.", "Name a folder that an edit made."
            )
        if not (path / "config.yaml").is_file():
            raise RunError(
                f"{path} is not a run directory: config.yaml is missing.",
                "Name a folder that an edit made.",
            )
        run = cls(path)
        try:
            for folder in (run.adapter, run.discriminator, run.checkpoints):
                restore_folder(folder)
            for left in run.checkpoints.glob(".*.previous"):
                restore_folder(left.with_name(left.name[1 : -len(".previous")]))
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
        """The folder that a killed run goes on from."""
        return self.path / "checkpoints"

    @property
    def finished(self) -> bool:
        """Whether the edit went through to its end."""
        return bool(self.provenance().get("done", False))

    def mark_finished(self) -> None:
        """Note in `run.json` that all is written; the last thing an edit does."""
        self.write_provenance({**self.provenance(), "done": True})

    def config(self) -> EditConfig:
        """The configuration of the run.

        Raises:
            ConfigError: `config.yaml` was changed into something that is not valid.
        """
        file = self.path / "config.yaml"
        return resolve(read_config_file(file), where=str(file))

    def write_config(self, config: EditConfig) -> None:
        """Write `config.yaml`."""
        atomic_write(self.path / "config.yaml", dump_yaml(config))

    def provenance(self) -> dict[str, Any]:
        """What `run.json` holds; nothing yet is an empty mapping."""
        file = self.path / "run.json"
        if not file.exists():
            return {}
        values = _parse(file, _read(file))
        if not isinstance(values, dict):
            raise RunError(f"{file} holds no mapping.", "Restore it, or start the edit anew.")
        return values

    def write_provenance(self, values: Mapping[str, Any]) -> None:
        """Write `run.json`."""
        self._write_json("run.json", dict(values), sort=True)

    def append_event(self, event: RoundEvent) -> None:
        """Add a round to `events.jsonl`, and see it off to the disk."""
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
        """The finished rounds; a last line that a kill tore is left out."""
        return self._read_lines("events.jsonl", RoundEvent, torn=True)

    def truncate_events(self, rounds: int) -> None:
        """Keep the events of the first `rounds` rounds alone, as a resumed run does."""
        kept = [event for event in self.events() if event.round <= rounds]
        self._write_lines("events.jsonl", map(serialization.to_plain, kept))

    def write_metrics(self, records: Sequence[Record]) -> None:
        """Write `metrics.json`."""
        self._write_json("metrics.json", [serialization.to_plain(record) for record in records])

    def metrics(self) -> list[Record]:
        """What the edit changed.

        Raises:
            RunError: the run was not measured, or the file is broken.
        """
        file = self._measured("metrics.json")
        values = _parse(file, _read(file))
        try:
            return [serialization.from_plain(Record, entry) for entry in values]
        except (TypeError, ValueError) as error:
            raise _broken(file, error) from error

    def write_samples(self, samples: Iterable[Sample]) -> None:
        """Write `samples.jsonl`."""
        self._write_lines("samples.jsonl", map(serialization.to_plain, samples))

    def samples(self) -> list[Sample]:
        """The generations that the scores rest on.

        Raises:
            RunError: the run was not measured, or the file is broken.
        """
        self._measured("samples.jsonl")
        return self._read_lines("samples.jsonl", Sample)

    def _measured(self, name: str) -> Path:
        file = self.path / name
        if not file.is_file():
            hint = f"`retouch evaluate --adapter {self.path}` measures it."
            if not self.finished:
                hint = f"The run is not finished: `retouch edit --resume {self.path}` goes on."
            raise RunError(f"{file} is missing.", hint)
        return file

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

    def _read_lines(self, name: str, kind: type[T], *, torn: bool = False) -> list[T]:
        file = self.path / name
        if not file.exists():
            return []
        # Not splitlines: JSON leaves other line separators than the line feed in its strings.
        *lines, rest = _read(file).split("\n")
        if rest and not torn:
            lines.append(rest)
        built = []
        for number, line in enumerate(lines, start=1):
            try:
                built.append(serialization.from_plain(kind, _parse(file, line, number)))
            except (TypeError, ValueError) as error:
                raise _broken(file, error, number) from error
        return built


def check_free(path: Path) -> None:
    """Let a path pass that a run can be made at: nothing there, or an empty folder.

    Raises:
        RunError: something is there.
    """
    if path.exists() and not path.is_dir():
        raise RunError(f"{path} is a file.", "Choose another folder with `--out`.")
    if path.exists() and any(path.iterdir()):
        hint = "Choose another folder with `--out`"
        if (path / "config.yaml").exists():
            hint += f", or go on with that run: `retouch edit --resume {path}`"
        raise RunError(f"{path} exists and is not empty.", f"{hint}.")


def find_adapter(path: Path) -> Path:
    """The adapter's folder, given it or the run directory that holds it.

    Raises:
        RunError: there is none.
    """
    for folder in (path, path / "adapter"):
        if (folder / "adapter_config.json").is_file():
            return folder
    if (path / "config.yaml").is_file() and not RunDir(path).finished:
        raise RunError(
            f"The run {path} has no adapter yet.", f"Finish it: `retouch edit --resume {path}`."
        )
    raise RunError(
        f"There is no adapter in {path}: no adapter_config.json there or in {path / 'adapter'}.",
        "Name a run directory or an adapter's folder.",
    )


def next_free(folder: Path, stem: str) -> Path:
    """The first of `folder/STEM-1`, `folder/STEM-2`, ... that does not exist."""
    name = re.sub(r"[^\w.-]+", "-", stem).strip("-.") or "run"
    return next(path for i in count(1) if not (path := folder / f"{name}-{i}").exists())


def _read(file: Path) -> str:
    try:
        return file.read_text("utf-8", errors="replace")
    except OSError as error:
        raise RunError(f"{file} cannot be read: {error.strerror or error}.") from error


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
    where = f"{file}, line {line}," if line else f"{file}"
    return RunError(f"{where} is broken: {error}.", "Restore the file, or start the edit anew.")


def _not_finite(file: Path) -> RunError:
    return RunError(
        f"{file} was to hold a number that is not finite.",
        "The edit has probably diverged: try a smaller `--lr`.",
    )
