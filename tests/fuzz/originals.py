"""The valid files that the cases damage, made once."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from helpers.pocket_edit import small_settings
from helpers.tiny_gguf import write_gguf
from helpers.tiny_models import tiny_model, tiny_tokenizer
from retouch.concepts.pack import save_pack
from retouch.concepts.registry import load_concept
from retouch.pipeline import edit

CHAT = ("--prompt", "w1 w2", "--max-new-tokens", "2")

SUITE = """\
name: mine
title: Mine
url: https://example.org
licence: MIT
sources: [{file: rows.jsonl}]
prompt: "{goal}"
scorers: [refusal]
better: higher
"""
SETTINGS = "train:\n  rounds: 2\n  learning_rate: 0.01\ndata: {num_examples: 8, num_retain: 8}\n"
TEMPLATE = "{% for m in messages %}<|user|>{{ m['content'] }}<|end|>{% endfor %}<|assistant|>"


@dataclass(frozen=True)
class Originals:
    """The folder of the valid files."""

    folder: Path

    def files(self, *names: str) -> dict[str, bytes]:
        """Files, and those of folders, by relative path."""
        found = {}
        for name in names:
            path = self.folder / name
            for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
                if file.is_file():
                    found[str(file.relative_to(self.folder))] = file.read_bytes()
        return found


def make_originals(folder: Path) -> Originals:
    """Make the files; an edit of pocket takes some seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"prompt": f"Question {i} of {kind}?", "label": kind, "pair": str(i)}
        for i in range(20)
        for kind in ("positive", "negative")
    ]
    (folder / "data.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    table = ["prompt,label,pair", *(f"{r['prompt']},{r['label']},{r['pair']}" for r in rows)]
    (folder / "data.csv").write_text("\n".join(table) + "\n")
    _write_parquet(folder / "data.parquet", rows)
    (folder / "rows.jsonl").write_text("".join(f'{{"goal": "Goal {i}"}}\n' for i in range(4)))
    (folder / "suite.yaml").write_text(SUITE)
    (folder / "settings.yaml").write_text(SETTINGS)
    (folder / "template.jinja").write_text(TEMPLATE)
    save_pack(load_concept("tone"), folder / "pack")
    tiny_model().save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    write_gguf(folder / "model.gguf")
    edit(
        "pocket",
        concept="pocket-safety",
        config=small_settings({"train.rounds": 1, "evaluation.limit": 2}),
        output_dir=folder / "run",
        on_event=lambda _: None,
    )
    return Originals(folder)


def _write_parquet(file: Path, rows: list[dict[str, str]]) -> None:
    from datasets import Dataset

    Dataset.from_list(rows).to_parquet(str(file))
