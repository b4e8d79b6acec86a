"""Make a concept from an instruction, such as to answer in one short sentence.

The base model responds to ordinary prompts with the instruction and without. The concept's
direction `raise` moves a bare prompt towards the same prompt under the instruction, so that the
edited model follows it without being told.

What must stay cannot be ordinary prompts, since all of them are moved. It is what a user asks for
explicitly: ordinary prompts under *another* instruction as the system turn (label `other`, from
`OTHER_INSTRUCTIONS`), and tasks on a given text, whose form the task determines (label `text`: the
groups `TEXT_GROUPS` of the ordinary prompts). Drift, and whether the edit leaks, are measured on
these two.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from retouch.concepts.concept import Concept, Context, DirectionSpec, Example, MetricSpec
from retouch.concepts.custom import read_prompts
from retouch.concepts.pack import save_pack
from retouch.concepts.registry import ordinary_examples
from retouch.core.atomic import atomic_folder, is_free
from retouch.core.config import LoadConfig
from retouch.core.errors import ConfigError, DataError, RunError
from retouch.core.formatting import show_score
from retouch.core.progress import displayed
from retouch.core.types import SPLITS, Message, OnEvent, Progress, Split, StageEvent
from retouch.evaluation.instruction_rules import find_rule, is_decided_early
from retouch.instruction.audit import InstructionAudit
from retouch.instruction.candidates import Candidate, contexts, make_candidates, probe
from retouch.models.editable_model import EditableModel
from retouch.models.load import as_editable, model_name
from retouch.run_record import load_model
from retouch.task.sampling import sample_by_group

NUM_PROMPTS = 800  # of the built-in ones; half of them train
MAX_NEW_TOKENS = 64
NUM_PROBED = 24
SHARES: Mapping[Split, float] = {"train": 0.5, "validation": 0.2, "test": 0.3}
NUM_RETAIN: Mapping[Split, int] = {"train": 256, "validation": 64, "test": 64}
TEXT_SHARE = 0.25  # of the retain set, the tasks on a given text

# The examples need no labels. A prefill in the model's usual style is no attack on an instruction.
SETTINGS = {"num_examples": 512, "prefill_tokens": 0}
# The prompted model's probabilities are learned, not its words: more effect at less drift.
LOSSES = {"sft_weight": 0.0, "distillation_weight": 1.0}
# Where the end of a response shows the behaviour, that is what is learned and kept.
WHOLE_RESPONSES = {"max_new_tokens": 40, "max_base_tokens": 40}

MIN_FOLLOWED = 0.25  # share of the prompted base's responses that follow the instruction
MIN_GAIN = 0.1  # and how much larger it is than without the instruction
MIN_KEPT: Mapping[Split, int] = {"train": 8, "validation": 2, "test": 0}

TEXT_GROUPS = frozenset(
    ("classification", "extraction", "grammar", "rewriting", "summary", "translation")
)
OTHER_INSTRUCTIONS = (
    "Answer in exactly two sentences.",
    "Answer in one word.",
    "Reply in Spanish.",
    "Reply in German.",
    "Write everything in lower case.",
    "Answer as a numbered list.",
    "Answer with a JSON object.",
    "Explain it as if to a child of six.",
    "Answer in the style of a pirate.",
    "Write a detailed answer of several paragraphs.",
    "Begin with a short summary, then give the details.",
    "Answer formally, as in a business letter.",
    "Answer with a short poem.",
    "Give the pros and the cons.",
    "Answer first, then explain your reasoning step by step.",
    "Give an example from everyday life in your answer.",
)


def concept_from_instruction(
    model: Any,
    instruction: str,
    *,
    tokenizer: Any = None,
    prompts: Path | str | Iterable[Any] | None = None,
    name: str = "",
    num_prompts: int = NUM_PROMPTS,
    max_new_tokens: int = MAX_NEW_TOKENS,
    seed: int = 0,
    load_config: LoadConfig | None = None,
    on_event: OnEvent | None = None,
) -> tuple[Concept, InstructionAudit]:
    """Make a concept from an instruction that the model follows when prompted.

    Args:
        model: a name or a loaded model, as for `retouch.edit`; nothing of it is changed.
        instruction: one or more sentences, as one would write into a system prompt.
        tokenizer: the tokenizer of a transformers model.
        prompts: a file or a list of prompts, as for `read_prompts` (default: built-in ordinary
            prompts).
        name: the name of the concept (default: the instruction's words).
        num_prompts: maximum number of prompts; half of them train, the others validate and test.
        max_new_tokens: maximum length of a response, in tokens; longer ones are dropped where the
            rule needs the end.
        seed: of the choice of prompts.
        load_config: how a model that is given by its name is loaded.
        on_event: receives the progress.

    Returns:
        The concept, and the audit of its contrast set.

    Raises:
        DataError: the model does not follow the instruction when prompted, does so without being
            prompted, or too few responses pass the filters; or the prompts are wrong.
        ModelError: the model cannot be loaded.
    """
    instruction = instruction.strip()
    if not instruction:
        raise ConfigError("`instruction` is empty.", "Write a sentence.", code="instruction-empty")
    with displayed(on_event) as events:
        editable = as_editable(model, tokenizer)
        editable = editable or load_model(str(model), load_config or LoadConfig(), events)
        known_as = model_name(editable.name)
        sources = _sources(prompts, known_as, num_prompts, seed)
        audit = _audit(
            editable,
            instruction,
            sources,
            max_new_tokens,
            lambda *progress: events(StageEvent("responses", *progress)),
        )
        _check_followed(audit)
        _check_kept(audit)
        concept = _build(
            audit, name or _slug(instruction), _retained(sources, audit.rule, known_as, seed)
        )
        return concept, audit


def save(concept: Concept, audit: InstructionAudit, folder: Path) -> None:
    """Write the concept as a pack, with `audit.md` and `audit.json` beside it.

    Raises:
        RunError: the folder exists and is not empty, or cannot be written.
    """
    check_folder(folder)
    with atomic_folder(folder) as staged:
        save_pack(concept, staged)
        audit.write(staged)


def check_folder(folder: Path) -> None:
    """Check that a concept can be written to a folder: it does not exist, or is empty.

    Raises:
        RunError: it exists and is not empty, or is a file.
    """
    if not is_free(folder):
        message = f"{folder} exists already."
        raise RunError(message, "Choose a new folder.", code="path-exists")


def _sources(
    prompts: Path | str | Iterable[Any] | None, known_as: str, limit: int, seed: int
) -> dict[Split, list[Example]]:
    """The prompts of each split, as examples labelled `plain`."""
    if prompts is None:
        given = {
            split: tuple(one for one in some if one.group not in TEXT_GROUPS)
            for split, some in ordinary_examples(known_as).items()
        }
    else:
        given = read_prompts(prompts, "plain")
    sources = {}
    for split in SPLITS:
        # An example with a system turn has an instruction already.
        some = [one for one in given[split] if one.prompt and one.prompt[0].role != "system"]
        some = [Example(one.prompt, "plain", group=one.group, entity=one.entity) for one in some]
        rng = random.Random(f"{seed}:{split}:instruction")
        size = max(1, round(limit * SHARES[split]))
        if prompts is None:  # what is left of them is retained
            size = min(size, len(some) - round((1 - TEXT_SHARE) * NUM_RETAIN[split]))
        sources[split] = sample_by_group(rng, some, size)
    missing = [split for split in ("train", "validation") if len(sources[split]) < MIN_KEPT[split]]
    if missing:
        raise DataError(
            f"There are {sum(map(len, sources.values()))} prompts without a system turn, too few "
            f"for the split {missing[0]}.",
            "Give at least 20, or none for the built-in ones.",
            code="too-few-examples",
        )
    return sources


def _audit(
    editable: EditableModel,
    instruction: str,
    sources: Mapping[Split, Sequence[Example]],
    max_new_tokens: int,
    progress: Progress,
) -> InstructionAudit:
    rule = find_rule(instruction)
    probed = sources["train"][:NUM_PROBED]
    probes = probe(editable, instruction, rule, probed, max_new_tokens, progress)
    audit = InstructionAudit(
        instruction, editable.name, editable.fingerprint, rule, tuple(probes), ()
    )
    if probes[0].follows == 0:  # further prompts would not change that
        raise _not_followed(audit, f"none of {probes[0].n} responses follows it")
    context = contexts(instruction)[probes[0].form]
    found = make_candidates(editable, context, rule, sources, max_new_tokens, progress)
    return replace(audit, candidates=tuple(found))


def _check_followed(audit: InstructionAudit) -> None:
    """Check that the instruction changes how often the base behaves as it says."""
    plain, prompted = audit.rates()
    measured = f"{show_score(prompted, 'rate')} of {prompted.n} responses follow it"
    if prompted.value < MIN_FOLLOWED:
        raise _not_followed(audit, measured)
    if prompted.value - plain.value < MIN_GAIN:
        raise DataError(
            f"The instruction changes little: {measured} when {audit.model} is prompted with it, "
            f"and {show_score(plain, 'rate')} without it ({audit.rule_text}).",
            "There is nothing to move towards. Choose another instruction, or word it differently.",
            code="instruction-not-followed",
        )


def _not_followed(audit: InstructionAudit, measured: str) -> DataError:
    return DataError(
        f"{audit.model} does not follow the instruction when it is prompted with it: {measured} "
        f"({audit.rule_text}).",
        "Word it differently, elicit it by demonstrations (`Context`), give responses "
        "(`Concept.from_pairs(prompts, responses=...)`), or take a model that follows it.",
        code="instruction-not-followed",
    )


def _check_kept(audit: InstructionAudit) -> None:
    for split, least in MIN_KEPT.items():
        kept = audit.kept(split)
        if len(kept) < least:
            dropped = [one.dropped for one in audit.candidates if one.split == split]
            reasons = ", ".join(
                f"{dropped.count(reason)} {reason}" for reason in dict.fromkeys(dropped) if reason
            )
            raise DataError(
                f"{len(kept)} of {len(dropped)} {split} responses passed the filters ({reasons}).",
                "Give more prompts, or raise `max_new_tokens` where responses are cut.",
                code="too-few-examples",
            )


def _retained(
    sources: Mapping[Split, Sequence[Example]], rule: str, known_as: str, seed: int
) -> dict[Split, list[Example]]:
    """Ordinary prompts under other instructions, and tasks on a given text; none is a source."""
    source_examples = {one.prompt for some in sources.values() for one in some}
    others = [text for text in OTHER_INSTRUCTIONS if not rule or find_rule(text) != rule]
    ordinary = ordinary_examples(known_as)
    retained: dict[Split, list[Example]] = {}
    for split in SPLITS:
        rng = random.Random(f"{seed}:{split}:retain")
        free = [
            one
            for one in ordinary[split]
            if one.prompt not in source_examples and one.prompt and one.prompt[0].role != "system"
        ]
        text = [replace(one, label="text") for one in free if one.group in TEXT_GROUPS]
        text = sample_by_group(rng, text, round(TEXT_SHARE * NUM_RETAIN[split]))
        rest = [one for one in free if one.group not in TEXT_GROUPS]
        rest = sample_by_group(rng, rest, NUM_RETAIN[split] - len(text))
        retained[split] = [
            *(_instructed(one, others[i % len(others)]) for i, one in enumerate(rest)),
            *text,
        ]
    return retained


def _instructed(example: Example, instruction: str) -> Example:
    prompt = (Message("system", instruction), *example.prompt)
    return Example(prompt, "other", group=example.group)


def _build(
    audit: InstructionAudit, name: str, retained: Mapping[Split, Sequence[Example]]
) -> Concept:
    context: Context = contexts(audit.instruction)[audit.probes[0].form]
    examples: dict[Split, tuple[Example, ...]] = {}
    for split in SPLITS:
        # The test split has every prompt: a filter would leave those that the base finds easy.
        chosen = [one for one in audit.candidates if one.split == split]
        if split != "test":
            chosen = audit.kept(split)
        sources = [one.example if split == "test" else _learned(one) for one in chosen]
        examples[split] = (*sources, *retained[split])
    labels = tuple(dict.fromkeys(one.label for one in retained["train"]))
    scorer = "follows" if audit.rule else "follows_likelihood"
    # The metric's name says which rule decides.
    follows = "_".join(re.findall(r"\w+", f"follows {audit.rule or 'likelihood'}"))
    decides: dict[str, Any] = {"rule": audit.rule} if audit.rule else {"context": context}
    settings = SETTINGS if is_decided_early(audit.rule) else SETTINGS | WHOLE_RESPONSES
    measured = any(one.label == "plain" for one in examples["test"])
    metrics = [
        MetricSpec(name, follows, ("plain",), scorer, better="higher", **decides),
        MetricSpec(name, "degenerate", ("plain",), "degenerate", better="lower"),
    ]
    if labels:
        metrics += [
            MetricSpec(name, f"{follows}_elsewhere", labels, scorer, better="lower", **decides),
            MetricSpec("drift", "kl_per_token", labels, "kl_tokens", "nats a token", "lower"),
            MetricSpec("drift", "kl_answers", labels, "kl_responses", "nats a token", "lower"),
        ]
    return Concept(
        name=name,
        title=f"Instruction: {audit.instruction}",
        description=(
            f"Follow the instruction without being told: {audit.instruction} The responses are "
            f"those of {audit.model}."
        ),
        examples=examples,
        directions={
            "raise": DirectionSpec(
                ("plain",), ("plain",), labels, follows if measured else "", context=context
            )
        },
        metrics=tuple(metrics) if measured else (),
        settings={"raise": {"data": settings, "loss": LOSSES}},
        source="an instruction",
    )


def _learned(candidate: Candidate) -> Example:
    """The prompt with its response; without one that was cut, which the edit generates anew."""
    response = None if candidate.truncated else candidate.instructed
    return replace(candidate.example, response=response)


def _slug(instruction: str, limit: int = 40) -> str:
    """The words of an instruction as a name; a hash where it has no Latin letters."""
    words = re.findall(r"[a-z0-9]+", instruction.casefold())
    slug = "-".join(words)[:limit].strip("-")
    return slug or f"instruction-{hashlib.sha256(instruction.encode()).hexdigest()[:8]}"
