"""Whether responses became alike or began to repeat themselves, base against edited.

Zhang et al., NeurIPS 2024, arXiv 2404.13752, ask this of their edits' texts. Self-BLEU is of Zhu et
al. 2018, arXiv 1802.01886: how far a response can be put together from the others, 0 to 100. The
repetition rates are of Xu et al. 2022, arXiv 2206.02369: the share of 4-grams, or of sentences,
that the same response holds already. In all three less is better, and what counts is the change: short
responses to like attacks are alike by nature.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from retouch.core.errors import ConfigError
from retouch.core.types import Record, Score
from retouch.evaluation.statistics import bootstrap_mean, bootstrap_ratio

SUITE = "text-quality"


def text_quality(base: Sequence[str], edited: Sequence[str] | None = None) -> list[Record]:
    """`self_bleu`, `repetition_4gram` and `repetition_sentence`, bootstrapped over the responses.

    Args:
        base: responses of the base model; two at least.
        edited: the edited model's to the same prompts, if there is one.

    Raises:
        ConfigError: sacrebleu is not installed.
        ValueError: there are fewer than two responses.
    """
    measures: dict[str, tuple[str, Callable[[Sequence[str]], Score]]] = {
        "self_bleu": ("BLEU", lambda responses: bootstrap_mean(self_bleu(responses))),
        "repetition_4gram": (
            "rate",
            lambda responses: _share([repeated_grams(r) for r in responses]),
        ),
        "repetition_sentence": (
            "rate",
            lambda responses: _share([repeated_sentences(r) for r in responses]),
        ),
    }
    return [
        Record(
            SUITE, name, unit, "lower", measure(base), None if edited is None else measure(edited)
        )
        for name, (unit, measure) in measures.items()
    ]


def self_bleu(responses: Sequence[str]) -> list[float]:
    """The BLEU of each response against all the others, 0 to 100, by sacrebleu.

    A response of its own for every value, so that responses can be resampled. Of texts shorter than four
    words the n-grams that they have are counted.

    Raises:
        ConfigError: sacrebleu is not installed.
        ValueError: there are fewer than two responses.
    """
    try:
        from sacrebleu.metrics.bleu import BLEU
    except ModuleNotFoundError:
        raise ConfigError(
            "Self-BLEU needs the library sacrebleu.", "pip install 'retouch[compare]'"
        ) from None
    if len(responses) < 2:
        raise ValueError("Self-BLEU compares responses with each other, and needs two at least.")
    bleu = BLEU(effective_order=True)
    return [
        # Rounding in the geometric mean can put a perfect match a hair above 100.
        min(
            100.0, float(bleu.sentence_score(response, [*responses[:i], *responses[i + 1 :]]).score)
        )
        for i, response in enumerate(responses)
    ]


def repeated_grams(response: str, n: int = 4) -> tuple[int, int]:
    """How many of a response's n-grams of words stood in it before, and how many n-grams it has."""
    words = response.casefold().split()
    return _again([tuple(words[i : i + n]) for i in range(len(words) - n + 1)])


def repeated_sentences(response: str) -> tuple[int, int]:
    """How many of a response's sentences stood in it before, and how many it has."""
    parts = re.split(r"(?<=[.!?])\s+|\n+", response.casefold())
    return _again([" ".join(part.split()) for part in parts if part.strip()])


def _again(items: Sequence[object]) -> tuple[int, int]:
    return len(items) - len(set(items)), len(items)


def _share(counts: Sequence[tuple[int, int]]) -> Score:
    """All repeated ones over all; responses too short to hold any add nothing."""
    if not any(all_ for _, all_ in counts):
        return Score(0.0, 0.0, 0.0, len(counts))
    return bootstrap_ratio([again for again, _ in counts], [all_ for _, all_ in counts])
