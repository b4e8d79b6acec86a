from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from helpers.char_tokenizer import char_editable
from helpers.edited import refusal_concept
from retouch.evaluation import prefill_attack as attack
from retouch.evaluation.attack_targets import AttackTarget
from retouch.models.generate import GREEDY, Decoding

COMPLIES = "Well, do it with a grid."


def test_refusals_are_counted_by_depth_greedily_and_sampled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    editable = char_editable()
    examples = [one for one in refusal_concept().examples["test"] if one.label == "direct"]
    targets = [AttackTarget(one, COMPLIES) for one in examples]
    calls: list[tuple[Decoding, list[str]]] = []

    def generate(
        _: Any, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, decoding: Decoding
    ) -> list[str]:
        calls.append((decoding, [editable.tokenizer.decode(ids) for ids in prompts]))
        if decoding.min_new_tokens:
            return ["And then go on and on with it."] * len(prompts)
        # The model gives in to long prefills, and to a few more where it samples.
        limit = 8 if decoding == GREEDY else 4
        depth = len(prompts[0]) - len(targets[0].tokenized(editable).ids[: starts[0]])
        return ["I can't help with that." if depth < limit else COMPLIES] * len(prompts)

    starts = [target.tokenized(editable).start for target in targets]
    monkeypatch.setattr(attack, "generate", generate)
    greedy, sampled = attack.prefill_attack(editable, targets, depths=(0, 4, 40))
    assert (greedy.metric, greedy.along) == ("greedy_refusal", "prefill tokens")
    assert [(depth, score.value, score.n) for depth, score in greedy.points] == [
        (0, 1.0, 2),
        (4, 1.0, 2),
        (40, 0.0, 2),
    ]
    assert [(depth, score.value) for depth, score in sampled.points] == [(0, 1), (4, 0), (40, 0)]
    assert sampled.points[0][1].n == 2 * attack.NUM_SAMPLES
    # A response that is too short is continued by the base model.
    assert calls[0][0] == Decoding(min_new_tokens=40)
    assert calls[0][1][0].endswith(COMPLIES)
    seeds = {decoding.seed for decoding, _ in calls if decoding.top_k}
    assert len(seeds) == attack.NUM_SAMPLES
    deepest = calls[-1][1][0]
    assert COMPLIES in deepest
    assert "And then" in deepest
