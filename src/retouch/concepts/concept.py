"""A concept: its examples, its directions, its metrics and its tuned settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from retouch.core.serialization import to_plain
from retouch.core.types import Better, Direction, Message, Split


@dataclass(frozen=True, slots=True)
class Example:
    """One example of a concept: a prompt, and what is known about its response.

    Attributes:
        prompt: the turns up to the response; the last one is the user's.
        label: the class of the example within its concept (`positive`, `negative`, `retain`, or a
            pack's own labels, such as `attack` or `science`).
        response: the response to train on; None: the base model generates it.
        pair: examples of different labels with the same pair make the same request.
        prefill: the beginning of the response, which is given to the model.
        accept: the phrases that a correct response contains, all of them.
        group: the group that scores compare, such as the attack family or the stereotype.
        entity: the subject; all examples of a subject are in one split.
    """

    prompt: tuple[Message, ...]
    label: str
    response: str | None = None
    pair: str | None = None
    prefill: str = ""
    accept: tuple[str, ...] = ()
    group: str = ""
    entity: str = ""


@dataclass(frozen=True)
class DirectionSpec:
    """The sets of examples of one direction of an edit, by their labels.

    Attributes:
        source: labels of the examples whose representations are moved.
        target: labels of the examples that they are moved towards.
        retain: labels of the retain set.
        effect: the metric that measures the effect of the direction.
        effect_better: whether the direction increases that metric or decreases it.
    """

    source: tuple[str, ...]
    target: tuple[str, ...]
    retain: tuple[str, ...]
    effect: str = ""
    effect_better: Literal["higher", "lower"] = "higher"


@dataclass(frozen=True)
class MetricSpec:
    """A metric as a pack declares it.

    Attributes:
        labels: labels of the examples that it is measured on.
        scorer: the name of a scorer in `evaluation.scorers`.
        better: which way is better for a model whose concept is raised.
        choices: the two continuations of `group_gap` and `choice_bias`.
        groups: the two groups of `group_gap`.
    """

    suite: str
    metric: str
    labels: tuple[str, ...]
    scorer: str
    unit: str = "rate"
    better: Better = "none"
    choices: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()


@dataclass(frozen=True)
class Concept:
    """A concept: its examples by split, its directions, its metrics and its tuned settings.

    `from_pairs`, `from_file` and `from_dataset` make one from a user's data.

    Attributes:
        name: short name, as in `--concept NAME`.
        title: one line.
        description: one or two sentences.
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
    weakens: Direction | None = None
    settings: Mapping[Direction, Mapping[str, Any]] = field(default_factory=dict)
    metrics: tuple[MetricSpec, ...] = ()
    source: str = ""
    hash: str = ""

    def __post_init__(self) -> None:
        if not self.hash:
            object.__setattr__(self, "hash", content_hash(self))

    def select(self, split: Split, labels: Iterable[str]) -> list[Example]:
        """The examples of a split with any of the labels, in file order."""
        selected = set(labels)
        return [example for example in self.examples[split] if example.label in selected]

    @staticmethod
    def from_pairs(
        source: Sequence[str | Mapping[str, Any]],
        target: Sequence[str | Mapping[str, Any]],
        retain: Sequence[str | Mapping[str, Any]] = (),
        *,
        name: str = "custom",
        description: str = "",
    ) -> Concept:
        """Make a concept from lists of prompts.

        Args:
            source: the prompts whose representations are moved: texts, or mappings with `prompt`
                and any of the columns of a concept file, such as `response` or `accept`.
            target: the prompts that they are moved towards; as many as `source`, pair by pair.
            retain: the prompts whose responses must not change (default: the built-in capability
                examples).
            name: the name of the concept.
            description: one or two sentences for the model card.

        Raises:
            DataError: the lists differ in length, are too short or have a wrong entry.
        """
        from retouch.concepts.custom import concept_from_pairs

        return concept_from_pairs(source, target, retain, name, description)

    @staticmethod
    def from_file(path: Path | str) -> Concept:
        """Read a concept from a CSV, JSONL or Parquet file, a pack's folder or its YAML file.

        Raises:
            DataError: the file does not exist or is wrong; names file, line and column.
        """
        from retouch.concepts.registry import load_concept_file

        return load_concept_file(path)

    @staticmethod
    def from_dataset(dataset: Any, *, name: str = "custom", description: str = "") -> Concept:
        """Make a concept from a `datasets.Dataset` with the columns of a concept file.

        Args:
            dataset: a `datasets.Dataset`, or a `DatasetDict` with a dataset for each split.
            name: the name of the concept.
            description: one or two sentences for the model card.

        Raises:
            DataError: a row is wrong; names the row and the column.
        """
        from retouch.concepts.custom import concept_from_dataset

        return concept_from_dataset(dataset, name, description)


def content_hash(concept: Concept) -> str:
    """SHA-256, in hexadecimal, of everything that a concept contains but `source` and `hash`."""
    content = to_plain(concept)
    del content["source"], content["hash"]
    # Integers count as floats: a setting of 1 is the same as one of 1.0.
    content["settings"] = json.loads(json.dumps(content["settings"]), parse_int=float)
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
