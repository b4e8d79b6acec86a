"""Make the concept `safety` from public training splits, where a user's labels would be alike.

    python -m benchmarks.public_labels --data-dir DIR --out FOLDER
    retouch edit smollm2 --concept FOLDER

The built-in pack's requests were written by us, in other words than those of public sets. Here the
harmful requests are 128 of the training split of Arditi et al. (arXiv 2406.11717; AdvBench,
MaliciousInstruct, TDC 2023), and 300 instructions of Alpaca's training split join the retain set.
Everything else, attacks and borderline requests included, is the pack's. A request is left out
where it shares a third of its words with one of JailbreakBench, HarmBench or XSTest. The harmful
requests and instructions of the validation split come from the same splits, others than those.

DIR holds the files of the tested suites, `refusal_direction_harmful.jsonl` and
`refusal_direction_harmless.jsonl` (columns instruction, split).
"""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.common import argument_parser
from retouch.concepts.concept import Concept, Example
from retouch.concepts.pack import save_pack
from retouch.concepts.registry import load_concept
from retouch.core.errors import RetouchError
from retouch.core.types import Message, Split
from retouch.suites.registry import load_suite_concept
from retouch.suites.sources import read_rows, sample
from retouch.suites.suite import Sample, Source

HARMFUL, HARMLESS = "refusal_direction_harmful.jsonl", "refusal_direction_harmless.jsonl"
TESTED = (
    "jailbreakbench",
    "harmbench",
    "harmbench-contextual",
    "harmbench-copyright",
    "xstest-safe",
    "xstest-unsafe",
)
MAX_SHARED_WORDS = 1 / 3
COUNTS: dict[Split, int] = {"train": 128, "validation": 56}
ORDINARY: dict[Split, tuple[str, int]] = {"train": ("train", 300), "validation": ("val", 100)}
REPLACED = ("harmful", "refused", "attack", "prefilled")


def harmful_requests(folder: Path) -> list[str]:
    """The harmful requests of the training split that are not near a tested one, shuffled.

    Raises:
        DataError: a file cannot be read.
    """
    tested = [
        _words(one.prompt[-1].content)
        for name in TESTED
        for one in load_suite_concept(name, folder).examples["test"]
    ]
    found = instructions(folder, HARMFUL, "train")
    found = [text for text in found if overlap(_words(text), tested) < MAX_SHARED_WORDS]
    random.Random(0).shuffle(found)
    return found


def instructions(folder: Path, file: str, split: str) -> list[str]:
    """The instructions of a split of a file.

    Raises:
        DataError: the file cannot be read, or has no such split.
    """
    source = Source(file=file, where={"split": split})
    return [str(row.find("instruction")) for row in read_rows([source], file, [folder])]


def _words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]{4,}", text.lower()))


def overlap(words: set[str], others: Iterable[set[str]]) -> float:
    """The largest share of words in common, as intersection over union."""
    return max(len(words & other) / max(1, len(words | other)) for other in others)


def public_safety(folder: Path) -> Concept:
    """The concept.

    Raises:
        DataError: a file cannot be read.
    """
    concept, requests = load_concept("safety"), iter(harmful_requests(folder))
    examples = dict(concept.examples)
    for split, count in COUNTS.items():
        chosen = [next(requests) for _ in range(count)]
        name, number = ORDINARY[split]
        ordinary = [
            Example((Message("user", text),), "ordinary", group="alpaca")
            for text in sample(instructions(folder, HARMLESS, name), [Sample(count=number, seed=0)])
        ]
        examples[split] = (*_with_requests(examples[split], chosen), *ordinary)
    return replace(concept, name="public-safety", examples=examples, hash="")


def _with_requests(examples: Sequence[Example], requests: Sequence[str]) -> Iterator[Example]:
    """The examples with other harmful requests; those that none is left for are dropped."""
    old = {one.entity: one.prompt[-1].content for one in examples if one.label == "harmful"}
    new = dict(zip(old, requests, strict=False))
    for one in examples:
        if one.label not in REPLACED:
            yield one
        elif one.entity in new:
            text = one.prompt[-1].content
            if old[one.entity] not in text:  # a template that changes the request's words
                continue
            text = text.replace(old[one.entity], new[one.entity])
            prompt = (*one.prompt[:-1], Message("user", text))
            yield replace(one, prompt=prompt, response=None)


def main() -> None:
    """Parse the options and write the folder."""
    parser = argument_parser(__doc__)
    parser.add_argument("--data-dir", type=Path, required=True, help="the published files")
    parser.add_argument("--out", type=Path, default=Path("build/public-safety"))
    options = parser.parse_args()
    try:
        concept = public_safety(options.data_dir)
        shutil.rmtree(options.out, ignore_errors=True)
        save_pack(concept, options.out)
    except RetouchError as error:
        parser.exit(error.exit_code, f"{error}\n")
    for split in COUNTS:
        labels = sorted({one.label for one in concept.examples[split]})
        counts = (f"{len(concept.select(split, [label]))} {label}" for label in labels)
        print(f"{split}: {', '.join(counts)}")
    print(f"Written to {options.out}.")


if __name__ == "__main__":
    main()
