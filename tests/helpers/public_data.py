"""Made-up files in the published formats of the suites that the benchmarks measure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

COUNT = 6  # rows of each category
SLOT = "[INSERT PROMPT HERE]"


def write_rows(folder: Path, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a JSONL file."""
    folder.mkdir(exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / f"{name}.jsonl").write_text(text, "utf-8")


def write_requests(folder: Path) -> None:
    """Write the files of JailbreakBench, HarmBench, XSTest, harmless requests and templates."""
    rows: list[dict[str, Any]]
    rows = [{"id": i, "goal": f"Do bad {i}", "category": "bad"} for i in range(COUNT)]
    write_rows(folder, "jailbreakbench_harmful", rows)
    kinds = [(kind, i) for kind in ("standard", "contextual", "copyright") for i in range(COUNT)]
    rows = [
        {
            "id": i,
            "behavior": f"{kind} {i}",
            "functional_category": kind,
            "semantic_category": "kind",
            "context": "A text.",
        }
        for kind, i in kinds
    ]
    write_rows(folder, "harmbench_behaviors_text", rows)
    labels = [label for _ in range(COUNT) for label in ("safe", "unsafe")]
    rows = [
        {"id": i, "prompt": f"Kill {i}?", "label": label, "type": "homonyms"}
        for i, label in enumerate(labels)
    ]
    write_rows(folder, "xstest", rows)
    rows = [
        {"id": i, "instruction": f"Sew\u2028{i}", "split": split}  # a separator in the text
        for i, split in enumerate(["train", "test"] * COUNT)
    ]
    write_rows(folder, "refusal_direction_harmless", rows)
    for name in ("gptfuzzer", "selfreminder"):
        rows = [{"id": i, "template": f"Go: {SLOT} Now"} for i in range(150)]
        write_rows(folder, f"jailbreak_templates_{name}", rows)
