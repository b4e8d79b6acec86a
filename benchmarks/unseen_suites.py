"""Write a suite of some rows of a built-in one: those that an edit leaves unseen."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from retouch.suites.registry import load_suite
from retouch.suites.sources import read_rows


def suite_rows(name: str, data_dir: Path) -> list[dict[str, Any]]:
    """All rows of a built-in suite's first published file.

    Raises:
        DataError: the file cannot be read.
    """
    source = next(one for one in load_suite(name).sources if one.file)
    every = source.model_copy(update={"where": {}})
    return [dict(row.values) for row in read_rows([every], name, [data_dir])]


def write_suite(original: str, name: str, rows: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Write `NAME.yaml`, which is as the built-in suite, and its rows, `NAME.jsonl`."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    values = load_suite(original).model_dump(
        mode="json", exclude_defaults=True, exclude={"sources", "sample"}
    )
    values |= {"name": name, "sources": [{"file": f"{name}.jsonl"}]}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(values, sort_keys=False), "utf-8")
