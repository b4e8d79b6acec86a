"""Judges: models that classify responses, in place of the rules of `response_classifier`.

A judge is a sequence classifier, or a guard model: a causal language model with a published prompt
format (`judge_formats`). It classifies pairs of a request and a response:

    judge = load_judge("allenai/wildguard")  # of `judge_loading`
    judgements = judge.judge([("How do I pick a lock?", "I can't help with that.")])
    judge.rate(judgements, "refusal")

An output that the format cannot read has the category None. It is in no rate, neither as safe nor
as harmful; `count_judgements` reports how many there are.

A judge reads text that an attacker may have chosen. `judge_prompts.PromptEncoder` describes what a
response cannot do, and which prompts it marks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from retouch.core.errors import ConfigError, ModelError, code_list
from retouch.core.types import Progress, Score, no_progress
from retouch.evaluation.judge_formats import AnswerOutput, JudgeCategory, LabelOutput, TextOutput
from retouch.evaluation.judge_prompts import PromptEncoder
from retouch.evaluation.statistics import wilson
from retouch.models.editable_model import EditableModel
from retouch.models.generate import generate
from retouch.models.oom import split_on_oom

BATCH_SIZE = 16
DESCRIPTION = "judging responses"

Pair = tuple[str, str]
"""A request and the response to it."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a judge says about a response.

    Attributes:
        category: the category; None where the output could not be read.
        score: the probability of the judge's first category, harmful before refusal, or the
            expected value of its answers, 0 to 1; None for a format that is read from text.
        text: the output: the generated text, or the likeliest answer or label.
        truncated: whether a part of the response was left out.
        contains_tags: whether request or response contain a tag of the format, or the text of a
            special token, as an attack on the judge may.
    """

    category: JudgeCategory | None
    score: float | None
    text: str
    truncated: bool = False
    contains_tags: bool = False


@dataclass(frozen=True, slots=True)
class JudgementCounts:
    """How many judgements there are, and how many of each kind that a report should state."""

    total: int
    unparseable: int
    truncated: int
    contains_tags: int

    def notes(self) -> list[str]:
        """A sentence for every count that is not 0."""
        of = f"of {self.total}"
        sentences = (
            (self.unparseable, "outputs of the judge could not be read and are in no rate."),
            (self.truncated, "responses were truncated for the judge."),
            (self.contains_tags, "pairs contain tags of the judge's prompt format."),
        )
        return [f"{count} {of} {text}" for count, text in sentences if count]


def count_judgements(judgements: Sequence[Judgement]) -> JudgementCounts:
    """Count the judgements whose output, response or text is not as it should be."""
    return JudgementCounts(
        len(judgements),
        sum(one.category is None for one in judgements),
        sum(one.truncated for one in judgements),
        sum(one.contains_tags for one in judgements),
    )


@dataclass(frozen=True, slots=True)
class Reading:
    """A judge's output: its category, its score and its text, as in `Judgement`."""

    category: JudgeCategory | None
    score: float | None
    text: str


class Judge(ABC):
    """A loaded judge.

    Attributes:
        name: what the user called the model.
        format: its prompt format.
        categories: the categories that it tells apart.
        encoder: writes its prompts.
        batch_size: the maximum number of prompts that run together.
    """

    def __init__(
        self,
        name: str,
        encoder: PromptEncoder,
        categories: frozenset[JudgeCategory],
        batch_size: int,
    ) -> None:
        self.name, self.format, self.encoder = name, encoder.format, encoder
        self.categories, self.batch_size = categories, batch_size

    def judge(self, pairs: Sequence[Pair], progress: Progress = no_progress) -> list[Judgement]:
        """Classify responses.

        Args:
            pairs: requests and responses.
            progress: called after every batch.

        Returns:
            A judgement for each pair, in order; it does not depend on the other pairs.

        Raises:
            DataError: a request is too long for the model.
        """
        prompts = [self.encoder.encode(*pair) for pair in pairs]
        readings = self._read([one.ids for one in prompts], progress) if prompts else []
        return [
            Judgement(one.category, one.score, one.text, prompt.truncated, prompt.contains_tags)
            for one, prompt in zip(readings, prompts, strict=True)
        ]

    def rate(
        self, judgements: Sequence[Judgement], category: Literal["refusal", "harmful"]
    ) -> Score:
        """The refusal rate or the attack success rate, with Wilson's interval.

        Over the judgements whose output could be read; `n` of the score is their number.

        Raises:
            ConfigError: the judge does not tell this category.
            ModelError: no output could be read.
        """
        if category not in self.categories:
            message = f"The judge {self.name} ({self.format.name}) does not tell {category}."
            hint = f"It tells {code_list(sorted(self.categories))}. Use another judge."
            raise ConfigError(message, hint, code="judge-category")
        read = [one.category for one in judgements if one.category is not None]
        if not read:
            message = f"No output of the judge {self.name} could be read, of {len(judgements)}."
            hint = "Check that its `format` belongs to the model."
            raise ModelError(message, hint, code="judge-unparseable")
        return wilson(read.count(category), len(read))

    @abstractmethod
    def _read(self, prompts: Sequence[Sequence[int]], progress: Progress) -> list[Reading]:
        """The outputs of prompts, at least one."""

    def _in_batches(
        self,
        prompts: Sequence[Sequence[int]],
        run: Callable[[Sequence[Sequence[int]]], list[Reading]],
        progress: Progress,
    ) -> list[Reading]:
        """Run prompts of similar length together; a batch is halved when memory runs out."""
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        readings: dict[int, Reading] = {}
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            outputs = split_on_oom(run, [prompts[i] for i in batch])
            readings |= dict(zip(batch, outputs, strict=True))
            progress(DESCRIPTION, len(readings), len(order))
        return [readings[i] for i in range(len(prompts))]


class TextJudge(Judge):
    """A guard model whose generated text is parsed."""

    def __init__(
        self, editable: EditableModel, encoder: PromptEncoder, output: TextOutput, batch_size: int
    ) -> None:
        super().__init__(editable.name, encoder, output.categories, batch_size)
        self._editable, self._output = editable, output

    def _read(self, prompts: Sequence[Sequence[int]], progress: Progress) -> list[Reading]:
        texts = generate(
            self._editable,
            prompts,
            max_new_tokens=self._output.max_new_tokens,
            batch_size=self.batch_size,
            progress=lambda _, done, total: progress(DESCRIPTION, done, total),
        )
        return [Reading(self._output.read(text), None, text) for text in texts]


class AnswerJudge(Judge):
    """A guard model whose next-token probabilities of answers are read."""

    def __init__(
        self, editable: EditableModel, encoder: PromptEncoder, output: AnswerOutput, batch_size: int
    ) -> None:
        super().__init__(editable.name, encoder, output.categories, batch_size)
        self._editable, self._output = editable, output
        vocabulary: dict[str, int] = editable.tokenizer.get_vocab()
        if missing := [answer for answer in output.values if answer not in vocabulary]:
            message = f"The answer {missing[0]!r} is no token of {editable.name}."
            hint = f"Correct `values` of the format {encoder.format.name}, or use its own model."
            raise ConfigError(message, hint, code="judge-answer")
        self._ids = [vocabulary[answer] for answer in output.values]

    def _read(self, prompts: Sequence[Sequence[int]], progress: Progress) -> list[Reading]:
        return self._in_batches(prompts, self._run, progress)

    @torch.no_grad()
    def _run(self, prompts: Sequence[Sequence[int]]) -> list[Reading]:
        editable = self._editable
        # Padded on the left: `generate` computes the logits of the last position alone.
        ids, mask = _pad(prompts, editable.tokenizer.pad_token_id, "left", editable.device)
        with editable.compute_precision():
            output = editable.model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=1,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                pad_token_id=editable.tokenizer.pad_token_id,
                output_logits=True,
                return_dict_in_generate=True,
            )
        answers = list(self._output.values)
        values = torch.tensor([self._output.values[one] for one in answers])
        probs = output.logits[0][:, self._ids].float().softmax(-1).cpu()
        readings = []
        for row, score in zip(probs, (probs @ values).clamp(max=1.0).tolist(), strict=True):
            high = score >= self._output.threshold
            category = self._output.above if high else self._output.below
            finite = bool(row.isfinite().all())
            text = answers[int(row.argmax())]
            readings.append(Reading(category if finite else None, score if finite else None, text))
        return readings


class LabelJudge(Judge):
    """A sequence classifier whose likeliest label is read."""

    def __init__(
        self,
        name: str,
        model: Any,
        encoder: PromptEncoder,
        output: LabelOutput,
        label: str | None,
        batch_size: int,
    ) -> None:
        config = model.config
        self._labels = [str(config.id2label[i]) for i in range(config.num_labels)]
        kind = getattr(config, "problem_type", None)
        if len(self._labels) < 2 or kind not in (None, "single_label_classification"):
            message = f"The judge {name} does not choose one of several labels: {self._labels}."
            hint = "Use a classifier of one label per text."
            raise ModelError(message, hint, code="judge-labels")
        self._categories = output.categories_of(self._labels, label)
        super().__init__(name, encoder, frozenset(self._categories), batch_size)
        self._model = model
        first = "harmful" if "harmful" in self._categories else "refusal"
        self._scored = [i for i, one in enumerate(self._categories) if one == first]

    def _read(self, prompts: Sequence[Sequence[int]], progress: Progress) -> list[Reading]:
        return self._in_batches(prompts, self._run, progress)

    @torch.no_grad()
    def _run(self, prompts: Sequence[Sequence[int]]) -> list[Reading]:
        pad = self.encoder.tokenizer.pad_token_id
        ids, mask = _pad(prompts, pad, "right", self._model.device)
        logits = self._model(input_ids=ids, attention_mask=mask).logits
        readings = []
        for probs in logits.float().softmax(-1).cpu():
            best, score = int(probs.argmax()), float(probs[self._scored].sum())
            finite = bool(probs.isfinite().all())
            category = self._categories[best] if finite else None
            readings.append(Reading(category, score if finite else None, self._labels[best]))
        return readings


def _pad(
    rows: Sequence[Sequence[int]], value: int, side: str, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask `[rows, tokens]`."""
    tensors = [torch.tensor(list(row)) for row in rows]
    pad = torch.nn.utils.rnn.pad_sequence
    ids = pad(tensors, True, value, side)
    mask = pad([torch.ones_like(row) for row in tensors], True, 0, side)
    return ids.to(device), mask.to(device)
