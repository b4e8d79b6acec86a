"""Sample the examples of an edit and generate the base model's responses to them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from retouch.concepts.chat import TokenizedChat, tokenize_chat
from retouch.concepts.concept import Concept, Context, DirectionSpec, Example, MetricSpec
from retouch.concepts.registry import load_concept
from retouch.core.config import DataConfig
from retouch.core.errors import DataError
from retouch.core.types import Direction, Message, Progress, Split, no_progress
from retouch.models.editable_model import EditableModel
from retouch.models.generate import Response
from retouch.task.base_responses import base_responses, respond
from retouch.task.prefill import add_prefills, retain_openings

Shows = Callable[[Example, str], bool]
"""Whether a response to an example shows the behaviour that an edit aims at."""

# Fewer than for training: they are run after every round.
MAX_VALIDATION, MAX_VALIDATION_RETAIN = 32, 128


@dataclass(frozen=True)
class EditExamples:
    """The tokenized examples of an edit, of one split.

    Attributes:
        source: source prompts; with pairs, with the target response.
        counterparts: the target counterpart of each source example, under the direction's context
            if there is one, with the same response; empty without pairs.
        target: target prompts with the target responses.
        retain: the retain set with the base model's own responses.
        retain_nontarget: which retain examples the discriminators see as non-target examples.
        groups: the group of each source example, such as the attack family or the stereotype.
        chosen: prompts with the responses that supervised methods learn (TRL's name).
        rejected: the prompts of `chosen` with the responses to unlearn; empty if unknown.
        demonstrations: prompts without a context, each with its target response.
        group_gap: the metric of the concept's effect, where it is a gap between two groups.
        reduce_gap: whether the direction reduces that gap, or increases it.
        source_examples: the source examples as the concept has them.
    """

    source: Sequence[TokenizedChat]
    counterparts: Sequence[TokenizedChat]
    target: Sequence[TokenizedChat]
    retain: Sequence[TokenizedChat]
    retain_nontarget: Sequence[bool]
    groups: Sequence[str] = ()
    chosen: Sequence[TokenizedChat] = ()
    rejected: Sequence[TokenizedChat] = ()
    demonstrations: Sequence[tuple[tuple[Message, ...], str]] = ()
    group_gap: MetricSpec | None = None
    reduce_gap: bool = False
    source_examples: Sequence[Example] = ()


@dataclass(frozen=True)
class SampledExamples:
    """The examples of an edit as the concept has them.

    Attributes:
        source: source examples; a response of theirs is the one to unlearn.
        target: target examples, under the direction's context if there is one; with pairs, the
            counterpart of each source example. A response of theirs is the one to learn.
        retain: the retain set.
        paired: whether there are pairs.
    """

    source: list[Example]
    target: list[Example]
    retain: list[Example]
    paired: bool


def example_rng(seed: int, split: Split) -> random.Random:
    """The random generator that the examples of a split are sampled with."""
    return random.Random(f"{seed}:{split}")


def sample_examples(
    rng: random.Random,
    concept: Concept,
    direction: Direction,
    split: Split,
    data: DataConfig,
    seed: int,
) -> SampledExamples:
    """Sample source, target and retain examples of a split; no model is run.

    Raises:
        DataError: a set has no examples in the split.
    """
    spec = find_direction(concept, direction)
    limit = data.num_examples if split == "train" else min(data.num_examples, MAX_VALIDATION)
    source, target, paired = _sample_sides(rng, concept, direction, split, data, limit)
    if spec.context is not None:
        source, target = _apply_context(spec.context, source, target, paired)
    limit = data.num_retain if split == "train" else min(data.num_retain, MAX_VALIDATION_RETAIN)
    retain = _sample_evenly(rng, concept, split, spec.retain, limit)
    for name in data.retain_concepts:
        other = load_concept(name)
        specs = other.directions.values()
        labels = dict.fromkeys(label for one in specs for label in (*one.source, *one.target))
        share = limit // len(data.retain_concepts)
        other_rng = random.Random(f"{seed}:{split}:{name}")
        retain += _sample_evenly(other_rng, other, split, list(labels), share)
    return SampledExamples(source, target, retain, paired)


def find_direction(concept: Concept, direction: Direction) -> DirectionSpec:
    """The example sets of a direction.

    Raises:
        DataError: the concept has no such direction.
    """
    if direction not in concept.directions:
        raise DataError(
            f"The concept {concept.name} has no direction `{direction}`.",
            "It provides retain examples for other concepts; edit one of those.",
            code="direction-missing",
        )
    return concept.directions[direction]


def build_examples(
    editable: EditableModel,
    concept: Concept,
    direction: Direction,
    split: Split,
    data: DataConfig,
    seed: int,
    progress: Progress = no_progress,
    shows: Shows | None = None,
) -> EditExamples:
    """Sample the examples of a split and tokenize them with their responses.

    Where source examples have a target counterpart, both get the target response: the counterpart's
    own `response`, or what the base model generates for it, under the direction's context if there
    is one. A counterpart is the target example of the same pair or, under a context, the source
    example itself. What the model itself says under the context is learned with less change than
    a given response, so it is preferred where it shows the behaviour.

    Args:
        editable: the base model.
        concept: the edited concept.
        direction: the direction of the edit.
        split: the split.
        data: which examples.
        seed: of the sample.
        progress: called while responses are generated.
        shows: whether a response shows the desired behaviour (default: given responses are used).

    Raises:
        DataError: a set has no examples in the split.
    """
    rng = example_rng(seed, split)
    sampled = sample_examples(rng, concept, direction, split, data, seed)
    source, target, paired = sampled.source, sampled.target, sampled.paired
    spec = concept.directions[direction]

    def generate(
        examples: Sequence[Example], max_new_tokens: int, prefix: str = ""
    ) -> list[Response]:
        return respond(
            editable,
            examples,
            [prefix] * len(examples),
            max_new_tokens=max_new_tokens,
            progress=progress,
        )

    prefix = spec.context.prefix if spec.context else ""
    elicited = shows is not None and spec.context is not None and data.elicit
    without = [replace(one, response=None) for one in target] if elicited else target
    target_responses = generate(without, data.max_new_tokens, prefix)
    if elicited:
        given = zip(target, target_responses, strict=True)
        target_responses = [_prefer_own(one, response, shows) for one, response in given]
    source_responses = generate(source, data.max_base_tokens)
    retain_responses = generate(sampled.retain, data.max_base_tokens)

    def tokenize(examples: Sequence[Example], responses: Sequence[Response]) -> list[TokenizedChat]:
        return [
            tokenize_chat(
                editable.tokenizer,
                example.prompt,
                response.text,
                example.prefill,
                truncated=response.truncated,
            )
            for example, response in zip(examples, responses, strict=True)
        ]

    target_chats = tokenize(target, target_responses)
    base_chats = tokenize(source, source_responses)
    retain = tokenize(sampled.retain, retain_responses)
    source_chats = tokenize(source, target_responses) if paired else base_chats
    gap, reduce_gap = _find_gap(concept, spec, source), spec.effect_better == "lower"
    chosen, rejected = source_chats, base_chats
    if not paired and gap is not None:
        chosen, rejected = _choice_responses(editable, source, gap, reduce_gap, data.max_new_tokens)
    elif not paired:
        chosen, rejected = target_chats, []
    counterparts = target_chats if paired else []
    groups = [example.group for example in source]
    # Under a context the turns of a counterpart are the context's; a demonstration needs none.
    demonstrated = source if paired and spec.context else target
    if paired and data.prefill_tokens:
        # Of examples with the same counterpart, such as a request and its wrapped form, one.
        plain = [i for i, one in enumerate(source) if one.label == spec.source[0]]
        more = add_prefills(
            rng,
            [source_chats[i] for i in plain],
            [base_chats[i] for i in plain],
            [counterparts[i] for i in plain],
            retain_openings(editable, sampled.retain, retain),
            max_tokens=data.prefill_tokens,
            per_example=data.prefills_per_example,
            counterpart_prompts=spec.context is None,
        )
        source_chats = [*source_chats, *more.source]
        counterparts = [*counterparts, *more.counterparts]
        chosen, rejected = source_chats, [*base_chats, *more.rejected]
        groups += [groups[plain[i]] for i in more.index]
    return EditExamples(
        source=source_chats,
        counterparts=counterparts,
        target=target_chats,
        retain=retain,
        retain_nontarget=[example.label not in spec.target for example in sampled.retain],
        groups=groups,
        chosen=chosen,
        rejected=rejected,
        demonstrations=[
            (example.prompt, response.text)
            for example, response in zip(demonstrated, target_responses, strict=True)
        ],
        group_gap=gap,
        reduce_gap=reduce_gap,
        source_examples=source,
    )


def _sample_sides(
    rng: random.Random,
    concept: Concept,
    direction: Direction,
    split: Split,
    data: DataConfig,
    limit: int,
) -> tuple[list[Example], list[Example], bool]:
    """At most `limit` source and target examples, and whether they are pairs."""
    spec = concept.directions[direction]
    source = _source_examples(concept, spec, split, data.source_filter)
    target = concept.select(split, spec.target)
    for name, labels, found in (("source", spec.source, source), ("target", spec.target, target)):
        if labels and not found:
            raise DataError(
                f"The concept {concept.name} has no {split} examples labelled "
                f"{' or '.join(labels)}, the {name} of the direction `{direction}`.",
                "Add some: an edit needs source and target examples.",
                code="examples-missing",
            )
    of_pair: dict[str | None, Example] = {one.pair: one for one in target if one.pair}

    def counterpart(example: Example) -> Example | None:
        itself = spec.context and (not spec.target or example.label in spec.target)
        return of_pair.get(example.pair) or (example if itself else None)

    if paired := [example for example in source if counterpart(example)]:
        source = _sample_pairs(rng, paired, limit, data.wrapped_share)
        return source, [other for one in source if (other := counterpart(one))], True
    return sample_by_group(rng, source, limit), sample_by_group(rng, target, limit), False


def _sample_pairs(
    rng: random.Random, examples: Sequence[Example], limit: int, wrapped_share: float
) -> list[Example]:
    """The source examples of at most `limit` pairs.

    A request and its wrapped forms are one labelled example. Of a share of them, the wrapped forms
    follow the plain ones.
    """
    of_pair: dict[object, list[Example]] = {}
    for number, example in enumerate(examples):
        of_pair.setdefault(example.pair or number, []).append(example)
    rest = {id(members[0]): members[1:] for members in of_pair.values()}
    chosen = sample_by_group(rng, [members[0] for members in of_pair.values()], limit)
    wrapped = [one for plain in chosen for one in rest[id(plain)]]
    return [*chosen, *sample_by_group(rng, wrapped, round(wrapped_share * len(wrapped)))]


def _prefer_own(example: Example, generated: Response, shows: Shows | None) -> Response:
    """What the base model generates, if it shows the behaviour or none is given."""
    if example.response is None or (shows is not None and shows(example, generated.text)):
        return generated
    return Response(example.response)


def _apply_context(
    context: Context, source: Sequence[Example], target: Sequence[Example], paired: bool
) -> tuple[list[Example], list[Example]]:
    """Put target examples under a context; a pair's response is the target's, or the source's."""
    if not paired:
        return list(source), [context.apply(one) for one in target]
    source_prompts, elicited = [], []
    for one, other in zip(source, target, strict=True):
        response = one.response if other.response is None else other.response
        elicited.append(replace(context.apply(other), response=response))
        # A response that is learned is not the source's own, which the base model then generates.
        taken = other is one or other.response is None
        source_prompts.append(replace(one, response=None) if taken else one)
    return source_prompts, elicited


def _source_examples(
    concept: Concept, spec: DirectionSpec, split: Split, source_filter: str | None
) -> list[Example]:
    """The source examples; the filter applies to the training split alone."""
    if source_filter is None or split != "train":
        return concept.select(split, spec.source)
    label, _, group = source_filter.partition(":")
    found = [one for one in concept.select(split, [label]) if group in ("", one.group)]
    if not found:
        raise DataError(
            f"`source_filter` {source_filter}: the concept {concept.name} has no such training "
            "examples.",
            "Give a label, or LABEL:GROUP; `retouch concept show` lists the labels.",
            code="examples-missing",
        )
    return found


def _find_gap(
    concept: Concept, spec: DirectionSpec, source: Sequence[Example]
) -> MetricSpec | None:
    """The effect's metric, if it is a gap and the source examples are of its two groups."""
    for metric in concept.metrics:
        if metric.metric == spec.effect and metric.scorer == "group_gap":
            same = {example.group for example in source} == set(metric.groups)
            return metric if same else None
    return None


def _choice_responses(
    editable: EditableModel,
    examples: Sequence[Example],
    gap: MetricSpec,
    reduce_gap: bool,
    max_new_tokens: int,
) -> tuple[list[TokenizedChat], list[TokenizedChat]]:
    """Responses that begin with the choices of a gap, to learn and to unlearn, pair by pair.

    To reduce the gap, every prompt gets one response with each choice (counterfactual
    augmentation); to increase it, the choice of the example's group. The base model generates the
    rest of the response.
    """
    prefixed = [(example, choice) for example in examples for choice in gap.choices]
    requests = [(one.prompt, f"{one.prefill} {choice}".lstrip()) for one, choice in prefixed]
    completions = base_responses(editable, requests, max_new_tokens=max_new_tokens)
    chats = [
        tokenize_chat(editable.tokenizer, one.prompt, f"{choice} {completion}", one.prefill)
        for (one, choice), completion in zip(prefixed, completions, strict=True)
    ]
    first, second = chats[0::2], chats[1::2]
    if reduce_gap:
        swapped = [chat for pair in zip(second, first, strict=True) for chat in pair]
        return chats, swapped
    pairs = [
        (one, other) if example.group == gap.groups[0] else (other, one)
        for example, one, other in zip(examples, first, second, strict=True)
    ]
    return [chosen for chosen, _ in pairs], [rejected for _, rejected in pairs]


def sample_by_group(rng: random.Random, examples: Sequence[Example], limit: int) -> list[Example]:
    """At most `limit` examples from the groups in turn, so that each group is represented."""
    groups: dict[str, list[Example]] = {}
    for example in rng.sample(list(examples), len(examples)):
        groups.setdefault(example.group, []).append(example)
    in_turn = [group.pop() for _ in range(len(examples)) for group in groups.values() if group]
    return in_turn[:limit]


def _sample_evenly(
    rng: random.Random, concept: Concept, split: Split, labels: Sequence[str], limit: int
) -> list[Example]:
    """At most `limit` examples, equally many of each label as far as there are."""
    pools = [concept.select(split, [label]) for label in labels]
    pools = [rng.sample(pool, len(pool)) for pool in pools if pool]
    sampled: list[Example] = []
    while any(pools) and len(sampled) < limit:
        sampled += [pool.pop() for pool in pools if pool]
    return sampled[:limit]
