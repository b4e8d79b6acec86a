"""The contrast of an edit, measured on the base model before anything is trained.

An edit moves representations of source prompts to those of target prompts. If the base model does
not behave as desired on the target, or its target responses are as likely after the source prompt,
there is nothing to move towards, and the edit cannot work whatever the method.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any, Literal, cast

import torch

from retouch.concepts.chat import TokenizedChat
from retouch.concepts.concept import Concept, DirectionSpec, Example, MetricSpec
from retouch.core.config import DataConfig, DiscriminatorConfig
from retouch.core.errors import DataError
from retouch.core.finding import LEVELS, Finding, Level
from retouch.core.formatting import show_interval, show_score, show_value
from retouch.core.serialization import to_plain
from retouch.core.types import Direction, OnEvent, Score, StageEvent
from retouch.evaluation.evaluate import base_logprobs
from retouch.evaluation.scorer import Scorer, ScoringContext
from retouch.evaluation.scorers import check_metric, shows_effect
from retouch.evaluation.statistics import bootstrap, each_once, wilson
from retouch.models.editable_model import EditableModel
from retouch.models.generate import Response
from retouch.models.segment import Segment
from retouch.representations.batch import ChatBatch, make_batches, pack
from retouch.representations.discriminator import Discriminators, States
from retouch.representations.logprobs import token_logprobs
from retouch.representations.packing import supports_packing
from retouch.task.base_responses import generate_base, join
from retouch.task.examples import (
    EditExamples,
    SampledExamples,
    build_examples,
    example_rng,
    sample_examples,
)
from retouch.task.task import EditTask

MAX_PAIRS = 48  # examples of a set whose responses are scored
MAX_RUN = 32  # of these, pairs whose log-probabilities and states are compared
MAX_GENERATED = 16  # prompts with a given response to which the base responds, too
MAX_NEW_TOKENS = 48  # of a response that is scored, where the edit generates longer ones
MAX_COMPARED = 32  # tokens of a response whose log-probability is compared
NUM_SAMPLES = 3  # responses of each kind in a report
BATCH_SIZE = 16  # chats that run together
POSITIONS = 1  # response positions whose states are classified: that of the last prompt token

# Generated targets: below the first rate with the second above the interval, the edit is stopped.
TARGET_ERROR, TARGET_ERROR_HIGH, TARGET_WARNING = 0.2, 0.5, 0.5
SOURCE_DONE = 0.95
WEAK_GAP = 0.1  # nats a token
WIDE_INTERVAL = 0.5
SEPARABLE = 0.6

ContrastSet = Literal["source", "target", "given"]

GIVE_RESPONSES = (
    "Give the target responses (column `response`), elicit them with a `context` of the direction "
    "(a system turn, demonstrations or a prefix), or take a model that behaves so."
)


@dataclass(frozen=True)
class ContrastSample:
    """A response that a rate of the report is computed from.

    Attributes:
        set: `source` or `target` for a response of the base model to such a prompt, `given` for a
            target response of the concept.
        prompt: the last user turn.
        response: its text.
        category: assigned by the scorer.
        desired: whether it shows the concept's behaviour in the direction of the edit.
        truncated: whether it was cut at the maximum length.
    """

    set: ContrastSet
    prompt: str
    response: str
    category: str
    desired: bool
    truncated: bool = False


@dataclass(frozen=True)
class ContrastReport:
    """The contrast between source and target on the base model.

    Attributes:
        concept: the name of the concept.
        direction: the direction of the edit.
        metric: the metric of the direction's effect, whose scorer decides which responses show the
            desired behaviour; empty if there is none or it scores no responses.
        better: whether the direction increases or decreases that metric.
        num_examples: how many examples of a set were compared, at most.
        paired: whether source examples have target counterparts.
        num_given: how many of the target responses the concept gives.
        source: the rate of the base's responses to source prompts that show the behaviour.
        target: the same for target prompts, under their context if there is one.
        given: the same for the target responses that the concept gives.
        gap: how much likelier the target responses are after the target prompt than after the
            source prompt: difference of the mean log-probabilities, nats a token.
        separability: held-out accuracy of linear classifiers of the states of source and target;
            0.5 is chance.
        layers: the layers whose states were classified, 0-based.
        samples: at most three responses of each kind.
        findings: errors first, then warnings.
        seconds: the duration of the check.
    """

    concept: str
    direction: Direction
    metric: str
    better: Literal["higher", "lower"]
    num_examples: int
    paired: bool
    num_given: int
    source: Score | None
    target: Score | None
    given: Score | None
    gap: Score | None
    separability: Score | None
    layers: tuple[int, ...]
    samples: tuple[ContrastSample, ...]
    findings: tuple[Finding, ...]
    seconds: float = 0.0

    @property
    def level(self) -> Level:
        """The most severe level of the findings."""
        return next(
            (level for level in LEVELS if any(one.level == level for one in self.findings)), "ok"
        )

    @property
    def errors(self) -> list[Finding]:
        """The findings that stop the edit."""
        return [finding for finding in self.findings if finding.level == "error"]

    @property
    def rows(self) -> list[tuple[str, Score, str]]:
        """What was measured: a description, the score and its unit."""
        desired = f"show {self.metric}" if self.better == "higher" else f"lack {self.metric}"
        found = [
            (f"responses to the source that {desired}", self.source, "rate"),
            (f"responses to the target that {desired}", self.target, "rate"),
            (f"given responses that {desired}", self.given, "rate"),
            ("gap in log-probability, nats a token", self.gap, "nats a token"),
            ("accuracy of classifying the states", self.separability, "rate"),
        ]
        return [(name, score, unit) for name, score, unit in found if score is not None]

    def to_plain(self) -> dict[str, Any]:
        """The report as JSON values, with `level`."""
        return {"level": self.level, **to_plain(self)}

    def __str__(self) -> str:
        rows = [
            f"{name}: {show_score(score, unit)}, n {score.n}" for name, score, unit in self.rows
        ]
        return "\n".join([*rows, *(f"{one.level}: {one.message}" for one in self.findings)])


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
    return _check(editable, concept, direction, data, seed, train, layers)


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

    gap = separability = None
    same = paired and all(a.ids == b.ids for a, b in zip(source, target, strict=True))
    if paired or set(spec.source) != set(spec.target):
        with editable.base_model(), torch.no_grad():
            packed = supports_packing(editable)
            before, source_states = _run(editable, source[:MAX_RUN], layers, packed)
            after, target_states = before, source_states
            if not same:
                after, target_states = _run(editable, target[:MAX_RUN], layers, packed)
        if paired:
            gap = bootstrap(each_once((after - before).tolist()))
        separability = _separability(source_states, target_states, layers)
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
        separability=separability,
        layers=layers if separability else (),
        samples=tuple(samples),
        findings=(),
    )
    findings = _findings(
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
            example.prompt[-1].content,
            response.text,
            category,
            (value == 1.0) == (spec.effect_better == "higher"),
            response.truncated,
        )
        for example, response, category, value in zip(
            examples, responses, categories, result.values.sums, strict=True
        )
    ]


def _run(
    editable: EditableModel, chats: Sequence[TokenizedChat], layers: tuple[int, ...], packed: bool
) -> tuple[torch.Tensor, list[States]]:
    """Run chats through the model, with at most `MAX_COMPARED` tokens of their responses.

    Returns:
        The mean log-probability `[chats]` of each response, nats a token, and for each chat its
        states `[positions, hidden]` by layer.
    """
    chats = [replace(one, ids=one.ids[: one.start + MAX_COMPARED]) for one in chats]
    last = editable.layout.depth - 1
    segment = Segment(editable, last, last)
    hooked = tuple(sorted({*layers, last}))
    logprobs = torch.zeros(len(chats))
    states: list[States] = [{} for _ in chats]
    # The logits are computed at the response positions alone, below.
    supported = signature(editable.base.forward).parameters
    extra = {"logits_to_keep": 1} if "logits_to_keep" in supported else {}
    for batch in _batches(editable, chats, packed):
        packing = batch.packing(editable.base.dtype, editable.device)
        found = segment.forward_states(batch.ids, hooked, {**packing, **extra})
        rows, at = (one.to(editable.device) for one in batch.response_positions())
        values = token_logprobs(segment.logits(found[last][rows, at]), batch.response_tokens())
        numbers = batch.response_chats().to(values.device)
        rows, at = (one.to(editable.device) for one in batch.response_positions(POSITIONS))
        owner = batch.response_chats(POSITIONS).to(values.device)
        read = {layer: found[layer][rows, at].float() for layer in layers}
        for number, i in enumerate(batch.index):
            logprobs[i] = values[numbers == number].mean()
            states[i] = {layer: one[owner == number] for layer, one in read.items()}
    return logprobs, states


def _batches(
    editable: EditableModel, chats: Sequence[TokenizedChat], packed: bool
) -> Iterator[ChatBatch]:
    pad = int(editable.tokenizer.pad_token_id)
    if not packed:
        yield from make_batches(chats, BATCH_SIZE, pad)
        return
    for begin in range(0, len(chats), BATCH_SIZE):
        yield pack(range(begin, min(begin + BATCH_SIZE, len(chats))), chats, pad)


def _separability(
    source: Sequence[States], target: Sequence[States], layers: tuple[int, ...]
) -> Score | None:
    """The held-out accuracy of linear classifiers of source and target, one for each layer.

    In two folds, so that every example is classified by classifiers that were not trained on it or
    on its counterpart. An example's class is that of the mean over its positions and the layers.
    """
    if min(len(source), len(target)) < 4:
        return None
    size = source[0][layers[0]].shape[-1]
    device = source[0][layers[0]].device
    config = DiscriminatorConfig(hidden_size=0, learning_rate=1e-2)
    correct = 0
    for fold in range(2):
        fitted = Discriminators(layers, size, config, seed=0).to(device)
        mine, other = _stack(source[fold::2]), _stack(target[fold::2])
        fitted.standardise({layer: torch.cat([mine[layer], other[layer]]) for layer in layers})
        fitted.fit(other, mine, steps=100)
        correct += sum(_log_odds(fitted, one) <= 0 for one in source[1 - fold :: 2])
        correct += sum(_log_odds(fitted, one) > 0 for one in target[1 - fold :: 2])
    return wilson(correct, len(source) + len(target))


def _stack(states: Sequence[States]) -> States:
    return {layer: torch.cat([one[layer] for one in states]) for layer in states[0]}


@torch.no_grad()
def _log_odds(fitted: Discriminators, states: Mapping[int, torch.Tensor]) -> float:
    parts = [one(states[layer]).mean() for layer, one in fitted.by_layer.items()]
    return float(torch.stack(parts).mean())


def _findings(
    report: ContrastReport,
    *,
    elicited: bool,
    same: bool = False,
    choices: bool = False,
    instruction: bool = False,
) -> list[Finding]:
    """What follows from the measurements.

    Args:
        report: the measurements.
        elicited: whether the target is under a context.
        same: whether every source prompt is its own target prompt.
        choices: whether responses that begin with the effect's choices are trained on.
        instruction: whether the target is the source under an instruction.
    """
    responses_given = report.num_given * 2 >= report.num_examples
    found = [
        *_target_findings(
            report, elicited=elicited, responses_given=responses_given, instruction=instruction
        ),
        *_gap_findings(report, same=same, responses_given=responses_given),
    ]
    if report.given is not None and report.given.value < TARGET_WARNING:
        found.append(
            Finding(
                "warning",
                "contrast-responses",
                f"Of the given target responses, {_rate(report.given)} {_desired(report)}.",
                "Correct the responses, or the `effect` of the direction.",
            )
        )
    if report.source is not None and report.source.value >= SOURCE_DONE:
        found.append(
            Finding(
                "warning",
                "contrast-done",
                f"The base behaves as desired already: {_rate(report.source)} of its responses to "
                f"the source {_desired(report)}.",
                "Use source prompts to which it responds otherwise.",
            )
        )
    states = report.separability
    if states is not None and states.value < SEPARABLE and not same and not choices:
        found.append(
            Finding(
                "warning",
                "contrast-states",
                f"The states of source and target differ little at the layers "
                f"{', '.join(map(str, report.layers))}: classified with accuracy {_rate(states)}.",
                "Use target prompts that differ more from the source, or more examples.",
            )
        )
    return found or [Finding("ok", "contrast", _summary(report))]


def _target_findings(
    report: ContrastReport, *, elicited: bool, responses_given: bool, instruction: bool
) -> Iterator[Finding]:
    target, source, code = report.target, report.source, "contrast-target"
    if target is None or (responses_given and not elicited):
        return
    message = f"Of the base's responses to the target, {_rate(target)} {_desired(report)}"
    if responses_given:
        if target.value < TARGET_WARNING:
            message += ": the context does not elicit the target, and the given responses teach it."
            hint = "Use a stronger context, or none."
            yield Finding("warning", code, message, hint)
        return
    if target.value < TARGET_ERROR and target.high < TARGET_ERROR_HIGH:
        message += (
            ": it does not follow the instruction when it is prompted with it."
            if instruction
            else ": there is nothing to move the source towards."
        )
        yield Finding("error", code, message, GIVE_RESPONSES)
    elif target.value < TARGET_WARNING:
        yield Finding("warning", code, f"{message}.", GIVE_RESPONSES)
    elif source is not None and target.value <= source.value < SOURCE_DONE:
        message += f", of those to the source {_rate(source)}."
        yield Finding("warning", code, message, GIVE_RESPONSES)
    if target.high - target.low > WIDE_INTERVAL:
        message = f"The rates are of {target.n} responses, and their intervals are wide."
        yield Finding("warning", "contrast-few", message, "Use more examples.")


def _gap_findings(
    report: ContrastReport, *, same: bool, responses_given: bool
) -> Iterator[Finding]:
    gap, code = report.gap, "contrast-gap"
    if gap is None:
        return
    if same:
        message = (
            "Source and target prompts are the same, so their states do not differ: only the loss "
            "of the target responses (`sft_weight`) teaches them."
        )
        level: Level = "warning" if responses_given else "error"
        yield Finding(level, code, message, "" if responses_given else GIVE_RESPONSES)
        return
    message = (
        f"The target responses are {_nats(abs(gap.value))} a token "
        f"{'likelier' if gap.value > 0 else 'less likely'} after the target prompts than after the "
        f"source prompts (95 % interval {show_interval(gap, 'nats')}, n {gap.n})"
    )
    if gap.value <= 0:
        level = "warning" if responses_given else "error"
        message += ": the states of the target do not lead to them."
        yield Finding(level, code, message, GIVE_RESPONSES)
    elif gap.low <= 0 or gap.value < WEAK_GAP:
        yield Finding("warning", code, f"{message}, a weak contrast.", GIVE_RESPONSES)


def _desired(report: ContrastReport) -> str:
    """The predicate of responses that behave as the direction desires."""
    return f"{'show' if report.better == 'higher' else 'lack'} `{report.metric}`"


def _rate(score: Score) -> str:
    interval = show_interval(score, "rate")
    return f"{show_value(score.value, 'rate')} (95 % interval {interval}, n {score.n})"


def _nats(value: float) -> str:
    return "0 nats" if math.isclose(value, 0) else f"{show_value(value, 'nats')} nats"


def _summary(report: ContrastReport) -> str:
    """The measurements in a sentence."""
    parts = []
    for name, score in (("source", report.source), ("target", report.target)):
        if score is not None:
            parts.append(f"{name} {show_value(score.value, 'rate')}")
    if parts:
        parts = [f"{report.metric} of responses: {', '.join(parts)}"]
    if report.gap is not None:
        parts.append(f"gap {_nats(report.gap.value)} a token")
    if report.separability is not None:
        parts.append(f"states classified {show_value(report.separability.value, 'rate')}")
    return "; ".join(parts) or "nothing to compare: source and target have the same examples"
