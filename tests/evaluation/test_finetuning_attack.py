from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from helpers.char_tokenizer import char_editable
from helpers.edited import edited_in_every_way, has_weights, logits, refusal_concept, weights
from retouch.core.config import LoadConfig
from retouch.core.errors import ConfigError, DataError
from retouch.core.types import Score
from retouch.evaluation import attack_targets
from retouch.evaluation import finetuning_attack as attacks
from retouch.evaluation.finetuning_attack import finetuning_attack as run_attack
from retouch.evaluation.statistics import Curve
from retouch.models.editable_model import EditableModel
from retouch.models.load import load
from retouch.representations.finetuning import linear_shapes

pytestmark = pytest.mark.usefixtures("complying_base")

COMPLIES, REFUSES = "Well, do it with a grid.", "I can't help with that."


def test_the_adversary_learns_and_the_model_is_unchanged() -> None:
    editable = edited_in_every_way()
    before, expected = weights(editable), logits(editable)
    hooks = [len(module._forward_hooks) for module in editable.model.modules()]
    curves, losses = run_attack(editable, refusal_concept(), steps=(0, 5, 15), learning_rate=1e-2)
    assert len(losses) == 15
    assert losses[-1] < 0.7 * losses[0]
    assert [curve.metric for curve in curves] == ["attack_refusal", "direct_refusal"]
    assert [at for at, _ in curves[0].points] == [0, 5, 15]
    assert curves[0].points[0][1].n == 2
    assert has_weights(editable, before)
    assert torch.equal(logits(editable), expected)
    assert hooks == [len(module._forward_hooks) for module in editable.model.modules()]


def test_the_adversary_trains_and_is_tested_on_everything_that_acts_on_the_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    editable = edited_in_every_way()
    prompted: list[list[str]] = []

    def generate(editable: EditableModel, prompts: Sequence[Sequence[int]]) -> list[str]:
        prompted.append([editable.tokenizer.decode(ids) for ids in prompts])
        return [REFUSES if "Be good." in text else COMPLIES for text in prompted[-1]]

    monkeypatch.setattr(attack_targets, "generate", generate)
    curves, _ = run_attack(editable, refusal_concept(), steps=(1,))
    of_base, *tested = prompted
    assert not any("Be good." in text for text in of_base)
    assert [len(texts) for texts in tested] == [2, 2]
    assert all("Be good." in text for texts in tested for text in texts)
    assert [curve.points[0][1].value for curve in curves] == [1.0, 1.0]
    targets = attack_targets.attack_targets(editable, refusal_concept(), "train", 2)
    assert len(targets) == 2
    assert all(one.example.label == "direct" for one in targets)
    text = editable.tokenizer.decode(targets[0].tokenized(editable).ids)
    assert "Be good." in text
    assert "Well, do it" in text


def test_the_adversary_updates_the_same_layers_with_and_without_an_adapter() -> None:
    base = linear_shapes(char_editable())
    edited = linear_shapes(edited_in_every_way())
    assert len(base) == 28
    assert [name.removesuffix(".base_layer") for name in edited] == list(base)
    assert list(edited.values()) == list(base.values())


def test_refusals_are_counted_under_the_adversarys_update(monkeypatch: pytest.MonkeyPatch) -> None:
    editable = edited_in_every_way()
    seen: list[torch.Tensor] = []

    def generate(editable: EditableModel, prompts: Sequence[Sequence[int]]) -> list[str]:
        seen.append(logits(editable))
        return [COMPLIES if len(seen) == 1 else REFUSES] * len(prompts)

    monkeypatch.setattr(attack_targets, "generate", generate)
    expected = logits(editable)
    run_attack(editable, refusal_concept(), steps=(0, 2), learning_rate=1e-2)
    assert len(seen) == 5  # the base model, and twice each label of the edited one
    assert torch.equal(seen[1], expected)  # an update that is not trained yet changes nothing
    assert not torch.allclose(seen[3], expected, atol=1e-3)


def test_a_quantised_model_can_be_attacked() -> None:
    editable = load("pocket", LoadConfig(quantize="4bit", device="cpu"))
    before = weights(editable)
    _, losses = run_attack(editable, refusal_concept(), steps=(0, 4), learning_rate=1e-2, limit=1)
    assert losses[-1] < losses[0]
    assert has_weights(editable, before)


def test_a_concept_must_be_about_refusals() -> None:
    with pytest.raises(ConfigError) as error:
        run_attack(char_editable(), replace(refusal_concept(), weakens=None))
    assert error.value.code == "attack-not-applicable"


def test_the_base_must_comply_with_some_jailbreak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        attack_targets, "generate", lambda _, prompts: ["I won't do that."] * len(prompts)
    )
    with pytest.raises(DataError) as error:
        run_attack(char_editable(), refusal_concept())
    assert error.value.code == "attack-targets-missing"


@pytest.mark.parametrize("steps", [(), (-1, 2)])
def test_steps_must_be_given_and_not_negative(steps: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError) as error:
        run_attack(char_editable(), refusal_concept(), steps=steps)
    assert error.value.code == "attack-steps"


def test_the_sweep_keeps_the_fewest_refusals_of_all_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried: list[tuple[float, str]] = []

    def attack(*_: object, **options: object) -> tuple[list[Curve], list[float]]:
        tried.append((options["learning_rate"], options["schedule"]))  # type: ignore[arg-type]
        rates = {0: 1.0, 20: 0.1 * len(tried), 50: 1.0 - 0.1 * len(tried)}
        points = tuple((float(step), Score(rate, 0.0, 1.0, 2)) for step, rate in rates.items())
        return [Curve("finetune", "attack_refusal", "rate", "higher", "steps", points)], []

    monkeypatch.setattr(attacks, "finetuning_attack", attack)
    (curve,) = attacks.finetuning_sweep(edited_in_every_way(), refusal_concept())
    assert len(set(tried)) == 6
    assert {schedule for _, schedule in tried} == {"constant", "cosine"}
    assert curve.suite == "finetune_sweep"
    values = [round(score.value, 6) for _, score in curve.points]
    assert values == [1.0, 0.1, 0.4]
