from __future__ import annotations

from typing import Literal

import pytest
import torch

from helpers.groups_concept import groups_concept
from helpers.tiny_edit import build_training, tiny_concept, tiny_config
from helpers.tiny_models import tiny_editable
from retouch.concepts.concept import Concept
from retouch.core.types import no_progress
from retouch.methods.registry import get_method
from retouch.representations.choice_probs import choice_probs
from retouch.representations.logprobs import response_logprob
from retouch.task.task import EditTask, build_task


def make_task(concept: Concept) -> EditTask:
    config = tiny_config()
    return build_task(tiny_editable(), concept, "raise", 0, config.data, config.method)


def test_with_pairs_the_score_is_the_log_probability_of_the_target_response() -> None:
    task = make_task(tiny_concept())
    result = task.validator()
    expected = response_logprob(tiny_editable(), task.validation.source).mean()
    assert result.score == pytest.approx(float(expected))
    # The base's log-probabilities are kept in half precision.
    assert result.drift == pytest.approx(0, abs=1e-5)
    assert result.retain_change == 0


@pytest.mark.parametrize("better", ["higher", "lower"])
def test_the_score_of_a_gap_has_the_sign_of_the_direction(
    better: Literal["higher", "lower"],
) -> None:
    task = make_task(groups_concept(better))
    examples = task.validation.source_examples
    probs = choice_probs(tiny_editable(), examples, ("w7", "w8"))
    means = [
        sum(p for p, one in zip(probs, examples, strict=True) if one.group == group)
        / sum(one.group == group for one in examples)
        for group in "ab"
    ]
    gap = abs(means[0] - means[1])
    expected = gap - 1 if better == "higher" else -gap
    assert task.validator().score == pytest.approx(expected, abs=1e-6)


def test_without_pairs_discriminators_outside_the_training_score() -> None:
    config = tiny_config({"loss.retain_weight": 0.1})
    training = build_training(tiny_editable(), config, tiny_concept(pairs=False))
    assert training.task.patching is None
    events = list(training.trainer.train())
    assert all("matching" not in event.losses for event in events)
    assert max(event.validation_score for event in events) > events[0].validation_score


def test_drift_is_measured_on_the_model_as_it_is() -> None:
    editable = tiny_editable()
    config = tiny_config()
    task = build_task(editable, tiny_concept(), "raise", 0, config.data, config.method)
    method = get_method("steering")
    method.apply(editable, task, method.settings(strength=4.0), no_progress)
    assert task.validator().drift > 0
    with editable.base_model(), torch.no_grad():
        assert task.validator().drift == pytest.approx(0, abs=1e-5)


def test_from_a_segment_the_validation_is_that_of_the_whole_model() -> None:
    config = tiny_config({"loss.kl_weight": 1.0, "loss.sft_weight": 1.0, "train.rounds": 1})
    training = build_training(tiny_editable(), config)
    list(training.trainer.train())
    segment = training.trainer._context.segment
    assert segment.first == 1
    assert segment.to_logits
    whole, part = training.task.validator(), training.task.validator(segment)
    assert whole.drift > 0
    assert part.score == pytest.approx(whole.score, abs=1e-4)
    assert part.drift == pytest.approx(whole.drift, abs=1e-5)


def test_retain_examples_that_begin_as_a_target_response_are_counted() -> None:
    editable = tiny_editable()
    config = tiny_config()
    task = build_task(editable, tiny_concept(), "raise", 0, config.data, config.method)
    assert task.validator().retain_change == 0
    # w7 is the first token of every target response.
    index = editable.tokenizer.convert_tokens_to_ids("w7")
    head = editable.model.get_output_embeddings()
    handle = head.register_forward_hook(
        lambda _, __, logits: logits + 100.0 * (torch.arange(logits.shape[-1]) == index)
    )
    assert task.validator().retain_change == 1
    handle.remove()
