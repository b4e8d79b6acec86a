"""Diversity and repetition of responses, of the base and of the edited model.

Zhang et al., NeurIPS 2024, arXiv 2404.13752, report them for the texts of edited models. Self-BLEU
(Zhu et al. 2018, arXiv 1802.01886) measures how similar a response is to the others, 0 to 100. The
repetition rates (Xu et al. 2022, arXiv 2206.02369) are the shares of 4-grams and of sentences that
occurred earlier in the same response. Lower is better for all three. Only the change is meaningful:
short responses to similar prompts are similar in any model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from retouch.core.plugins import import_library
from retouch.core.types import Record, Score
from retouch.evaluation.statistics import ExampleValues, bootstrap, each_once

SUITE = "text-quality"


def text_quality(base: Sequence[str], edited: Sequence[str] | None = None) -> list[Record]:
    """`self_bleu`, `repetition_4gram` and `repetition_sentence`, bootstrapped over responses.

    `edited` are the edited model's responses, if there is one, to the same prompts as `base`.

    Raises:
        ConfigError: sacrebleu is not installed.
        ValueError: there are fewer than two responses.
    """
    measures: dict[str, tuple[str, Callable[[Sequence[str]], Score]]] = {
        "self_bleu": ("BLEU", lambda responses: bootstrap(each_once(self_bleu(responses)))),
        "repetition_4gram": ("rate", lambda responses: _rate(map(repeated_ngrams, responses))),
        "repetition_sentence": ("rate", lambda texts: _rate(map(repeated_sentences, texts))),
    }
    return [
        Record(
            SUITE, name, unit, "lower", measure(base), None if edited is None else measure(edited)
        )
        for name, (unit, measure) in measures.items()
    ]


def self_bleu(responses: Sequence[str]) -> list[float]:
    """The BLEU of each response against all the others, 0 to 100, by sacrebleu.

    Texts of fewer than four words are scored by the n-grams that they have.

    Raises:
        ConfigError: sacrebleu is not installed.
        ValueError: there are fewer than two responses.
    """
    sacrebleu = import_library("sacrebleu", "Self-BLEU", "'retouch[compare]'")
    if len(responses) < 2:
        raise ValueError(f"Self-BLEU needs at least two responses, got {len(responses)}.")
    bleu = sacrebleu.BLEU(effective_order=True)
    scores = [
        float(bleu.sentence_score(response, [*responses[:i], *responses[i + 1 :]]).score)
        for i, response in enumerate(responses)
    ]
    return [min(100.0, score) for score in scores]  # rounding may exceed 100 slightly


def repeated_ngrams(response: str, n: int = 4) -> tuple[int, int]:
    """How many word n-grams of a response occurred in it before, and how many it has."""
    words = response.casefold().split()
    return _count_repeated([tuple(words[i : i + n]) for i in range(len(words) - n + 1)])


def repeated_sentences(response: str) -> tuple[int, int]:
    """How many sentences of a response occurred in it before, and how many it has."""
    parts = re.split(r"(?<=[.!?])\s+|\n+", response.casefold())
    return _count_repeated([" ".join(part.split()) for part in parts if part.strip()])


def _count_repeated(items: Sequence[object]) -> tuple[int, int]:
    return len(items) - len(set(items)), len(items)


def _rate(counts: Iterable[tuple[int, int]]) -> Score:
    """Repeated items over all items; 0 where no response has any."""
    repeated, total = zip(*counts, strict=True)
    if not any(total):
        return Score(0.0, 0.0, 0.0, len(total))
    return bootstrap(ExampleValues(repeated, total))
