"""Measure a model on concepts; each response is generated once for all metrics that use it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import TYPE_CHECKING

from retouch.concepts.chat import prompt_ids
from retouch.concepts.concept import Concept, Example, MetricSpec
from retouch.core.errors import DataError
from retouch.core.metrics import Metrics
from retouch.core.types import Progress, Record, Sample, Split, no_progress
from retouch.evaluation.judge import Judge
from retouch.evaluation.judge_scorer import Judged, judged_metrics
from retouch.evaluation.likelihood_scorers import questions
from retouch.evaluation.model_context import ModelContext, PromptKey, prompt_key
from retouch.evaluation.response_classifier import UNCLASSIFIED
from retouch.evaluation.scorer import Need, Scorer, ScoringResult
from retouch.evaluation.scorers import check_metric
from retouch.evaluation.statistics import ExampleValues, paired_p
from retouch.models.base_responses import cached_base_responses
from retouch.models.generate import Response, generate_responses

if TYPE_CHECKING:
    from retouch.models.editable_model import EditableModel

MAX_NEW_TOKENS = 64  # the default maximum length of a response


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation.

    Attributes:
        metrics: the scores of the base and of the edited model.
        samples: every generation that a score is computed from.
        values: for each (suite, metric) the values of the examples: the edited model's, or the
            base's where nothing acts on it.
        base_values: the same for the base model.
        notes: what a report states beside the scores, in sentences.
        p_values: for each (suite, metric) the two-sided p of no change on the same examples
            (`statistics.paired_p`); empty for a base model.
    """

    metrics: Metrics
    samples: list[Sample]
    values: Mapping[tuple[str, str], ExampleValues] = field(default_factory=dict)
    base_values: Mapping[tuple[str, str], ExampleValues] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    p_values: Mapping[tuple[str, str], float] = field(default_factory=dict)


def joined(evaluations: Sequence[Evaluation]) -> Evaluation:
    """Evaluations of other metrics of the same model as one."""
    return Evaluation(
        Metrics(record for one in evaluations for record in one.metrics),
        [sample for one in evaluations for sample in one.samples],
        {key: values for one in evaluations for key, values in one.values.items()},
        {key: values for one in evaluations for key, values in one.base_values.items()},
        tuple(dict.fromkeys(note for one in evaluations for note in one.notes)),
        {key: p for one in evaluations for key, p in one.p_values.items()},
    )


@dataclass(frozen=True)
class BaseResults:
    """What evaluations of one base model found, for the next one of it. They add to it.

    Attributes:
        responses: by prompt.
        scores: of a metric on its examples.
    """

    responses: dict[PromptKey, Response] = field(default_factory=dict)
    scores: dict[tuple[MetricSpec, tuple[Example, ...], int], ScoringResult] = field(
        default_factory=dict
    )


@dataclass(frozen=True)
class _Task:
    """A metric with its scorer, its examples, and the maximum length of their responses."""

    spec: MetricSpec
    scorer: Scorer
    examples: tuple[Example, ...]
    max_new_tokens: int

    def needs(self, *needs: Need) -> bool:
        return not self.scorer.needs.isdisjoint(needs)


def evaluate(
    editable: EditableModel,
    concepts: Sequence[Concept],
    *,
    suites: Sequence[Concept] = (),
    split: Split = "test",
    limit: int | None = None,
    progress: Progress = no_progress,
    max_new_tokens: int = MAX_NEW_TOKENS,
    known: BaseResults | None = None,
    judge: Judge | None = None,
) -> Evaluation:
    """Measure the concepts' metrics on the base model and, if anything acts on it, the edited one.

    Args:
        editable: the model.
        concepts: the concepts; a metric that several of them declare is measured once.
        suites: public evaluation sets, whose test splits are measured whole.
        split: the split of the concepts to measure on.
        limit: maximum number of examples per metric: the first ones of the split, equally many of
            each label, or of each group where the metric names `groups`; of questions with choices,
            the number of questions.
        progress: called while responses are generated and texts are compared.
        max_new_tokens: maximum length of a response, in tokens, where a metric has none of its own.
        known: results of the base from an earlier evaluation of the same model, with the same
            judge. They are not computed again, and new ones are added.
        judge: a model that classifies responses where a metric counts refusals (default: rules).

    Raises:
        DataError: a metric has no examples in the split, or cannot be scored on them.
        ConfigError: the package of a scorer cannot be imported.
    """
    judged = None if judge is None else Judged(judge, progress)
    tasks = [
        *_tasks(concepts, split, limit, max_new_tokens, judged),
        *_tasks(suites, "test", None, max_new_tokens, judged),
    ]
    edited = editable.edited
    base = known or BaseResults()
    base_responses = base.responses
    # With `known`, responses that only the KL divergence needs are generated even for a base model:
    # later evaluations need them, and the result must not depend on which one came first.
    base_needs: tuple[Need, ...] = ("responses",)
    if edited or known is not None:
        base_needs = ("responses", "base_responses")

    def respond(keys: Sequence[PromptKey], model: str) -> dict[PromptKey, Response]:
        """The responses of the model as it is now; after a prefill, how it continues."""
        generate = cached_base_responses if model == "base" else generate_responses
        found: dict[PromptKey, Response] = {}
        for length in dict.fromkeys(key[2] for key in keys):
            some = [key for key in keys if key[2] == length]
            responses = generate(
                editable,
                [
                    prompt_ids(editable.tokenizer, editable.rewrite_prompt(prompt), prefill)
                    for prompt, prefill, _ in some
                ],
                max_new_tokens=length,
                progress=lambda _, done, total: progress(
                    f"responses of the {model} model", done, total
                ),
            )
            found.update(zip(some, responses, strict=True))
        return found

    with evaluation_mode(editable):
        missing = [key for key in _prompt_keys(tasks, *base_needs) if key not in base_responses]
        if missing:
            with editable.base_model():
                base_responses.update(respond(missing, "base"))
        shared = base_responses, progress, max_new_tokens
        contexts = [ModelContext(editable, "base", base_responses, *shared)]
        if edited:
            responses = respond(_prompt_keys(tasks, "responses"), "edited")
            contexts.append(ModelContext(editable, "edited", responses, *shared))
        found = _score(tasks, contexts, base)
        return replace(found, notes=(*found.notes, *(judged.notes() if judged else ())))


def _score(
    tasks: Sequence[_Task], contexts: Sequence[ModelContext], base: BaseResults
) -> Evaluation:
    """Score every metric on the base and, if there is one, on the edited model."""
    records: list[Record] = []
    samples: list[Sample] = []
    values: dict[tuple[str, str], ExampleValues] = {}
    base_values: dict[tuple[str, str], ExampleValues] = {}
    p_values: dict[tuple[str, str], float] = {}
    notes: list[str] = []
    for task in tasks:
        spec = task.spec
        own = [replace(context, max_new_tokens=task.max_new_tokens) for context in contexts]
        key = spec, task.examples, task.max_new_tokens
        if key not in base.scores:
            base.scores[key] = task.scorer.score(spec, task.examples, own[0])
        edited = [task.scorer.score(spec, task.examples, one) for one in own[1:]]
        results = [base.scores[key], *edited]
        scores = [result.score for result in results]
        records.append(Record(spec.suite, spec.metric, spec.unit, spec.better, *scores))
        values[spec.suite, spec.metric] = results[-1].values
        base_values[spec.suite, spec.metric] = results[0].values
        if len(results) == 2:
            p_values[spec.suite, spec.metric] = paired_p(results[0].values, results[1].values)
        if task.needs("responses"):
            for context, result in zip(own, results, strict=True):
                notes += unclassified_notes(
                    f"{spec.suite}/{spec.metric}",
                    context.model,
                    result.categories,
                    result.values.counts,
                )
                samples += context.samples(spec, task.examples, result)
    return Evaluation(
        Metrics(records), samples, values, base_values, tuple(notes), p_values=p_values
    )


def unclassified_notes(
    metric: str, model: str, categories: Sequence[str], counts: Sequence[float]
) -> Iterator[str]:
    """How many responses of a model are not in the rate of a metric, and why.

    Args:
        metric: the name of the metric, with its suite.
        model: `base` or `edited`.
        categories: the category of each response.
        counts: for each response whether it is in the rate; 0 if not.
    """
    for category, reason in UNCLASSIFIED.items():
        pairs = zip(categories, counts, strict=False)
        count = sum(one == category and not counted for one, counted in pairs)
        if count:
            yield (
                f"{metric}: {count} of {len(categories)} responses of the {model} model "
                f"could not be classified ({category}: {reason}); they "
                "are not in the rate."
            )


def measured_examples(
    concepts: Sequence[Concept], split: Split, limit: int | None
) -> list[Example]:
    """The examples that `evaluate` measures these concepts on.

    Raises:
        DataError: a metric has no examples in the split, or cannot be scored on them.
        ConfigError: the package of a scorer cannot be imported.
    """
    tasks = _tasks(concepts, split, limit, MAX_NEW_TOKENS, None)
    return list(dict.fromkeys(example for task in tasks for example in task.examples))


def _tasks(
    concepts: Sequence[Concept],
    split: Split,
    limit: int | None,
    max_new_tokens: int,
    judged: Judged | None,
) -> Iterator[_Task]:
    """The metrics in order, each once, with the examples that they are measured on."""
    seen: set[tuple[str, str]] = set()
    for concept in concepts:
        for spec in concept.metrics:
            if (spec.suite, spec.metric) in seen:
                continue
            seen.add((spec.suite, spec.metric))
            examples = concept.select(split, spec.labels)
            if not examples:
                raise DataError(
                    f"Concept {concept.name}: the metric {spec.suite}/{spec.metric} has no "
                    f"{split} examples labelled {' or '.join(spec.labels)}.",
                    "Add such examples to the split, or remove the metric.",
                    code="metric-empty",
                )
            scorer = check_metric(spec, examples)
            if scorer.by_question:
                chosen = tuple(one for each in questions(examples)[:limit] for one in each)
            else:
                chosen = tuple(_limited(examples, spec, limit))
            length = spec.max_new_tokens or max_new_tokens
            pairs = [(spec, scorer)] if judged is None else judged_metrics(spec, scorer, judged)
            for one, its_scorer in pairs:
                yield _Task(one, its_scorer, chosen, length)


def _limited(examples: list[Example], spec: MetricSpec, limit: int | None) -> list[Example]:
    # A file may list one group, or one label, after the other, and all of them are needed.
    if spec.groups:
        half = None if limit is None else max(1, math.ceil(limit / 2))
        return [one for g in spec.groups for one in [e for e in examples if e.group == g][:half]]
    if limit is None or limit >= len(examples):
        return examples
    by_label = [[i for i, one in enumerate(examples) if one.label == name] for name in spec.labels]
    in_turn = [i for turn in zip_longest(*by_label) for i in turn if i is not None]
    return [examples[i] for i in sorted(in_turn[:limit])]


def _prompt_keys(tasks: Sequence[_Task], *needs: Need) -> list[PromptKey]:
    """The distinct prompts and prefills of the tasks whose scorers have any of the needs."""
    chosen = [task for task in tasks if task.needs(*needs)]
    return list(
        dict.fromkeys(
            prompt_key(example, task.max_new_tokens) for task in chosen for example in task.examples
        )
    )


@contextmanager
def evaluation_mode(editable: EditableModel) -> Iterator[None]:
    """Switch dropout off inside the context; the training mode is restored on exit."""
    training = bool(editable.model.training)
    editable.model.eval()
    try:
        yield
    finally:
        editable.model.train(training)
