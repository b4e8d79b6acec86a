"""The smallest strength that keeps the effect is chosen."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import pytest

from helpers.tiny_edit import tiny_concept
from helpers.tiny_models import tiny_editable
from retouch.concepts.concept import Concept, MetricSpec
from retouch.core.config import LoraConfig
from retouch.core.types import Record, Score
from retouch.evaluation import strength_choice
from retouch.evaluation.evaluate import MAX_NEW_TOKENS, Evaluation
from retouch.evaluation.strength_choice import choose_strength
from retouch.models import adapters


def concept(better: str = "higher") -> Concept:
    made = tiny_concept()
    metrics = (
        MetricSpec("s", "effect", ("negative",), "refusal", better=better),  # type: ignore[arg-type]
        MetricSpec("s", "also", ("positive",), "refusal", better=better),  # type: ignore[arg-type]
        MetricSpec("s", "other", ("retain",), "degenerate", better="lower"),
    )
    spec = replace(made.directions["raise"], effect="effect", effect_better=better)  # type: ignore[arg-type]
    return replace(made, metrics=metrics, directions={"raise": spec})


def choose(
    monkeypatch: pytest.MonkeyPatch,
    values: Mapping[float, tuple[float, float]],
    better: str = "higher",
    *,
    excesses: Mapping[float, float] | None = None,
) -> tuple[float, list[float]]:
    """The chosen strength and those tried, with made-up values of the two metrics."""
    tried: list[float] = []
    measured: list[float] = []

    @contextmanager
    def scaled(_: Any, strength: float) -> Any:
        tried.append(strength)
        yield

    def evaluate(_: Any, concepts: list[Concept], **__: Any) -> Evaluation:
        measured.append(tried[-1])
        assert [spec.metric for spec in concepts[0].metrics] == ["effect", "also"]
        records = [
            Record("s", name, "rate", "higher", Score(0, 0, 0, 32), Score(value, 0, 1, 32))
            for name, value in zip(("effect", "also"), values[tried[-1]], strict=True)
        ]
        return Evaluation(records, [])  # type: ignore[arg-type]

    monkeypatch.setattr(strength_choice, "scaled", scaled)
    monkeypatch.setattr(strength_choice, "evaluate", evaluate)
    chosen = choose_strength(
        tiny_editable(),
        concept(better),
        "raise",
        tuple(values),
        max_new_tokens=4,
        excess=lambda: 1.0 if excesses is None else excesses[tried[-1]],
    )
    return chosen.strength, measured


def test_the_smallest_strength_that_keeps_the_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {1.0: (0.9, 0.9), 0.8: (0.9, 0.9 - 1 / 32), 0.6: (0.9, 0.8), 0.4: (0.9, 0.9)}
    assert choose(monkeypatch, values) == (0.8, [1.0, 0.8, 0.6])
    assert choose(monkeypatch, {1.0: (0.9, 0.9), 0.6: (0.9, 0.95)}) == (0.6, [1.0, 0.6])


def test_an_effect_that_is_to_fall(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {1.0: (0.1, 0.1), 0.8: (0.1, 0.1), 0.6: (0.2, 0.1)}
    assert choose(monkeypatch, values, "lower") == (0.8, [1.0, 0.8, 0.6])


@pytest.mark.parametrize(("rule", "expected"), [("list", 4), ("max_sentences:1", MAX_NEW_TOKENS)])
def test_responses_are_whole_where_a_rule_needs_their_end(
    monkeypatch: pytest.MonkeyPatch, rule: str, expected: int
) -> None:
    lengths: list[int] = []

    def evaluate(*_: Any, max_new_tokens: int, **__: Any) -> Evaluation:
        lengths.append(max_new_tokens)
        return Evaluation([Record("s", "effect", "rate", "higher", Score(1, 0, 1, 32), None)], [])

    monkeypatch.setattr(strength_choice, "scaled", lambda *_: nullcontext())
    monkeypatch.setattr(strength_choice, "evaluate", evaluate)
    made = concept()
    effect = MetricSpec("s", "effect", ("negative",), "follows", better="higher", rule=rule)
    made = replace(made, metrics=(effect,))
    choose_strength(tiny_editable(), made, "raise", (0.5, 1.0), max_new_tokens=4)
    assert lengths == [expected, expected]


def test_without_a_choice_nothing_is_measured() -> None:
    editable = tiny_editable()
    chosen = choose_strength(editable, concept(), "raise", (1.0,), max_new_tokens=4)
    assert (chosen.strength, chosen.effects) == (1.0, {})
    chosen = choose_strength(editable, tiny_concept(), "raise", (0.5, 1.0), max_new_tokens=4)
    assert chosen.strength == 1.0


def test_a_chosen_strength_is_baked_into_the_weights() -> None:
    editable = tiny_editable()
    adapters.attach(editable, [1], LoraConfig(), 0)
    weights = adapters.parameters(editable)
    for weight in weights.values():
        weight.data.fill_(2.0)
    adapters.scale(editable, 0.5)
    assert {float(w.mean()) for n, w in weights.items() if "lora_B" in n} == {1.0}
    assert {float(w.mean()) for n, w in weights.items() if "lora_A" in n} == {2.0}


def test_the_effect_is_that_of_the_largest_strength_within_the_limits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = {1.0: (0.9, 0.9), 0.8: (0.8, 0.8), 0.7: (0.8, 0.8), 0.6: (0.7, 0.7)}
    excesses = {1.0: 1.5, 0.8: 1.0, 0.7: 1.0, 0.6: 1.0}
    assert choose(monkeypatch, values, excesses=excesses)[0] == 0.7
    # Without any, the limits do not decide.
    excesses = dict.fromkeys(values, 2.0)
    assert choose(monkeypatch, values, excesses=excesses)[0] == 1.0
