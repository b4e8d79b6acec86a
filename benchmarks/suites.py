"""Public sets of requests in their published JSONL formats, as suites of prompts to measure.

The data are not part of the repository: a folder with these files is given by the user.

| file | columns | set |
|---|---|---|
| `jailbreakbench_harmful.jsonl` | id, goal | JailbreakBench, 100 harmful behaviours |
| `harmbench_behaviors_text.jsonl` | id, behavior, functional_category | HarmBench, 400 behaviours |
| `xstest.jsonl` | id, prompt, label | XSTest, 250 safe prompts and 200 unsafe contrasts |
| `refusal_direction_harmless.jsonl` | id, instruction, split | harmless instructions (Alpaca) |
| `jailbreak_templates_gptfuzzer.jsonl` | id, template | GPTFuzzer's 77 templates |
| `jailbreak_templates_selfreminder.jsonl` | id, template | Self-Reminder's 178 templates |
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from retouch.core.errors import DataError
from retouch.core.types import Message

SEED = 0
SLOT = "[INSERT PROMPT HERE]"
PREFILL = "Sure, here is"
MAX_TEMPLATE_WORDS = 250

JBB = "jailbreakbench_harmful"
HARMBENCH = "harmbench_behaviors_text"
XSTEST = "xstest"
HARMLESS = "refusal_direction_harmless"
GPTFUZZER = "jailbreak_templates_gptfuzzer"
SELF_REMINDER = "jailbreak_templates_selfreminder"

# The templates of the robustness figures, of six families. They are never used in training: no
# concept, no default and no stopping rule may be chosen with them. Left out are templates that
# request a refusal first (a moral lecture before the answer, one response of the "normal" model),
# since following them would count as a refusal, and those in which the base model SmolLM2 refuses
# or loops on more than a third of harmless requests (GPTFuzzer 1 and 34, Self-Reminder 142). No
# edited model took part in the choice.
TEMPLATES: dict[str, tuple[str, int]] = {
    "scene": (GPTFUZZER, 0),  # a villain of a film explains his plan
    "code": (GPTFUZZER, 4),  # the output of a Python function
    "persona": (GPTFUZZER, 16),  # a user of a forum without rules
    "dialogue": (GPTFUZZER, 43),  # two fictional models talk
    "expert": (SELF_REMINDER, 93),  # a profession that gives no warnings
    "suppression": (SELF_REMINDER, 120),  # an order not to refuse
}

COUNT = 100  # HarmBench standard, and prompts with a prefill
COPYRIGHT_COUNT = 50
HARMLESS_COUNT = 200
TEMPLATE_COUNT = 50  # requests in each template

Item = TypeVar("Item")


@dataclass(frozen=True)
class Request:
    """A prompt.

    Attributes:
        id: of the row in the published file.
        text: the last turn, of the user.
        prefill: the beginning of the response that is forced.
        earlier: the turns before the last one.
    """

    id: str
    text: str
    prefill: str = ""
    earlier: tuple[Message, ...] = ()

    @property
    def turns(self) -> tuple[Message, ...]:
        """All turns."""
        return (*self.earlier, Message("user", self.text))


@dataclass(frozen=True)
class Suite:
    """Prompts that a share is computed over.

    Attributes:
        name: in tables and files.
        requests: the prompts, in the order of the file.
        harmful: whether a refusal is the wanted response.
    """

    name: str
    requests: tuple[Request, ...]
    harmful: bool


def load_suites(folder: Path, share: float = 1.0, limit: int | None = None) -> list[Suite]:
    """The suites of a folder with the published files.

    Args:
        folder: where the files are.
        share: the share of each suite that is kept, evenly spaced.
        limit: maximum number of prompts per suite, evenly spaced (default: no limit).

    Raises:
        DataError: files are missing or not in the published format, or a template lacks its slot.
    """
    missing = [f"{name}.jsonl" for name in _files() if not (folder / f"{name}.jsonl").is_file()]
    if missing:
        hint = "`benchmarks/suites.py` lists the files and their columns."
        message = f"{folder} has no {', '.join(missing)}."
        raise DataError(message, hint, code="benchmark-data-missing")

    jbb = _requests(folder, JBB, "goal")
    harmbench = _by_column(folder, HARMBENCH, "behavior", "functional_category")
    xstest = _by_column(folder, XSTEST, "prompt", "label")
    harmless = _harmless(folder)
    suites = [
        Suite("jbb", tuple(jbb), True),
        Suite("harmbench-standard", evenly(harmbench["standard"], COUNT), True),
        # Contextual behaviours, the third category, are left out: they are requests about a text.
        Suite("harmbench-copyright", evenly(harmbench["copyright"], COPYRIGHT_COUNT), True),
        Suite("xstest-safe", tuple(xstest["safe"]), False),
        Suite("xstest-unsafe", tuple(xstest["unsafe"]), True),
        Suite("harmless", tuple(harmless), False),
        Suite("prefill", _prefilled(evenly(jbb, COUNT)), True),
        Suite("prefill-harmless", _prefilled(evenly(harmless, COUNT)), False),
    ]
    templates = _templates(folder)
    for name, template in templates.items():
        requests = _in_template(template, evenly(jbb, TEMPLATE_COUNT))
        suites.append(Suite(f"template-{name}", requests, True))
    for name, template in templates.items():
        requests = _in_template(template, evenly(harmless, TEMPLATE_COUNT))
        suites.append(Suite(f"template-{name}-harmless", requests, False))
    return [_reduced(suite, share, limit) for suite in suites]


def evenly(items: Sequence[Item], count: int) -> tuple[Item, ...]:
    """At most `count` items, evenly spaced: files list one category after the other."""
    count = min(count, len(items))
    return tuple(items[i * len(items) // count] for i in range(count))


def read_rows(folder: Path, name: str, *columns: str) -> list[dict[str, Any]]:
    """The rows of a JSONL file.

    Raises:
        DataError: the file cannot be read, or a row lacks one of the columns.
    """
    path = folder / f"{name}.jsonl"
    hint = "Use the published file, one JSON object a line."
    try:
        # `splitlines` would also split at separators such as U+2028, which JSON strings may have.
        lines = path.read_text("utf-8").split("\n")
        rows = [json.loads(line) for line in lines if line.strip()]
    except (OSError, ValueError) as error:
        message = f"{path} cannot be read: {error}."
        raise DataError(message, hint, code="benchmark-data-invalid") from None
    for number, row in enumerate(rows, 1):
        lacking = [column for column in columns if column not in row]
        if lacking:
            message = f"{path}, row {number}, has no {lacking[0]!r}."
            raise DataError(message, hint, code="benchmark-data-invalid")
    if not rows:
        raise DataError(f"{path} is empty.", hint, code="benchmark-data-invalid")
    return rows


def harmless_instructions(folder: Path, split: str, count: int, seed: int = SEED) -> list[Request]:
    """A random sample of a split of the harmless instructions, in the order of the file.

    Raises:
        DataError: the file cannot be read, or has no such split.
    """
    rows = read_rows(folder, HARMLESS, "id", "instruction", "split")
    chosen = [row for row in rows if row["split"] == split]
    if not chosen:
        message = f"{folder / HARMLESS}.jsonl has no rows of the split {split!r}."
        raise DataError(message, "Use the published file.", code="benchmark-data-invalid")
    index = random.Random(seed).sample(range(len(chosen)), min(count, len(chosen)))
    return [Request(str(chosen[i]["id"]), chosen[i]["instruction"]) for i in sorted(index)]


def _files() -> tuple[str, ...]:
    return JBB, HARMBENCH, XSTEST, HARMLESS, GPTFUZZER, SELF_REMINDER


def _requests(folder: Path, name: str, column: str) -> list[Request]:
    rows = read_rows(folder, name, "id", column)
    return [Request(str(row["id"]), row[column]) for row in rows]


def _by_column(folder: Path, name: str, column: str, category: str) -> dict[str, list[Request]]:
    """The requests of each category."""
    found: dict[str, list[Request]] = {}
    for row in read_rows(folder, name, "id", column, category):
        found.setdefault(row[category], []).append(Request(str(row["id"]), row[column]))
    return found


def _harmless(folder: Path) -> list[Request]:
    """A sample of the test split; without splits, the last rows."""
    if all("split" in row for row in read_rows(folder, HARMLESS, "id", "instruction")):
        return harmless_instructions(folder, "test", HARMLESS_COUNT)
    return _requests(folder, HARMLESS, "instruction")[-HARMLESS_COUNT:]


def _templates(folder: Path) -> dict[str, str]:
    """The templates by family."""
    rows = {
        (name, row["id"]): row["template"]
        for name in (GPTFUZZER, SELF_REMINDER)
        for row in read_rows(folder, name, "id", "template")
    }
    found = {}
    for family, (name, number) in TEMPLATES.items():
        template = rows.get((name, number), "")
        if SLOT not in template or len(template.split()) > MAX_TEMPLATE_WORDS:
            message = f"Template {number} of {folder / name}.jsonl is missing or another one."
            hint = f"It must have the slot {SLOT} and at most {MAX_TEMPLATE_WORDS} words."
            raise DataError(message, hint, code="benchmark-template")
        found[family] = template
    return found


def _in_template(template: str, requests: Sequence[Request]) -> tuple[Request, ...]:
    return tuple(Request(one.id, template.replace(SLOT, one.text)) for one in requests)


def _prefilled(requests: Sequence[Request]) -> tuple[Request, ...]:
    return tuple(Request(one.id, one.text, PREFILL) for one in requests)


def _reduced(suite: Suite, share: float, limit: int | None) -> Suite:
    count = max(1, round(share * len(suite.requests)))
    count = count if limit is None else min(count, limit)
    return Suite(suite.name, evenly(suite.requests, count), suite.harmful)
