"""How long the texts of an edit are, before the model has replied to any of them.

Responses are counted at their longest (`response_tokens`), since nobody has given them yet: what is
foreseen from them is rather over than under what will be.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from retouch.concepts.chat import prompt_ids
from retouch.concepts.concept import Concept, Example
from retouch.core.config import EditConfig
from retouch.core.types import KL_SCORERS, RESPONSE_SCORERS
from retouch.task.examples import SampledExamples


@dataclass(frozen=True)
class Texts:
    """Lengths of texts in tokens, row by row.

    Attributes:
        prompts: of the prompts.
        responses: of the responses, at the longest, their end included.
    """

    prompts: tuple[int, ...] = ()
    responses: tuple[int, ...] = ()

    def __add__(self, other: Texts) -> Texts:
        return Texts(self.prompts + other.prompts, self.responses + other.responses)

    @property
    def rows(self) -> int:
        """How many texts there are."""
        return len(self.prompts)

    @property
    def tokens(self) -> int:
        """Tokens of all texts, padding left out: rows of like length run together."""
        return sum(self.prompts) + sum(self.responses)

    @property
    def longest(self) -> int:
        """Tokens of the longest text."""
        return max(map(sum, zip(self.prompts, self.responses, strict=True)), default=0)

    def batches(self, size: int) -> int:
        """How many batches of `size` rows they make."""
        return -(-self.rows // size)


def lengths(
    tokenizer: Any, rows: Iterable[Example], config: EditConfig, told: Sequence[Example] = ()
) -> Texts:
    """Tokenize the rows; each is given its own response, or that of its partner in `told`."""
    rows = list(rows)
    prompts = [len(prompt_ids(tokenizer, row.prompt, row.prefill)) for row in rows]
    responses = [
        config.data.max_new_tokens
        if row.response is None
        else len(tokenizer(row.response, add_special_tokens=False)["input_ids"])
        for row in told or rows
    ]
    return Texts(tuple(prompts), tuple(n + 1 for n in responses))


@dataclass(frozen=True)
class SplitLengths:
    """The texts of one split; in pairs, the source has the wanted responses."""

    source: Texts
    target: Texts
    retain: Texts

    @property
    def every(self) -> Texts:
        """All of them."""
        return self.source + self.target + self.retain


def sides_of(tokenizer: Any, drawn: SampledExamples, config: EditConfig) -> SplitLengths:
    """The lengths of the rows that were drawn."""
    source = lengths(
        tokenizer, drawn.source, config, drawn.target if drawn.paired else drawn.source
    )
    if drawn.paired and config.data.prefill_tokens:
        retain_openings = Texts(
            tuple(n + config.data.prefill_tokens for n in source.prompts), source.responses
        )
        for _ in range(config.data.prefills_per_example):
            source += retain_openings
    return SplitLengths(
        source,
        lengths(tokenizer, drawn.target, config),
        lengths(tokenizer, drawn.retain, config),
    )


def measured(
    tokenizer: Any, concepts: Iterable[Concept], config: EditConfig
) -> tuple[Texts, Texts]:
    """What the metrics of concepts ask on the test split, and what they compare word by word."""
    asked: dict[object, Example] = {}
    compared: dict[object, Example] = {}
    for spec, concept in {
        (m.suite, m.metric): (m, c) for c in concepts for m in c.metrics
    }.values():
        rows = concept.select("test", spec.labels)[: config.evaluation.limit or None]
        if spec.scorer in (*RESPONSE_SCORERS, *KL_SCORERS):
            asked |= {(row.prompt, row.prefill): row for row in rows}
        if spec.scorer in KL_SCORERS:
            compared |= {(row.prompt, row.prefill): row for row in rows}
    return lengths(tokenizer, asked.values(), config), lengths(tokenizer, compared.values(), config)
