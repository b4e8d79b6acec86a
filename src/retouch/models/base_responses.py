"""Responses of the base model, generated once: kept by the run, and in the user's cache folder."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path

from retouch.core.cache import cache_dir
from retouch.core.checkpoints import Checkpoints
from retouch.core.types import Progress, no_progress
from retouch.models.editable_model import EditableModel
from retouch.models.generate import GREEDY, Decoding, Response, generate_responses

RUN_FILE = "responses.json"  # in the checkpoints of a run
MIN_PARAMETERS = 20_000_000  # a smaller model responds faster than the store is worth

Prompt = Sequence[int]


def cached_base_responses(
    editable: EditableModel,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    decoding: Decoding = GREEDY,
    progress: Progress = no_progress,
) -> list[Response]:
    """How the base model responds to tokenized prompts; equal ones are generated once.

    Adapters and interventions are switched off. Responses are stored by the fingerprint of the
    weights, so that runs and methods share them. A run keeps its own as well, with the prompts that
    each call generated: one that is resumed generates the rest in the same batches.
    """
    distinct = sorted({tuple(prompt) for prompt in prompts}, key=lambda ids: (len(ids), ids))
    keys = {
        prompt: _key(editable.precision, max_new_tokens, decoding, prompt) for prompt in distinct
    }
    store, run = _Store.open(editable), _RunResponses.open(editable)
    found = {prompt: one for prompt in distinct if (one := run.responses.get(keys[prompt]))}
    planned = run.calls.get(_call_key(keys.values()))
    if planned is not None:
        missing = [prompt for prompt in distinct if keys[prompt] in planned]
    else:
        unknown = [prompt for prompt in distinct if prompt not in found]
        found |= store.read(keys, unknown) if store else {}
        missing = [prompt for prompt in distinct if prompt not in found]
        run.begin(keys, found, missing)
    known = {i: found[prompt] for i, prompt in enumerate(missing) if prompt in found}

    def keep(made: dict[int, Response]) -> None:
        responses = {keys[missing[i]]: response for i, response in made.items()}
        run.write(responses)
        if store:
            store.write(responses)

    if len(known) < len(missing):
        with editable.base_model():
            generated = generate_responses(
                editable,
                missing,
                max_new_tokens=max_new_tokens,
                decoding=decoding,
                progress=progress,
                on_batch=keep,
                known=known,
            )
        found |= zip(missing, generated, strict=True)
    return [found[tuple(prompt)] for prompt in prompts]


def _key(precision: str, max_new_tokens: int, decoding: Decoding, prompt: Prompt) -> str:
    """The key of a response."""
    sampled = [] if decoding == GREEDY else [asdict(decoding)]
    content = json.dumps([precision, max_new_tokens, list(prompt), *sampled])
    return hashlib.sha256(content.encode()).hexdigest()


def _call_key(keys: Iterable[str]) -> str:
    """The key of a call for responses."""
    return hashlib.sha256("".join(keys).encode()).hexdigest()


@dataclass
class _RunResponses:
    """The responses of a run, in its checkpoints; without checkpoints nothing is kept.

    Attributes:
        checkpoints: the run's.
        responses: by key.
        calls: for each call, the keys of the responses that it generates.
    """

    checkpoints: Checkpoints | None
    responses: dict[str, Response] = field(default_factory=dict)
    calls: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def open(cls, editable: EditableModel) -> _RunResponses:
        """The responses of the run that edits the model.

        Raises:
            RunError: they were damaged, or the run has changed since.
        """
        checkpoints = editable.checkpoints
        values = checkpoints.read_json(RUN_FILE) if checkpoints else None
        if checkpoints is None or values is None:
            return cls(checkpoints)
        try:
            responses = {key: Response(*value) for key, value in values["responses"].items()}
            return cls(checkpoints, responses, dict(values["calls"]))
        except (KeyError, TypeError, AttributeError) as error:
            raise checkpoints.broken(RUN_FILE, error) from error

    def begin(
        self,
        keys: Mapping[tuple[int, ...], str],
        found: Mapping[tuple[int, ...], Response],
        missing: Sequence[tuple[int, ...]],
    ) -> None:
        """Record a call: what was found, and what it generates."""
        self.calls[_call_key(keys.values())] = [keys[prompt] for prompt in missing]
        self.write({keys[prompt]: response for prompt, response in found.items()})

    def write(self, responses: Mapping[str, Response]) -> None:
        """Add responses."""
        if self.checkpoints is None:
            return
        self.responses |= responses
        listed = {key: [one.text, one.truncated] for key, one in self.responses.items()}
        self.checkpoints.write_json(RUN_FILE, {"calls": self.calls, "responses": listed})


class _Store:
    """A database of responses of one base model; a fault of it only costs time."""

    def __init__(self, file: Path) -> None:
        self._file = file

    @classmethod
    def open(cls, editable: EditableModel) -> _Store | None:
        """The store of a model; None for a small one, or where its folder cannot be written."""
        weights = editable.base.parameters()
        if editable.sharded or sum(one.numel() for one in weights) < MIN_PARAMETERS:
            return None
        folder = cache_dir() / "responses"
        store = cls(folder / f"{editable.fingerprint}.sqlite")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with closing(store._connect()) as database:
                database.execute(
                    "CREATE TABLE IF NOT EXISTS responses "
                    "(key TEXT PRIMARY KEY, response TEXT NOT NULL, truncated INTEGER NOT NULL)"
                )
        except (OSError, sqlite3.Error):
            return None
        return store

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self._file, timeout=10, isolation_level=None)

    def read(
        self, keys: Mapping[tuple[int, ...], str], prompts: Sequence[tuple[int, ...]]
    ) -> dict[tuple[int, ...], Response]:
        """The stored responses to prompts, whose keys are among `keys`."""
        found = {}
        try:
            with closing(self._connect()) as database:
                for prompt in prompts:
                    row = database.execute(
                        "SELECT response, truncated FROM responses WHERE key = ?",
                        (keys[prompt],),
                    ).fetchone()
                    if row is not None:
                        found[prompt] = Response(str(row[0]), bool(row[1]))
        except sqlite3.Error:
            return {}
        return found

    def write(self, responses: Mapping[str, Response]) -> None:
        """Store responses by their keys."""
        rows = [(key, one.text, int(one.truncated)) for key, one in responses.items()]
        try:
            with closing(self._connect()) as database:
                database.executemany("INSERT OR REPLACE INTO responses VALUES (?, ?, ?)", rows)
        except sqlite3.Error:
            return  # a full disk, or another process's lock: they are generated again
