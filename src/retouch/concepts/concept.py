"""A concept: its examples, its directions, its metrics and its tuned settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from retouch.core.errors import DataError
from retouch.core.serialization import to_plain
from retouch.core.types import Better, Direction, Message, Split


@dataclass(frozen=True, slots=True)
class Example:
    """One example of a concept: a prompt, and what is known about its response.

    Attributes:
        prompt: the turns up to the response; the last one is the user's. Without turns, the example
            is running text: `prefill` begins it, and the response goes on.
        label: the class of the example within its concept (`positive`, `negative`, `retain`, or a
            pack's own labels, such as `attack` or `science`).
        response: the response to train on; None: the base model generates it.
        pair: examples of different labels with the same pair make the same request.
        prefill: the beginning of the response, which is given to the model.
        accept: the phrases that a correct response contains, all of them.
        choices: the two continuations that are compared, in place of the metric's.
        group: the group that scores compare, such as the attack family or the stereotype.
        entity: the subject; all examples of a subject are in one split.
        request: the bare request, where the prompt puts an attack around it.
    """

    prompt: tuple[Message, ...]
    label: str
    response: str | None = None
    pair: str | None = None
    prefill: str = ""
    accept: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    group: str = ""
    entity: str = ""
    request: str = ""

    @property
    def last_turn(self) -> str:
        """The text of the user's last turn; of running text, its beginning."""
        return self.prompt[-1].content if self.prompt else self.prefill


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A user turn and the response to it, as earlier turns of a chat."""

    prompt: str
    response: str


@dataclass(frozen=True, slots=True)
class Context:
    """What a prompt is put under to elicit the target: the edited model needs none of it.

    Attributes:
        system: the system turn.
        demonstrations: earlier turns of the chat, before the prompt's own.
        prefix: the beginning of the target responses that the base model generates; it is part of
            these responses.
        around: the last user turn, with `{prompt}` in place of its text.
    """

    system: str = ""
    demonstrations: tuple[Demonstration, ...] = ()
    prefix: str = ""
    around: str = "{prompt}"

    def apply(self, example: Example) -> Example:
        """The example with its prompt under the context.

        A system turn of the example follows the context's in one system turn, demonstrations come
        before the example's other turns. `prefix` belongs to the response, so it is not added.

        Raises:
            DataError: the example is running text, which has no turns.
        """
        if not example.prompt:
            raise DataError(
                f"A context cannot elicit a response to running text: {example.prefill!r}.",
                "Give the example a `prompt`, or a counterpart with a `response`.",
                code="context-without-turns",
            )
        turns = list(example.prompt)
        system = [self.system] if self.system else []
        if turns[0].role == "system":
            system.append(turns.pop(0).content)
        turns[-1] = Message("user", self.around.replace("{prompt}", turns[-1].content))
        before = [Message("system", "\n\n".join(system))] if system else []
        for one in self.demonstrations:
            before += [Message("user", one.prompt), Message("assistant", one.response)]
        return replace(example, prompt=(*before, *turns))


@dataclass(frozen=True)
class DirectionSpec:
    """The sets of examples of one direction of an edit, by their labels.

    Attributes:
        source: labels of the examples whose representations are moved.
        target: labels of the examples that they are moved towards.
        retain: labels of the retain set.
        effect: the metric that measures the effect of the direction.
        effect_better: whether the direction increases that metric or decreases it.
        context: the context that elicits the target. A source example is moved towards its
            counterpart under the context: its pair among the target labels, or the example itself,
            where `target` is empty or has the label of the example.
    """

    source: tuple[str, ...]
    target: tuple[str, ...]
    retain: tuple[str, ...]
    effect: str = ""
    effect_better: Literal["higher", "lower"] = "higher"
    context: Context | None = None

    def check_target(self, where: str) -> None:
        """Check that there are target labels or a context that elicits the target.

        Args:
            where: the beginning of the message, up to the name of a field: ``FILE, key `a.``.

        Raises:
            DataError: there is neither, or the context changes nothing.
        """
        context = self.context
        if context is None:
            if self.target:
                return
            message = f"{where}target`: there are neither target labels nor a `context`."
            hint = "Give the labels of the target, or the context that elicits it."
            raise DataError(message, hint, code="target-missing")
        if context == Context():
            message = f"{where}context`: it is empty, so it elicits nothing."
            hint = "Give a `system` turn, `demonstrations`, a `prefix` or `around`; or remove it."
            raise DataError(message, hint, code="context-invalid")
        if "{prompt}" not in context.around:
            message = f"{where}context.around`: {context.around!r} has no `{{prompt}}`."
            hint = "Write `{prompt}` where the text of the user's turn belongs."
            raise DataError(message, hint, code="context-invalid")


@dataclass(frozen=True)
class MetricSpec:
    """A metric as a pack declares it.

    Attributes:
        labels: labels of the examples that it is measured on.
        scorer: the name of a scorer in `evaluation.scorers`.
        better: which way is better for a model whose concept is raised.
        choices: the two continuations of `group_gap` and `choice_bias`.
        groups: the two groups of `group_gap`.
        rule: the rule of `follows` (`evaluation.instruction_rules`).
        context: the context of `follows_likelihood`, such as an instruction.
        max_new_tokens: maximum length of a response, where the metric needs its own.
    """

    suite: str
    metric: str
    labels: tuple[str, ...]
    scorer: str
    unit: str = "rate"
    better: Better = "none"
    choices: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    rule: str = ""
    context: Context | None = None
    max_new_tokens: int | None = None


@dataclass(frozen=True)
class Concept:
    """A concept: its examples by split, its directions, its metrics and its tuned settings.

    `from_pairs`, `from_file` and `from_dataset` make one from a user's data.

    Attributes:
        name: short name, as in `--concept NAME`.
        title: one line.
        description: one or two sentences.
        models: names of the models that the concept is for; empty: any model.
        add_ordinary: whether the ordinary examples that fit the model it is used on are added: to
            its examples, with their metrics, and to a retain set that has no labels.
        weakens: the direction that weakens a model's safety and needs a written reason.
        settings: configuration values tuned for each direction, as nested mappings.
        source: the pack or the file that it was read from.
        hash: SHA-256 of everything above but `source`, in hexadecimal; computed if it is empty.
    """

    name: str
    title: str
    description: str
    examples: Mapping[Split, tuple[Example, ...]]
    directions: Mapping[Direction, DirectionSpec]
    models: tuple[str, ...] = ()
    add_ordinary: bool = False
    weakens: Direction | None = None
    settings: Mapping[Direction, Mapping[str, Any]] = field(default_factory=dict)
    metrics: tuple[MetricSpec, ...] = ()
    source: str = ""
    hash: str = ""

    def __post_init__(self) -> None:
        if not self.hash:
            object.__setattr__(self, "hash", content_hash(self))

    @property
    def base_name(self) -> str:
        """The name without that of its model: `safety` for `pocket-safety`."""
        prefixes = [model for model in self.models if self.name.startswith(f"{model}-")]
        return self.name.removeprefix(f"{prefixes[0]}-") if prefixes else self.name

    def select(self, split: Split, labels: Iterable[str]) -> list[Example]:
        """The examples of a split with any of the labels, in file order."""
        selected = set(labels)
        return [example for example in self.examples[split] if example.label in selected]

    @staticmethod
    def from_pairs(
        source: Sequence[str | Mapping[str, Any]],
        target: Sequence[str | Mapping[str, Any]] | None = None,
        retain: Sequence[str | Mapping[str, Any]] = (),
        *,
        responses: Sequence[str] | None = None,
        context: Context | None = None,
        name: str = "custom",
        description: str = "",
    ) -> Concept:
        """Make a concept from lists of prompts.

        Args:
            source: the prompts whose representations are moved: texts, or mappings with `prompt`
                and any of the columns of a concept file, such as `response` or `accept`.
            target: the prompts that they are moved towards; as many as `source`, pair by pair.
                None: the same prompts, with `responses` or under `context`.
            retain: the prompts whose responses must not change (default: the built-in ordinary
                examples that fit the model).
            responses: for each source prompt the response that it is moved towards (default: the
                base model generates it for the target prompt, under `context` if there is one).
            context: what the target prompts are put under, such as a system turn, so that the base
                model shows the behaviour that is wanted; the edited model needs none of it.
            name: the name of the concept.
            description: one or two sentences for the model card.

        Raises:
            DataError: the lists differ in length, are too short or have a wrong entry.
        """
        from retouch.concepts.custom import concept_from_pairs

        return concept_from_pairs(source, target, retain, name, description, responses, context)

    @staticmethod
    def from_file(path: Path | str, *, context: Context | None = None) -> Concept:
        """Read a concept from a CSV, JSONL or Parquet file, a pack's folder or its YAML file.

        Args:
            path: the file or folder.
            context: what the target prompts of a CSV, JSONL or Parquet file are put under, as for
                `from_pairs`; a pack has its own.

        Raises:
            DataError: the file does not exist or is wrong; names file, line and column.
        """
        from retouch.concepts.custom import concept_from_file
        from retouch.concepts.registry import load_concept_file

        return (
            load_concept_file(path) if context is None else concept_from_file(Path(path), context)
        )

    @staticmethod
    def from_dataset(
        dataset: Any,
        *,
        context: Context | None = None,
        name: str = "custom",
        description: str = "",
    ) -> Concept:
        """Make a concept from a `datasets.Dataset` with the columns of a concept file.

        Args:
            dataset: a `datasets.Dataset`, or a `DatasetDict` with a dataset for each split.
            context: what the target prompts are put under, as for `from_pairs`.
            name: the name of the concept.
            description: one or two sentences for the model card.

        Raises:
            DataError: a row is wrong; names the row and the column.
        """
        from retouch.concepts.custom import concept_from_dataset

        return concept_from_dataset(dataset, name, description, context)

    @staticmethod
    def from_instruction(
        model: Any,
        instruction: str,
        *,
        tokenizer: Any = None,
        prompts: Path | str | Iterable[str | Mapping[str, Any]] | None = None,
        name: str = "",
        out: Path | str | None = None,
        **options: Any,
    ) -> Concept:
        """Make a concept from an instruction that a model follows when it is prompted with it.

        The model responds to ordinary prompts with the instruction and without; the responses are
        filtered and split. No labels are needed, and the edited model needs no instruction.

        Args:
            model: a name or a loaded model, as for `retouch.edit`; nothing of it is changed.
            instruction: one or more sentences, such as "Answer in one short sentence."
            tokenizer: the tokenizer of a transformers model.
            prompts: a file or a list of prompts (default: built-in ordinary prompts).
            name: the name of the concept (default: the instruction's words).
            out: a new folder that the pack is written to, with an audit of the filters.
            options: `num_prompts`, `max_new_tokens`, `seed`, `load_config` and `on_event`, as for
                `retouch.instruction.build.concept_from_instruction`.

        Raises:
            DataError: the model does not follow the instruction when prompted (code
                `instruction-not-followed`), or too few of its responses pass the filters.
            ModelError: the model cannot be loaded.
            RunError: `out` cannot be written.
        """
        from retouch.instruction.build import check_folder, concept_from_instruction, save

        if out is not None:
            check_folder(Path(out))
        concept, audit = concept_from_instruction(
            model, instruction, tokenizer=tokenizer, prompts=prompts, name=name, **options
        )
        if out is not None:
            save(concept, audit, Path(out))
        return concept


def content_hash(concept: Concept) -> str:
    """SHA-256, in hexadecimal, of everything that a concept contains but `source` and `hash`."""
    content = to_plain(concept)
    del content["source"], content["hash"]
    # What a concept does not use is left out, so that its hash is that of earlier versions.
    for part in (*content["directions"].values(), *content["metrics"]):
        for name in ("rule", "context", "max_new_tokens"):
            if not part.get(name, True):
                del part[name]
    for example in (one for split in content["examples"].values() for one in split):
        for name in ("request", "choices"):
            if not example[name]:
                del example[name]
    for name in ("models", "add_ordinary"):
        if not content[name]:
            del content[name]
    # Integers count as floats: a setting of 1 is the same as one of 1.0.
    content["settings"] = json.loads(json.dumps(content["settings"]), parse_int=float)
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
