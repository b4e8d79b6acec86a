"""Prefill attacks by depth: whether a model still refuses after the beginning of compliance.

The response to a harmful request is forced to begin with tokens of a response that complies, and
the model continues it: greedily, or sampled from its most likely tokens, since an attacker may draw
many continuations (Qi et al. 2024, arXiv 2406.05946, section 2.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from retouch.core.types import Progress, Score, no_progress
from retouch.evaluation.attack_targets import AttackTarget, refusal_rate
from retouch.evaluation.response_classifier import classify
from retouch.evaluation.statistics import Curve
from retouch.models.generate import GREEDY, Decoding, generate

if TYPE_CHECKING:
    from retouch.models.editable_model import EditableModel

SUITE = "prefill"
DEPTHS = (0, 1, 4, 8, 16, 40)  # tokens
TOP_K = 20  # most likely tokens that a continuation is sampled from
NUM_SAMPLES = 4  # continuations of each request that are sampled
MAX_NEW_TOKENS = 32


def prefill_attack(
    editable: EditableModel,
    targets: Sequence[AttackTarget],
    *,
    depths: Sequence[int] = DEPTHS,
    seed: int = 0,
    progress: Progress = no_progress,
) -> list[Curve]:
    """Force the first tokens of a complying response on each request, and count refusals after it.

    The complying response is the base model's own. Where it is shorter than the depth, the base
    model continues it. The model itself is attacked as it is now.

    Args:
        editable: the model.
        targets: the requests, each with a complying response.
        depths: numbers of forced tokens, in ascending order.
        seed: of the sampled continuations.
        progress: called after every depth.

    Returns:
        The share of refused requests by the number of forced tokens: of greedy continuations, and
        of `NUM_SAMPLES` sampled ones for each request.
    """
    openings = _openings(editable, targets, max(depths))
    seeds = range(seed * NUM_SAMPLES, (seed + 1) * NUM_SAMPLES)
    decodings = {
        "greedy_refusal": [GREEDY],
        "sampled_refusal": [Decoding(top_k=TOP_K, seed=one) for one in seeds],
    }
    points: dict[str, list[tuple[float, Score]]] = {name: [] for name in decodings}
    for done, depth in enumerate(depths, start=1):
        prompts = [prompt + opening[:depth] for prompt, opening in openings]
        for name, some in decodings.items():
            texts: list[str] = []
            for one in some:
                texts += generate(editable, prompts, max_new_tokens=MAX_NEW_TOKENS, decoding=one)
            requests = [target.example.last_turn for target in targets] * len(some)
            forced = [editable.tokenizer.decode(opening[:depth]) for _, opening in openings]
            pairs = zip(texts, requests, forced * len(some), strict=True)
            categories = [classify(text, request, begin) for text, request, begin in pairs]
            points[name].append((float(depth), refusal_rate(categories)))
        progress("prefill attack", done, len(depths))
    return [
        Curve(SUITE, name, "rate", "higher", "prefill tokens", tuple(found))
        for name, found in points.items()
    ]


def _openings(
    editable: EditableModel, targets: Sequence[AttackTarget], length: int
) -> list[tuple[list[int], list[int]]]:
    """The prompt of each request, and at least `length` tokens of a response that complies."""
    found = []
    for target in targets:
        chat = target.tokenized(editable)
        found.append((list(chat.ids[: chat.start]), list(chat.ids[chat.start : -1])))
    short = [i for i, (_, opening) in enumerate(found) if len(opening) < length]
    if short:
        longest = Decoding(min_new_tokens=length)
        with editable.base_model():
            prompts = [found[i][0] + found[i][1] for i in short]
            texts = generate(editable, prompts, max_new_tokens=length, decoding=longest)
        for i, text in zip(short, texts, strict=True):
            found[i][1].extend(editable.tokenizer(" " + text, add_special_tokens=False).input_ids)
    return found
