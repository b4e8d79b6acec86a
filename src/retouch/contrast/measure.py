"""Measure the contrast of a task or a concept on the base model."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import cast

import torch

from retouch.concepts.concept import Concept, DirectionSpec, Example, MetricSpec
from retouch.contrast.findings import find_findings
from retouch.contrast.report import ContrastReport, ContrastSample, ContrastSet
from retouch.contrast.states import run_chats, separability
from retouch.core.config import DataConfig
from retouch.core.errors import DataError
from retouch.core.finding import LEVELS
from retouch.core.types import Direction, OnEvent, Score, StageEvent
from retouch.evaluation.model_context import base_logprobs
from retouch.evaluation.scorer import Scorer, ScoringContext
from retouch.evaluation.scorers import check_metric, shows_effect
from retouch.evaluation.statistics import bootstrap, each_once, wilson
from retouch.models.editable_model import EditableModel
from retouch.models.generate import Response
from retouch.representations.packing import Packer
from retouch.task.base_responses import generate_base, join
from retouch.task.examples import EditExamples, build_examples
from retouch.task.sampling import SampledExamples, example_rng, sample_examples
from retouch.task.task import EditTask

MAX_PAIRS = 48  # examples of a set whose responses are scored
MAX_RUN = 32  # of these, pairs whose log-probabilities and states are compared
MAX_GENERATED = 16  # prompts with a given response to which the base responds, too
MAX_NEW_TOKENS = 48  # of a response that is scored, where the edit generates longer ones
NUM_SAMPLES = 3  # responses of each kind in a report


def check_contrast(editable: EditableModel, task: EditTask) -> ContrastReport:
    """Measure the contrast of a task on the base model, which is unchanged.

    Responses of a model that is large enough for the cache are not generated again.

    Args:
        editable: the model; adapters and interventions are switched off.
        task: the task of the edit.

    Returns:
        The measurements and the findings: whether the edit has anything to move towards.
    """
    return _check(
        editable,
        task.concept,
        task.direction,
        task.data,
        task.seed,
        task.train,
        task.layers.read,
        task.packer,
    )


def check_concept(
    editable: EditableModel,
    concept: Concept,
    direction: Direction,
    data: DataConfig,
    seed: int,
    *,
    layers: Sequence[int] = (),
    on_event: OnEvent,
) -> ContrastReport:
    """Measure the contrast of a concept without building the whole task of an edit.

    The examples are the first ones of the edit's.

    Args:
        editable: the model; adapters and interventions are switched off.
        concept: the concept.
        direction: whether it would be raised or lowered.
        data: which examples the edit would use.
        seed: of the examples.
        layers: whose states are classified (default: three between the middle and the end).
        on_event: receives the progress.

    Raises:
        DataError: the concept has no such direction, or no examples of a set.
    """
    data = data.model_copy(
        update={
            "num_examples": min(data.num_examples, MAX_PAIRS),
            "num_retain": 0,
            "retain_concepts": (),
            "prefill_tokens": 0,
            "max_base_tokens": data.max_new_tokens,  # so that they are not generated twice
        }
    )
    train = build_examples(
        editable,
        concept,
        direction,
        "train",
        data,
        seed,
        lambda *progress: on_event(StageEvent("responses", *progress)),
        shows_effect(concept, direction),
    )
    return _check(editable, concept, direction, data, seed, train, layers, Packer(editable))


def require_contrast(report: ContrastReport, *, ignore: bool = False) -> None:
    """Check that nothing in a report stops the edit.

    Raises:
        DataError: the report has an error, and it is not to be ignored.
    """
    if report.errors and not ignore:
        first = report.errors[0]
        hint = f"{first.hint} To train in spite of it, set `ignore_contrast`.".lstrip()
        raise DataError(first.message, hint, code=first.code)


def _check(
    editable: EditableModel,
    concept: Concept,
    direction: Direction,
    data: DataConfig,
    seed: int,
    train: EditExamples,
    layers: Sequence[int],
    packer: Packer,
) -> ContrastReport:
    began = time.monotonic()
    rng = example_rng(seed, "train")
    sampled = sample_examples(rng, concept, direction, "train", data, seed)
    spec = concept.directions[direction]
    paired = bool(train.counterparts)
    count = min(MAX_PAIRS, len(sampled.source), len(sampled.target))
    source, target = train.source[:count], train.target[:count]
    examples = replace(sampled, source=sampled.source[:count], target=sampled.target[:count])
    given = [one.response is not None for one in examples.target]
    layers = tuple(layers) or _spread(editable.layout.depth)

    metric, scorer = _find_scorer(concept, spec, examples)
    rates: dict[ContrastSet, Score] = {}
    samples: list[ContrastSample] = []
    if metric is not None and scorer is not None:
        for name, scored, responses in _response_sets(editable, examples, spec, data):
            if "base_logprobs" in scorer.needs:  # which takes two passes for each response
                scored, responses = scored[:MAX_GENERATED], responses[:MAX_GENERATED]
            found = _score(editable, metric, scorer, spec, name, scored, responses)
            if found:
                rates[name] = wilson(sum(one.desired for one in found), len(found))
                samples += found[:NUM_SAMPLES]

    gap = accuracy = None
    same = paired and all(a.ids == b.ids for a, b in zip(source, target, strict=True))
    if paired or set(spec.source) != set(spec.target):
        with editable.base_model(), torch.no_grad():
            before, source_states = run_chats(editable, source[:MAX_RUN], layers, packer)
            after, target_states = before, source_states
            if not same:
                after, target_states = run_chats(editable, target[:MAX_RUN], layers, packer)
        if paired:
            gap = bootstrap(each_once((after - before).tolist()))
        accuracy = separability(source_states, target_states, layers)
    report = ContrastReport(
        concept=concept.name,
        direction=direction,
        metric=metric.metric if metric and rates else "",
        better=spec.effect_better,
        num_examples=count,
        paired=paired,
        num_given=sum(given),
        source=rates.get("source"),
        target=rates.get("target"),
        given=rates.get("given"),
        gap=gap,
        separability=accuracy,
        layers=layers if accuracy else (),
        samples=tuple(samples),
        findings=(),
    )
    findings = find_findings(
        report,
        elicited=spec.context is not None,
        same=same,
        choices=train.group_gap is not None,
        instruction=metric is not None and metric.scorer.startswith("follows"),
    )
    findings.sort(key=lambda finding: LEVELS.index(finding.level))
    seconds = round(time.monotonic() - began, 3)
    return replace(report, findings=tuple(findings), seconds=seconds)


def _spread(depth: int) -> tuple[int, ...]:
    """Three layers between the middle and the end of a model."""
    return tuple(sorted({depth // 2, depth * 3 // 4, depth - 1}))


def _find_scorer(
    concept: Concept, spec: DirectionSpec, examples: SampledExamples
) -> tuple[MetricSpec | None, Scorer | None]:
    """The effect's metric and its scorer, where it scores responses alone and applies to them."""
    metric = next((one for one in concept.metrics if one.metric == spec.effect), None)
    if metric is None:
        return None, None
    with suppress(DataError):  # such as examples without `accept`
        scorer = check_metric(metric, _scored(examples))
        if "responses" in scorer.needs <= {"responses", "base_logprobs"}:
            return metric, scorer
    return None, None


def _scored(examples: SampledExamples) -> list[Example]:
    """The source examples as they are scored: with what is accepted of their counterparts."""
    if not examples.paired:
        return examples.source
    return [
        replace(one, accept=other.accept or one.accept)
        for one, other in zip(examples.source, examples.target, strict=True)
    ]


def _response_sets(
    editable: EditableModel, examples: SampledExamples, spec: DirectionSpec, data: DataConfig
) -> Iterator[tuple[ContrastSet, list[Example], list[Response]]]:
    """The responses of each set with their examples: the base's to both sets, and those given.

    The base's are as long as those that the edit learns, which are in the cache then.
    """
    longest = min(MAX_NEW_TOKENS, data.max_new_tokens)
    elicited = spec.context is not None and data.elicit
    scored = {"source": _scored(examples), "target": examples.target}
    sets: tuple[tuple[ContrastSet, Sequence[Example], str, bool], ...] = (
        ("source", examples.source, "", True),
        ("target", examples.target, spec.context.prefix if spec.context else "", elicited),
    )
    for name, of_set, prefix, every in sets:
        chosen = range(len(of_set))
        if not every and all(one.response is not None for one in of_set):
            chosen = range(min(MAX_GENERATED, len(of_set)))
        continued = generate_base(
            editable,
            [(of_set[i].prompt, join(of_set[i].prefill, prefix)) for i in chosen],
            max_new_tokens=longest,
        )
        responses = [Response(join(prefix, one.text), one.truncated) for one in continued]
        yield name, [scored[name][i] for i in chosen], responses
    given = [one for one in examples.target if one.response is not None]
    yield "given", given, [Response(one.response or "") for one in given]


@dataclass(frozen=True)
class _Known:
    """The part of a `ScoringContext` that a scorer of responses alone uses."""

    editable: EditableModel
    texts: Sequence[str]

    def responses(self, examples: Sequence[Example]) -> list[str]:
        return list(self.texts)

    def base_logprobs(self, examples: Sequence[Example]) -> list[float]:
        return base_logprobs(self.editable, examples)


def _score(
    editable: EditableModel,
    metric: MetricSpec,
    scorer: Scorer,
    spec: DirectionSpec,
    name: ContrastSet,
    examples: Sequence[Example],
    responses: Sequence[Response],
) -> list[ContrastSample]:
    """The responses with whether each shows the behaviour; none for a score that is no rate."""
    if not examples:
        return []
    context = cast("ScoringContext", _Known(editable, [response.text for response in responses]))
    result = scorer.score(metric, examples, context)
    if not set(result.values.sums) <= {0.0, 1.0}:
        return []
    categories = result.categories or ("",) * len(examples)
    return [
        ContrastSample(
            name,
            example.last_turn,
            response.text,
            category,
            (value == 1.0) == (spec.effect_better == "higher"),
            response.truncated,
        )
        for example, response, category, value in zip(
            examples, responses, categories, result.values.sums, strict=True
        )
    ]
