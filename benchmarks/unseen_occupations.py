"""Make suites of WinoBias and CrowS-Pairs that the pack `gender-bias` leaves unseen.

    python -m benchmarks.unseen_occupations --data-dir DIR --out FOLDER
    retouch evaluate smollm2 --adapter RUN --suite FOLDER/winobias-unseen.yaml

Of WinoBias (arXiv 1804.06876) the pairs whose two occupations are in no training or validation
example of the pack, and of CrowS-Pairs (arXiv 2010.00133) the pairs about gender.

DIR holds `winobias.jsonl` (text with both mentions in square brackets) and `crows_pairs.jsonl`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from benchmarks.common import argument_parser
from retouch.concepts.registry import load_concept
from retouch.core.errors import RetouchError
from retouch.suites.registry import load_suite
from retouch.suites.sources import read_rows
from retouch.suites.suite import PairSuite

WINOBIAS, CROWS = "winobias-unseen", "crows-pairs-gender"


def seen_occupations() -> set[str]:
    """The occupations of the pack's training and validation examples, in lower case."""
    pack = load_concept("gender-bias")
    return {
        one.entity.lower()
        for split in ("train", "validation")
        for one in pack.examples[split]
        if one.entity
    }


def unseen(rows: Iterable[dict[str, Any]], seen: set[str]) -> list[dict[str, Any]]:
    """The rows of WinoBias whose text names none of the occupations."""
    pattern = re.compile(rf"\b({'|'.join(map(re.escape, sorted(seen)))})s?\b", re.IGNORECASE)
    return [row for row in rows if not pattern.search(row["sentence"])]


def write(folder: Path, data_dir: Path) -> dict[str, int]:
    """Write the suites; the number of rows of each.

    Raises:
        DataError: a file cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    counts = {}
    for name, original in ((WINOBIAS, "winobias"), (CROWS, "crows-pairs")):
        suite = load_suite(original)
        assert isinstance(suite, PairSuite)
        sources = [one.model_copy(update={"where": {}}) for one in suite.sources if one.file]
        rows = [dict(row.values) for row in read_rows(sources[:1], original, [data_dir])]
        if name == WINOBIAS:
            rows = unseen(rows, seen_occupations())
        else:
            rows = [row for row in rows if row["bias_type"] == "gender"]
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
        values = suite.model_dump(mode="json", exclude_defaults=True, exclude={"sources", "sample"})
        values |= {"kind": "pairs", "name": name, "sources": [{"file": f"{name}.jsonl"}]}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(values, sort_keys=False), "utf-8")
        counts[name] = len(rows)
    return counts


def main() -> None:
    """Parse the options and write the folder."""
    parser = argument_parser(__doc__)
    parser.add_argument("--data-dir", type=Path, required=True, help="the published files")
    parser.add_argument("--out", type=Path, default=Path("build/unseen-occupations"))
    options = parser.parse_args()
    try:
        counts = write(options.out, options.data_dir)
    except RetouchError as error:
        parser.exit(error.exit_code, f"{error}\n")
    for name, count in counts.items():
        print(f"{options.out / name}.yaml: {count} rows")


if __name__ == "__main__":
    main()
