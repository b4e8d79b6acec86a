"""Measure a model on concepts: each response is generated once and scored for all that need it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import zip_longest
from typing import TYPE_CHECKING, Literal

from retouch.concepts.chat import prompt_ids, tokenize_chat
from retouch.concepts.concept import Concept, Example, MetricSpec
from retouch.core.errors import DataError
from retouch.core.types import (
    CHOICE_SCORERS,
    KL_SCORERS,
    RESPONSE_SCORERS,
    Message,
    Record,
    Sample,
    Score,
    Split,
)
from retouch.evaluation.drift import kl_rows, mean_kl
from retouch.evaluation.scorers import check, group_gap, judge, rate
from retouch.evaluation.statistics import Rows, bootstrap_mean
from retouch.models.generate import generate
from retouch.representations.choice_probs import choice_probs
from retouch.representations.divergence import ExampleKL, token_kl

if TYPE_CHECKING:
    from retouch.models.editable_model import EditableModel

BATCH = 64  # rows whose logits are looked at together
RESPONSES = 256  # rows that are generated together

Progress = Callable[[str, int, int], None]
Asked = tuple[tuple[Message, ...], str]  # a prompt and the beginning forced on its response
Responses = Mapping[Asked, str]


@dataclass(frozen=True)
class Evaluation:
    """What was measured, and every generation that a score rests on.

    Attributes:
        records: the scores.
        samples: the generations.
        rows: for each (suite, metric) what its last score is made of: the edited model's, or the
            base's where nothing acts on it.
    """

    records: list[Record]
    samples: list[Sample]
    rows: Mapping[tuple[str, str], Rows] = field(default_factory=dict)


@dataclass(frozen=True)
class _Task:
    """A metric with its rows."""

    spec: MetricSpec
    rows: tuple[Example, ...]


def evaluate(
    editable: EditableModel,
    concepts: Sequence[Concept],
    *,
    split: Split = "test",
    limit: int | None = None,
    progress: Progress | None = None,
    max_new_tokens: int = 32,
    known: dict[Asked, str] | None = None,
) -> Evaluation:
    """Score a model on the concepts' metrics: the base and, with an adapter, the edited model.

    Args:
        editable: the model; an adapter on it is what `after` measures.
        concepts: whose metrics to measure; a (suite, metric) met twice is measured once.
        split: the rows to measure on.
        limit: at most so many rows a metric, the first of the file, as many of each of its labels;
            a gap takes half from each group.
        progress: called with what is being done, how much is done, and of how much.
        max_new_tokens: where a response is cut.
        known: the base's responses from an evaluation before, of the same model and
            `max_new_tokens`: they are not generated again, and new ones are added.

    Raises:
        DataError: a metric has no rows in the split, or rows that it cannot score.
    """
    tasks = list(_tasks(concepts, split, limit))
    scored = [task for task in tasks if task.spec.scorer in RESPONSE_SCORERS]
    # Drift is measured on texts that the base itself would write. What is to be known later on is
    # asked at once, whatever acts now, so that it does not hang on the order of evaluations.
    later = editable.edited or known is not None
    spoken = [task for task in tasks if task.spec.scorer in KL_SCORERS and later]
    answer = partial(_responses, editable, max_new_tokens=max_new_tokens, progress=progress)
    base = {} if known is None else known
    with at_rest(editable):
        new = [asked for asked in _distinct([*scored, *spoken]) if asked not in base]
        with editable.base_model():
            base.update(answer(new, what="responses of the base"))
        edited = answer(_distinct(scored), what="responses of the edit") if editable.edited else {}
        measured = _KLs(editable, base, progress)
        found = [_record(editable, task, base, edited, measured) for task in tasks]
    samples = [
        sample
        for task in scored
        for sample in (
            *_samples(task, "base", base),
            *(_samples(task, "edited", edited) if editable.edited else ()),
        )
    ]
    rows = {(record.suite, record.metric): rows for record, rows in found}
    return Evaluation([record for record, _ in found], samples, rows)


def _tasks(concepts: Sequence[Concept], split: Split, limit: int | None) -> Iterator[_Task]:
    """The metrics in order, each once, with the rows that they are measured on."""
    seen: set[tuple[str, str]] = set()
    for concept in concepts:
        for spec in concept.metrics:
            if (spec.suite, spec.metric) in seen:
                continue
            seen.add((spec.suite, spec.metric))
            rows = concept.select(split, spec.labels)
            if not rows:
                raise DataError(
                    f"Concept {concept.name}: the metric {spec.suite}/{spec.metric} has no rows: "
                    f"the {split} split holds none labelled {', '.join(spec.labels)}.",
                    "Add such rows to the split, or leave the metric out.",
                )
            check(spec, rows)
            yield _Task(spec, tuple(_first(rows, spec, limit)))


def _first(rows: list[Example], spec: MetricSpec, limit: int | None) -> list[Example]:
    # A file may hold one group, or one label, after the other, and all are needed.
    if spec.groups:
        half = None if limit is None else max(1, math.ceil(limit / 2))
        return [row for g in spec.groups for row in [r for r in rows if r.group == g][:half]]
    if limit is None or limit >= len(rows):
        return rows
    by_label = [[i for i, row in enumerate(rows) if row.label == name] for name in spec.labels]
    in_turn = [i for turn in zip_longest(*by_label) for i in turn if i is not None]
    return [rows[i] for i in sorted(in_turn[:limit])]


def _distinct(tasks: Iterable[_Task]) -> list[Asked]:
    """Every (prompt, prefill) of the tasks, once."""
    return list(dict.fromkeys((row.prompt, row.prefill) for task in tasks for row in task.rows))


def _responses(
    editable: EditableModel,
    asked: Sequence[Asked],
    *,
    what: str,
    max_new_tokens: int,
    progress: Progress | None,
) -> dict[Asked, str]:
    """The model's responses as it is now; after a forced beginning, how it goes on."""
    if not asked:
        return {}
    prompts = [
        prompt_ids(editable.tokenizer, editable.rewrite_prompt(prompt), prefill)
        for prompt, prefill in asked
    ]
    tell = partial(progress, what) if progress else None
    responses = generate(
        editable, prompts, max_new_tokens=max_new_tokens, batch_size=RESPONSES, progress=tell
    )
    return dict(zip(asked, responses, strict=True))


def _record(
    editable: EditableModel, task: _Task, base: Responses, edited: Responses, kls: _KLs
) -> tuple[Record, Rows]:
    """A metric's record, and the rows of the last score in it."""
    spec, after = task.spec, None
    if spec.scorer in KL_SCORERS:
        # The base is no distance from itself.
        before, rows = Score(0.0, 0.0, 0.0, len(task.rows)), _ones([0.0] * len(task.rows))
        if editable.edited:
            after, rows = kls.score(task)
    elif spec.scorer in CHOICE_SCORERS:
        with editable.base_model():
            before, rows = _shares(editable, task)
        if editable.edited:
            after, rows = _shares(editable, task)
    else:
        before, rows = _rate(task, base)
        if editable.edited:
            after, rows = _rate(task, edited)
    return Record(spec.suite, spec.metric, spec.unit, spec.better, before, after), rows


def _rate(task: _Task, responses: Responses) -> tuple[Score, Rows]:
    counts = [judge(task.spec, row, _response(row, responses))[1] for row in task.rows]
    return rate(counts), _ones(counts)


def _shares(editable: EditableModel, task: _Task) -> tuple[Score, Rows]:
    shares = choice_probs(editable, task.rows, task.spec.choices, BATCH)
    if task.spec.scorer == "lean":
        leans = [abs(2 * share - 1) for share in shares]
        return bootstrap_mean(leans), _ones(leans)
    rows = _ones(shares, tuple(row.group for row in task.rows))
    return group_gap(task.rows, shares, task.spec.groups), rows


def _ones(values: Sequence[float], groups: tuple[str, ...] = ()) -> Rows:
    """Rows that count once each."""
    return Rows(tuple(map(float, values)), (1.0,) * len(values), groups)


def _response(row: Example, responses: Responses) -> str:
    return responses[row.prompt, row.prefill]


def _samples(
    task: _Task, model: Literal["base", "edited"], responses: Responses
) -> Iterator[Sample]:
    for row in task.rows:
        response = _response(row, responses)
        kind, counts = judge(task.spec, row, response)
        yield Sample(
            suite=task.spec.suite,
            metric=task.spec.metric,
            model=model,
            prompt=row.prompt,
            response=response,
            kind=kind,
            value=float(counts),
            prefill=row.prefill,
            group=row.group,
            entity=row.entity,
        )


class _KLs:
    """Scores of drift; metrics over the same rows share one pass of the model."""

    def __init__(self, editable: EditableModel, base: Responses, progress: Progress | None) -> None:
        self.editable, self.base, self.progress = editable, base, progress
        self.known: dict[Asked, ExampleKL] = {}

    def score(self, task: _Task) -> tuple[Score, Rows]:
        new = [asked for asked in _distinct([task]) if asked not in self.known]
        tokenizer = self.editable.tokenizer
        texts = [
            tokenize_chat(tokenizer, prompt, self.base[prompt, pre], pre) for prompt, pre in new
        ]
        given = [
            tokenize_chat(
                tokenizer, self.editable.rewrite_prompt(prompt), self.base[prompt, pre], pre
            )
            for prompt, pre in new
        ]
        tell = partial(self.progress, "drift") if self.progress else None
        kls = token_kl(self.editable, texts, BATCH, tell, given=given)
        self.known.update(zip(new, kls, strict=True))
        rows = [self.known[row.prompt, row.prefill] for row in task.rows]
        responses = task.spec.scorer == "kl_responses"
        return mean_kl(rows, responses=responses), kl_rows(rows, responses=responses)


@contextmanager
def at_rest(editable: EditableModel) -> Iterator[None]:
    """Without dropout inside; afterwards as it was."""
    training = bool(editable.model.training)
    editable.model.eval()
    try:
        yield
    finally:
        editable.model.train(training)
