"""The files that an interrupted run continues from, each with a checksum and the run's identity."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from retouch.core.atomic import atomic_write
from retouch.core.errors import RunError
from retouch.core.files import read_file
from retouch.core.serialization import from_plain, to_plain

T = TypeVar("T")

BLANK = "0" * 64  # stands for the checksum while it is computed
# The first one of a file is its own. In a safetensors file it is in the text of another value.
_CHECKSUM = re.compile(rb'checksum\\?": ?\\?"([0-9a-f]{64})')


@dataclass(frozen=True)
class Identity:
    """What decides the contents of a run's checkpoints.

    Attributes:
        settings: the values by dotted path, as JSON has them.
        hashes: of the data and the model, by a description of each.
    """

    settings: Mapping[str, Any]
    hashes: Mapping[str, str]

    def changes(self, recorded: Identity) -> Iterator[str]:
        """The differences from an earlier identity, in words; what one of them lacks is none."""
        for path, value in self.settings.items():
            before = recorded.settings.get(path, value)
            if before != value:
                yield f"`{path}` is {value!r:.200} and was {before!r:.200}"
        for name, value in self.hashes.items():
            if recorded.hashes.get(name, value) != value:
                yield f"{name} changed"


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of a run.

    Attributes:
        folder: their folder, inside the run directory.
        identity: that of the run as it is now.
    """

    folder: Path
    identity: Identity

    def head(self) -> dict[str, Any]:
        """The first entries of every checkpoint; `write` fills in the checksum."""
        return {"checksum": BLANK, "identity": vars(self.identity)}

    def write(self, name: str, content: bytes) -> None:
        """Write a file that has the entries of `head`.

        Raises:
            RunError: the disk is full or the folder cannot be written; the old file stays.
            ValueError: it has no checksum to fill in.
        """
        begin, end = _find_checksum(content)
        parts = memoryview(content)
        digest = _checksum(content, begin, end).encode()
        atomic_write(self.folder / name, b"".join((parts[:begin], digest, parts[end:])))

    def read(self, name: str) -> bytes | None:
        """The content of a file that `write` wrote; None if there is none.

        Raises:
            RunError: it was damaged, or the identity of the run has changed since.
        """
        file = self.folder / name
        if not file.exists():
            return None
        try:
            content = read_file(file, file.stat().st_size)
            begin, end = _find_checksum(content)
            if content[begin:end].decode() != _checksum(content, begin, end):
                raise ValueError("its checksum is not that of its content")
            recorded = Identity(**head_of(content)["identity"])
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
            raise self.broken(name, error) from error
        changes = "; ".join(self.identity.changes(recorded))
        if changes:
            raise RunError(
                f"In {self.folder.parent / 'config.yaml'} or what it names, {changes}, since the "
                f"checkpoint {name} was written.",
                f"Restore that to resume, or remove {self.folder} to restart.",
                code="checkpoint-differs",
            )
        return content

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON value.

        Raises:
            RunError: as for `write`.
        """
        text = json.dumps({**self.head(), "value": value}, allow_nan=False)
        self.write(name, text.encode("utf-8"))

    def read_json(self, name: str) -> Any:
        """The value that `write_json` wrote; None if there is none.

        Raises:
            RunError: as for `read`.
        """
        content = self.read(name)
        return None if content is None else json.loads(content)["value"]

    def kept(self, name: str, kind: type[T], make: Callable[[], T]) -> T:
        """The result of a stage: what an earlier process wrote, else what `make` returns.

        Raises:
            RunError: as for `read` and `write`.
        """
        found = self.read_json(name)
        if found is not None:
            try:
                return from_plain(kind, found)
            except ValueError as error:
                raise self.broken(name, error) from error
        made = make()
        self.write_json(name, to_plain(made))
        return made

    def check(self) -> None:
        """Check all files.

        Raises:
            RunError: as for `read`.
        """
        for pattern in ("*.json", "*.safetensors"):
            for file in sorted(self.folder.glob(pattern)):
                self.read(file.name)

    def remove(self, name: str) -> None:
        """Remove a file, if there is one."""
        (self.folder / name).unlink(missing_ok=True)

    def broken(self, name: str, error: Exception) -> RunError:
        """The error for a file that cannot be used."""
        return RunError(
            f"The checkpoint {self.folder / name} cannot be used: {error}",
            "Remove it to restart what it is of.",
            code="checkpoint-broken",
        )


def _find_checksum(content: bytes) -> tuple[int, int]:
    """Where the checksum of a file is.

    Raises:
        ValueError: it has none.
    """
    found = _CHECKSUM.search(content)
    if found is None:
        raise ValueError("it has no checksum")
    return found.span(1)


def _checksum(content: bytes, begin: int, end: int) -> str:
    """SHA-256 of a whole file in which the checksum itself, at `begin`, is blank."""
    parts = memoryview(content)
    digest = hashlib.sha256(parts[:begin])
    digest.update(BLANK.encode())
    digest.update(parts[end:])
    return digest.hexdigest()


def head_of(content: bytes) -> dict[str, Any]:
    """The entries of `Checkpoints.head` of a JSON or a safetensors file."""
    if content.startswith(b"{"):  # no first byte of safetensors, whose headers are padded
        return dict(json.loads(content))
    size = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + size])["__metadata__"]
    return dict(json.loads(metadata["state"]))
