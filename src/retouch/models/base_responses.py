"""Responses of the base model, generated once and kept in the user's cache folder."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from retouch.core.cache import cache_dir
from retouch.core.types import Progress, no_progress
from retouch.models.editable_model import EditableModel
from retouch.models.generate import Response, generate_responses

MIN_PARAMETERS = 20_000_000  # a smaller model responds faster than the store is worth

Prompt = Sequence[int]


def cached_base_responses(
    editable: EditableModel,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    progress: Progress = no_progress,
) -> list[Response]:
    """How the base model responds to tokenized prompts, greedily; equal ones are generated once.

    Adapters and interventions are switched off. Responses are stored by the fingerprint of the
    weights, so that runs, methods and an interrupted run that is resumed share them.
    """
    distinct = sorted({tuple(prompt) for prompt in prompts}, key=lambda ids: (len(ids), ids))
    store = _Store.open(editable)
    found = store.read(distinct, max_new_tokens) if store else {}
    missing = [prompt for prompt in distinct if prompt not in found]

    def keep(made: dict[int, Response]) -> None:
        if store:
            store.write({missing[i]: response for i, response in made.items()}, max_new_tokens)

    if missing:
        with editable.base_model():
            generated = generate_responses(
                editable, missing, max_new_tokens=max_new_tokens, progress=progress, on_batch=keep
            )
        found |= zip(missing, generated, strict=True)
    return [found[tuple(prompt)] for prompt in prompts]


class _Store:
    """A database of responses of one base model; a fault of it only costs time."""

    def __init__(self, file: Path, precision: str) -> None:
        self._file, self._precision = file, precision

    @classmethod
    def open(cls, editable: EditableModel) -> _Store | None:
        """The store of a model; None for a small one, or where its folder cannot be written."""
        weights = editable.base.parameters()
        if editable.sharded or sum(one.numel() for one in weights) < MIN_PARAMETERS:
            return None
        folder = cache_dir() / "responses"
        store = cls(folder / f"{editable.fingerprint}.sqlite", editable.precision)
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

    def _key(self, prompt: Prompt, max_new_tokens: int) -> str:
        content = json.dumps([self._precision, max_new_tokens, list(prompt)])
        return hashlib.sha256(content.encode()).hexdigest()

    def read(
        self, prompts: Sequence[tuple[int, ...]], max_new_tokens: int
    ) -> dict[tuple[int, ...], Response]:
        """The stored responses to prompts."""
        found = {}
        try:
            with closing(self._connect()) as database:
                for prompt in prompts:
                    row = database.execute(
                        "SELECT response, truncated FROM responses WHERE key = ?",
                        (self._key(prompt, max_new_tokens),),
                    ).fetchone()
                    if row is not None:
                        found[prompt] = Response(str(row[0]), bool(row[1]))
        except sqlite3.Error:
            return {}
        return found

    def write(self, made: dict[tuple[int, ...], Response], max_new_tokens: int) -> None:
        """Store responses."""
        rows = [
            (self._key(prompt, max_new_tokens), one.text, int(one.truncated))
            for prompt, one in made.items()
        ]
        try:
            with closing(self._connect()) as database:
                database.executemany("INSERT OR REPLACE INTO responses VALUES (?, ?, ?)", rows)
        except sqlite3.Error:
            return  # a full disk, or another process's lock: they are generated again
