"""Make suites of WinoBias and CrowS-Pairs that the pack `gender-bias` leaves unseen.

    python -m benchmarks.unseen_occupations --data-dir DIR --out FOLDER
    retouch evaluate smollm2 --adapter RUN --suite FOLDER/winobias-unseen.yaml

Of WinoBias (arXiv 1804.06876) the pairs whose two occupations are in no training or validation
example of the pack, and of CrowS-Pairs (arXiv 2010.00133) the pairs about gender.

DIR holds `winobias.jsonl` (text with both mentions in square brackets) and `crows_pairs.jsonl`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.common import argument_parser
from benchmarks.unseen_suites import suite_rows, write_suite
from retouch.concepts.registry import load_concept
from retouch.core.errors import RetouchError

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
    winobias = unseen(suite_rows("winobias", data_dir), seen_occupations())
    gender = [row for row in suite_rows("crows-pairs", data_dir) if row["bias_type"] == "gender"]
    write_suite("winobias", WINOBIAS, winobias, folder)
    write_suite("crows-pairs", CROWS, gender, folder)
    return {WINOBIAS: len(winobias), CROWS: len(gender)}


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
