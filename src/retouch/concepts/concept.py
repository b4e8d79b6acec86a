"""A concept: its examples, its directions, its metrics and its tuned settings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from retouch.concepts.hashing import content_hash
from retouch.concepts.location import SourceLocation
from retouch.core.errors import DataError
from retouch.core.finding import Finding
from retouch.core.types import Better, Direction, Message, OnEvent, Split, StageEvent


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
        location: where it was read, for messages; equal examples may have different ones.
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
    location: SourceLocation | None = field(default=None, compare=False, repr=False)

    @property
    def last_turn(self) -> str:
        """The text of the user's last turn; of running text, its beginning."""
        return self.prompt[-1].content if self.prompt else self.prefill

    @property
    def description(self) -> str:
        """Where it was read, else the beginning of its last turn, as a name in messages."""
        if self.location is not None:
            return str(self.location)
        return f"{self.last_turn[:60]!r}"

    def to_plain(self) -> dict[str, Any]:
        """The example as JSON values, without its location."""
        return {
            "prompt": [{"role": turn.role, "content": turn.content} for turn in self.prompt],
            "label": self.label,
            "response": self.response,
            "pair": self.pair,
            "prefill": self.prefill,
            "accept": list(self.accept),
            "choices": list(self.choices),
            "group": self.group,
            "entity": self.entity,
            "request": self.request,
        }


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
        notes: what the reader of the data did, such as the columns that it mapped or ignored.
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
    notes: tuple[Finding, ...] = field(default=(), compare=False, repr=False)

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

    def report_notes(self, on_event: OnEvent) -> None:
        """Report what the reader of the data mapped and ignored."""
        for note in self.notes:
            on_event(StageEvent("data", f"{note.message} {note.hint}".rstrip()))

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
    def from_file(
        path: Path | str,
        *,
        context: Context | None = None,
        columns: Mapping[str, str] | None = None,
    ) -> Concept:
        """Read a concept from a data file, a folder of `save_to_disk`, a pack or its YAML file.

        Data files are CSV, TSV, JSON, JSONL, Parquet and Arrow. Besides the columns of a concept
        file they may have those of TRL, OpenAI, ShareGPT and Alpaca; `notes` says what was mapped.

        Args:
            path: the file or folder.
            context: what the target prompts of a data file are put under, as for `from_pairs`; a
                pack has its own.
            columns: names of known columns by the names that they have in a data file; an empty
                name ignores the column.

        Raises:
            DataError: the file does not exist or is wrong; names file, line and column.
        """
        from retouch.concepts.custom import concept_from_file
        from retouch.concepts.registry import load_concept_file

        if context is None and not columns:
            return load_concept_file(path)
        return concept_from_file(Path(path), context, columns)

    @staticmethod
    def from_dataset(
        dataset: Any,
        *,
        split: str | None = None,
        columns: Mapping[str, str] | None = None,
        config_name: str | None = None,
        revision: str | None = None,
        context: Context | None = None,
        name: str = "custom",
        description: str = "",
    ) -> Concept:
        """Make a concept from a dataset with the columns of a concept file or a published format.

        Args:
            dataset: a `datasets.Dataset`, or a `DatasetDict` with a dataset for each split; or the
                id of a dataset of the hub or the path of a folder, which is loaded.
            split: the split of the dataset to use, which is then split 60 / 20 / 20 unless the rows
                say otherwise (default: all, each as it is called).
            columns: names of known columns by the names that they have in the dataset; an empty
                name ignores the column.
            config_name: the configuration of a dataset that is loaded by its id.
            revision: its branch, tag or commit.
            context: what the target prompts are put under, as for `from_pairs`.
            name: the name of the concept.
            description: one or two sentences for the model card.

        Raises:
            DataError: the dataset cannot be loaded, or a row is wrong; names the row and column.
            ConfigError: a dataset is to be loaded, and the library `datasets` is not installed.
        """
        from retouch.concepts.custom import concept_from_dataset

        return concept_from_dataset(
            dataset,
            name,
            description,
            context,
            split=split,
            columns=columns,
            config_name=config_name,
            revision=revision,
        )

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
