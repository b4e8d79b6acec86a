"""A folder with a user's suite `mine` and its data, written by a test."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from retouch.concepts.concept import Concept
from retouch.suites.registry import load_suite_concept

HEADING = "name: mine\ntitle: Mine\nurl: https://example.org\nlicence: CC0-1.0\n"


class Folder:
    """Writes the files of a suite and reads them as a concept."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, name: str, content: str | Sequence[dict[str, Any]]) -> Path:
        """Write a text, or rows as JSONL or CSV, in the format of the name's suffix."""
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            text = content
        elif name.endswith(".csv"):
            stream = io.StringIO()
            writer = csv.DictWriter(stream, list(content[0]))
            writer.writeheader()
            writer.writerows(content)
            text = stream.getvalue()
        else:
            text = "".join(f"{json.dumps(row)}\n" for row in content)
        file.write_text(text, "utf-8")
        return file

    def suite(self, text: str, name: str = "mine.yaml") -> Path:
        """Write a suite's file: the keys that all suites have, and the text."""
        lines = HEADING.splitlines(keepends=True)
        others = [line for line in lines if f"\n{line.partition(':')[0]}:" not in f"\n{text}"]
        return self.write(name, "".join(others) + text)

    def load(self, text: str, *rows: dict[str, Any], limit: int | None = None) -> Concept:
        """The concept of a suite of these keys over the rows of `data.jsonl`, or of its own files.

        The text names its sources, unless rows are given.
        """
        if rows:
            self.write("data.jsonl", rows)
            text = f"sources: [{{file: data.jsonl}}]\n{text}"
        return load_suite_concept(self.suite(text), limit=limit)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)
