"""Tell TruthfulQA's correct from its wrong answers by hidden states: is it more than their style?

    python -m benchmarks.truth_probe --data-dir DIR [--model MODEL]

A linear probe reads the state of an answer's last token, after its question. It is trained on four
fifths of the questions that train and validate (`benchmarks.public_truthfulness`), and tested on
the rest, so that every question is tested once: the share of questions whose correct answer gets
the higher score than the wrong one. In the second column each question has the answers of another
one, where no answer is true of its question: what a probe still finds is the style of correct
answers. In the last two the wrong answer is the one that shares most words with the correct one.

What the first column has above the second is what the states have of truth, and what an edit that
is trained on these answers could learn beside the style. Intervals are 95 %, Wilson's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks.common import add_load_options, argument_parser, load_config
from benchmarks.figures import table
from benchmarks.public_labels import overlap
from benchmarks.public_truthfulness import Question, divide, read_questions, word_set
from retouch.concepts.chat import TokenizedChat, tokenize_chat
from retouch.core.errors import RetouchError
from retouch.core.formatting import show_score
from retouch.core.types import Message, Score
from retouch.evaluation.statistics import wilson
from retouch.models.editable_model import EditableModel
from retouch.models.load import load
from retouch.models.segment import Segment
from retouch.representations.batch import make_batches

FOLDS, BATCH_SIZE, EVERY = 5, 32, 3  # every third layer is read
PENALTY = 1e-3  # on the squared weights of a probe, whose inputs are standardised

Answers = list[tuple[str, str]]
"""A correct and a wrong answer of each question."""


def first_answers(questions: Sequence[Question]) -> Answers:
    """The answers that an edit is trained on."""
    return [(one.correct[0], one.wrong[0]) for one in questions]


def similar_answers(questions: Sequence[Question]) -> Answers:
    """The correct and the wrong answer of each question that share most words (Jaccard index)."""

    def shared(pair: tuple[str, str]) -> float:
        return overlap(word_set(pair[0]), [word_set(pair[1])])

    return [max(((c, w) for c in one.correct for w in one.wrong), key=shared) for one in questions]


@torch.no_grad()
def last_states(
    editable: EditableModel, questions: Sequence[Question], answers: Sequence[str]
) -> dict[int, torch.Tensor]:
    """The states `[questions, hidden]` of the answers' last tokens by layer, 0-based."""
    tokenizer, depth = editable.tokenizer, editable.layout.depth
    layers = tuple(range(EVERY - 1, depth, EVERY))
    segment = Segment(editable, max(layers), max(layers))
    chats: list[TokenizedChat] = [
        tokenize_chat(tokenizer, (Message("user", one.text),), answer, truncated=True)
        for one, answer in zip(questions, answers, strict=True)
    ]
    found: dict[int, list[torch.Tensor]] = {layer: [] for layer in layers}
    order: list[int] = []
    for batch in make_batches(chats, BATCH_SIZE, int(tokenizer.pad_token_id)):
        states = segment.forward_states(batch.ids, layers)
        last = torch.tensor(batch.ends) - 1
        for layer in layers:
            found[layer].append(states[layer][torch.tensor(batch.rows), last].float().cpu())
        order += batch.index
    place = torch.tensor(order).argsort()
    return {layer: torch.cat(parts)[place] for layer, parts in found.items()}


def pair_accuracy(correct: torch.Tensor, wrong: torch.Tensor) -> Score:
    """The share of pairs whose correct state `[n, hidden]` gets the higher score in its fold."""
    fold, hits = torch.arange(len(correct)) % FOLDS, 0
    for number in range(FOLDS):
        train, test = fold != number, fold == number
        # A pair's difference is classified, so that only what tells the two apart is read.
        difference = correct[train] - wrong[train]
        scale = difference.std(0) + 1e-6
        weights = fit_probe(difference / scale)
        hits += int((((correct[test] - wrong[test]) / scale) @ weights > 0).sum())
    return wilson(hits, len(correct))


def fit_probe(differences: torch.Tensor) -> torch.Tensor:
    """The weights `[hidden]` of a logistic regression that finds differences `[n, hidden]` > 0."""
    weights = torch.zeros(differences.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        total = F.softplus(-(differences @ weights)).mean() + PENALTY * weights.square().sum()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return weights.detach()


def measure(
    editable: EditableModel, questions: Sequence[Question], answers: Answers
) -> dict[int, Score]:
    """The share of pairs told apart, by layer."""
    correct, wrong = (last_states(editable, questions, one) for one in zip(*answers, strict=True))
    return {layer: pair_accuracy(correct[layer], wrong[layer]) for layer in correct}


def probe_table(editable: EditableModel, questions: Sequence[Question]) -> str:
    """A row for each layer, 0-based."""
    columns = {}
    for name, answers in (
        ("first answers", first_answers(questions)),
        ("similar answers", similar_answers(questions)),
    ):
        columns[name] = measure(editable, questions, answers)
        columns[f"{name} of another"] = measure(editable, questions, answers[1:] + answers[:1])
    layers = next(iter(columns.values()))
    rows = [["layer", *columns]]
    rows += [[str(i), *(show_score(one[i], "share") for one in columns.values())] for i in layers]
    return table(rows)


def main(words: Sequence[str] | None = None) -> None:
    """Parse the options, measure and print."""
    parser = argument_parser(__doc__)
    parser.add_argument("--model", default="smollm2", help="a name, folder or hub id")
    parser.add_argument("--data-dir", type=Path, required=True, help="the published files")
    add_load_options(parser)
    options = parser.parse_args(words)
    try:
        divided = divide(read_questions(options.data_dir))
        editable = load(options.model, load_config(options))
        questions = [*divided["train"], *divided["validation"]]
        print(f"{len(questions)} questions, {options.model}\n")
        print(probe_table(editable, questions))
    except RetouchError as error:
        parser.exit(error.exit_code, f"{error}\n")


if __name__ == "__main__":
    main()
