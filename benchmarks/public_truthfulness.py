"""Make the concept `truthfulness` from TruthfulQA, with questions held out, and its control.

    python -m benchmarks.public_truthfulness --data-dir DIR --out FOLDER
    retouch edit smollm2 --concept FOLDER/concept --direction raise
    retouch evaluate smollm2 --adapter RUN --suite FOLDER/truthfulqa-unseen.yaml

Of TruthfulQA's 817 questions (arXiv 2109.07958) 400 train and 80 validate, drawn at random; the
others are held out, but for those that share half of their words with one of the 480. A training
question comes with the first of its correct answers, which is learned, and the first of its wrong
ones, which is unlearned (`npo_weight`). Retained are the facts, surprising true claims and ordinary
requests of the built-in pack.

The control has the same questions with the answers of other questions, correct and wrong: the same
styles of answer without the truth. What it gains on the held-out questions is the gain of style.

DIR holds `truthfulqa_mc.jsonl` (question, mc1_targets, mc2_targets).
"""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.common import argument_parser
from benchmarks.public_labels import overlap
from benchmarks.unseen_suites import suite_rows, write_suite
from retouch.concepts.concept import Concept, Example
from retouch.concepts.pack import save_pack
from retouch.concepts.registry import load_concept
from retouch.core.errors import RetouchError
from retouch.core.types import Message, Split
from retouch.suites.registry import load_suite_concept

SUITE = "truthfulqa"
UNSEEN = "truthfulqa-unseen"
COUNTS: Mapping[Split, int] = {"train": 400, "validation": 80}
MAX_SHARED_WORDS = 0.5
RETAINED = ("fact", "true-claim", "denied-claim", "ordinary")
SETTINGS = {"loss": {"npo_weight": 1.0}, "train": {"max_drift": 0.03, "strengths": [1.0]}}
MEASURED = {"true-answer", "true-claim", "fact", "ordinary", "question"}


@dataclass(frozen=True)
class Question:
    """A question with its answers."""

    text: str
    correct: tuple[str, ...]
    wrong: tuple[str, ...]


def read_questions(folder: Path) -> list[Question]:
    """The questions in the order of the file.

    Raises:
        DataError: the file cannot be read.
    """
    found: dict[str, Question] = {}
    for one in load_suite_concept(SUITE, folder).examples["test"]:
        text, answer = one.prompt[-1].content, one.response or ""
        question = found.setdefault(text, Question(text, (), ()))
        if one.label == "mc2-true":
            found[text] = replace(question, correct=(*question.correct, answer))
        elif one.label == "mc2-false":
            found[text] = replace(question, wrong=(*question.wrong, answer))
    return list(found.values())


def divide(questions: Sequence[Question]) -> dict[Split, list[Question]]:
    """The questions of each split; a test question is unlike those of the others."""
    shuffled = list(questions)
    random.Random(0).shuffle(shuffled)
    train = shuffled[: COUNTS["train"]]
    validation = shuffled[len(train) : len(train) + COUNTS["validation"]]
    seen = [word_set(one.text) for one in (*train, *validation)]
    test = [
        one
        for one in shuffled[len(train) + len(validation) :]
        if overlap(word_set(one.text), seen) < MAX_SHARED_WORDS
    ]
    return {"train": train, "validation": validation, "test": test}


def word_set(text: str) -> set[str]:
    return set(re.findall(r"[a-z0-9]+", text.lower()))


def truthfulness(divided: Mapping[Split, Sequence[Question]], *, shuffled: bool) -> Concept:
    """The concept.

    Args:
        divided: the questions of each split.
        shuffled: whether each question has the answers of another one, for the control.
    """
    pack = load_concept("truthfulness")
    spec = replace(pack.directions["raise"], source=("popular",))
    examples: dict[Split, tuple[Example, ...]] = {}
    for split, questions in divided.items():
        answers = [(one.correct[0], one.wrong[0]) for one in questions]
        if shuffled and split != "test":
            answers = answers[1:] + answers[:1]
        kept = [one for one in pack.examples[split] if one.label in RETAINED]
        examples[split] = (*_examples(questions, answers), *kept)
    metrics = tuple(one for one in pack.metrics if set(one.labels) & MEASURED)
    return replace(
        pack,
        name="public-truthfulness" + ("-shuffled" if shuffled else ""),
        examples=examples,
        directions={**pack.directions, "raise": spec},
        metrics=metrics,
        settings={"raise": SETTINGS},
        hash="",
    )


def _examples(
    questions: Sequence[Question], answers: Sequence[tuple[str, str]]
) -> Iterator[Example]:
    for number, (question, (correct, wrong)) in enumerate(zip(questions, answers, strict=True)):
        prompt, name = (Message("user", question.text),), str(number)
        yield Example(prompt, "question", pair=name, entity=name)
        yield Example(prompt, "truthful", response=correct, pair=name, entity=name)
        yield Example(prompt, "true-answer", response=question.correct[0], pair=name, entity=name)
        yield Example(prompt, "popular", response=wrong, pair=name, entity=name)


def write(folder: Path, data_dir: Path) -> dict[Split, int]:
    """Write the concept, the control and the suite of the held-out questions.

    Returns:
        The number of questions of each split.

    Raises:
        DataError: the file cannot be read.
    """
    divided = divide(read_questions(data_dir))
    shutil.rmtree(folder, ignore_errors=True)
    save_pack(truthfulness(divided, shuffled=False), folder / "concept")
    save_pack(truthfulness(divided, shuffled=True), folder / "control")
    unseen = {one.text for one in divided["test"]}
    kept = [row for row in suite_rows(SUITE, data_dir) if row["question"] in unseen]
    write_suite(SUITE, UNSEEN, kept, folder)
    return {split: len(questions) for split, questions in divided.items()}


def main() -> None:
    """Parse the options and write the folder."""
    parser = argument_parser(__doc__)
    parser.add_argument("--data-dir", type=Path, required=True, help="the published files")
    parser.add_argument("--out", type=Path, default=Path("build/public-truthfulness"))
    options = parser.parse_args()
    try:
        counts = write(options.out, options.data_dir)
    except RetouchError as error:
        parser.exit(error.exit_code, f"{error}\n")
    print(f"Questions: {', '.join(f'{count} {split}' for split, count in counts.items())}.")
    print(f"Written to {options.out}.")


if __name__ == "__main__":
    main()
