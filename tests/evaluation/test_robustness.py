from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

from helpers.char_tokenizer import add_random_adapter, char_editable
from helpers.edited import has_weights, refusal_concept, weights
from retouch.core.errors import ConfigError
from retouch.core.serialization import from_plain, to_plain
from retouch.evaluation import robustness
from retouch.evaluation.finetuning_attack import finetuning_attack, finetuning_sweep
from retouch.evaluation.robustness import (
    ATTACKS,
    applicable_attacks,
    check_attacks,
    run_robustness,
)
from retouch.evaluation.statistics import Curve
from retouch.evaluation.strength_sweep import effect_records


@pytest.mark.usefixtures("complying_base")
def test_all_attacks_run_and_leave_the_model_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(robustness, "SUFFIX_LENGTHS", (2,))
    monkeypatch.setattr(robustness, "finetuning_attack", partial(finetuning_attack, steps=(0, 2)))
    monkeypatch.setattr(robustness, "finetuning_sweep", partial(finetuning_sweep, steps=(0, 2)))
    editable = add_random_adapter(char_editable(), 0.3)
    before = weights(editable)
    progress: list[str] = []
    report = run_robustness(
        editable,
        refusal_concept(),
        limit=2,
        progress=lambda description, done, total: progress.append(description),
    )
    assert tuple(report.seconds) == ATTACKS
    assert [record.metric for record in report.records] == [
        "prefill_short",
        "gcg_2_refusal",
        "gcg_2_steps",
        "latent_0.1_refusal",
        "latent_0.3_refusal",
        "self_bleu",
        "repetition_4gram",
        "repetition_sentence",
    ]
    suites = [record.suite for record in report.records]
    assert suites == ["safety", *["robustness"] * 4, *["text-quality"] * 3]
    assert all(record.after is not None for record in report.records)
    curves = {(curve.suite, curve.metric): curve.points for curve in report.curves}
    assert list(curves) == [
        ("prefill", "greedy_refusal"),
        ("prefill", "sampled_refusal"),
        ("finetune", "attack_refusal"),
        ("finetune", "direct_refusal"),
        ("finetune_sweep", "attack_refusal"),
        ("finetune_sweep", "direct_refusal"),
        ("strip", "attack_refusal"),
        ("strip", "kl_per_token"),
        ("strength", "attack_refusal"),
        ("strength", "kl_per_token"),
    ]
    drift = dict(curves["strength", "kl_per_token"])
    assert drift[0.0].value == pytest.approx(0.0, abs=1e-6)
    assert drift[1.0].value > 0.01
    samples = [s for s in report.samples if (s.metric, s.model) == ("gcg_2_refusal", "edited")]
    assert len(samples) == 2
    assert "searching suffixes" in progress
    assert has_weights(editable, before)
    for curve in report.curves:
        assert from_plain(Curve, to_plain(curve)) == curve


def test_only_applicable_attacks_run_by_default() -> None:
    other = replace(refusal_concept(), weakens=None)
    edited = add_random_adapter(char_editable(), 0.3)
    assert applicable_attacks(edited, other) == ("strip", "strength", "quality")
    assert applicable_attacks(edited, refusal_concept()) == ATTACKS
    of_base = applicable_attacks(char_editable(), refusal_concept())
    assert not {"strip", "strength"} & set(of_base)


def test_the_strength_sweep_needs_a_metric_of_the_effect() -> None:
    concept = refusal_concept()
    spec = replace(concept.directions["raise"], effect="")
    silent = replace(concept, directions={"raise": spec})
    with pytest.raises(ConfigError) as error:
        run_robustness(add_random_adapter(char_editable(), 0.3), silent, ["strength"])
    assert error.value.code == "effect-missing"


def test_an_unknown_attack_is_named_with_the_known_ones() -> None:
    with pytest.raises(ConfigError) as error:
        check_attacks(["prefill", "riddle"])
    assert error.value.code == "attack-unknown"
    assert "`riddle`" in error.value.message
    assert all(f"`{name}`" in error.value.hint for name in ATTACKS)


def test_effect_records_are_the_effects_and_the_drift_last() -> None:
    editable = add_random_adapter(char_editable(), 0.3)
    records = effect_records(editable, [(refusal_concept(), "raise")], limit=2)
    assert [record.metric for record in records] == ["attack_refusal", "kl_per_token"]
    assert records[1].after is not None
    assert records[1].after.value > 0.01
