"""The tokenized examples of an edit, with the base model's responses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from retouch.concepts.chat import TokenizedChat, tokenize_chat
from retouch.concepts.concept import Concept, DirectionSpec, Example, MetricSpec
from retouch.core.config import DataConfig
from retouch.core.types import Direction, Message, Progress, Split, no_progress
from retouch.models.editable_model import EditableModel
from retouch.models.generate import Response
from retouch.task.base_responses import Shows, generate_base, respond
from retouch.task.prefill import add_prefills, sample_prefills
from retouch.task.sampling import SampledExamples, example_rng, sample_examples


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
    prefills = None
    if paired and data.prefill_tokens:
        prefills = sample_prefills(editable, rng, sampled, spec, data, seed, shows, progress)
        if split == "train":  # the limits of drift are for prompts as users write them
            sampled = replace(sampled, retain=[*sampled.retain, *prefills.retain])

    responses = _respond(editable, sampled, spec, data, shows, progress)
    target_chats = _tokenize(editable, target, responses.target)
    base_chats = _tokenize(editable, source, responses.source)
    retain = _tokenize(editable, sampled.retain, responses.retain)
    source_chats = _tokenize(editable, source, responses.target) if paired else base_chats
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
    if prefills is not None:
        more = add_prefills(
            [*source_chats, *retain], [*counterparts, *retain], prefills, spec.context is None
        )
        source_chats = [*source_chats, *more.source]
        counterparts = [*counterparts, *more.counterparts]
        chosen, rejected = source_chats, [*base_chats, *more.rejected]
        every = [*groups, *(example.group for example in sampled.retain)]
        groups += [every[i] for i in more.index]
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
            for example, response in zip(demonstrated, responses.target, strict=True)
            if example.prompt
        ],
        group_gap=gap,
        reduce_gap=reduce_gap,
        source_examples=source,
    )


@dataclass(frozen=True)
class _Responses:
    """The responses of each set of sampled examples."""

    target: list[Response]
    source: list[Response]
    retain: list[Response]


def _respond(
    editable: EditableModel,
    sampled: SampledExamples,
    spec: DirectionSpec,
    data: DataConfig,
    shows: Shows | None,
    progress: Progress,
) -> _Responses:
    """The target responses, and those of the base model to source and retain examples."""

    def generate(
        examples: Sequence[Example], max_new_tokens: int, prefix: str = ""
    ) -> list[Response]:
        return respond(editable, examples, prefix, max_new_tokens=max_new_tokens, progress=progress)

    prefix, target = spec.context.prefix if spec.context else "", sampled.target
    if shows is not None and spec.context is not None and data.elicit:
        without = [replace(one, response=None) for one in target]
        generated = generate(without, data.max_new_tokens, prefix)
        pairs = zip(target, generated, strict=True)
        target_responses = [_prefer_own(one, response, shows) for one, response in pairs]
    else:
        target_responses = generate(target, data.max_new_tokens, prefix)
    return _Responses(
        target_responses,
        generate(sampled.source, data.max_base_tokens),
        generate(sampled.retain, data.max_base_tokens),
    )


def _tokenize(
    editable: EditableModel, examples: Sequence[Example], responses: Sequence[Response]
) -> list[TokenizedChat]:
    """Chats of examples with responses; a truncated one has no end token."""
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


def _prefer_own(example: Example, generated: Response, shows: Shows) -> Response:
    """What the base model generates, if it shows the behaviour or none is given."""
    if example.response is None or shows(example, generated.text):
        return generated
    return Response(example.response)


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
    prefixed = [
        (example, choice) for example in examples for choice in example.choices or gap.choices
    ]
    requests = [(one.prompt, f"{one.prefill} {choice}".lstrip()) for one, choice in prefixed]
    completions = generate_base(editable, requests, max_new_tokens=max_new_tokens)
    chats = [
        tokenize_chat(editable.tokenizer, one.prompt, f"{choice} {completion.text}", one.prefill)
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
