from __future__ import annotations

import torch

from helpers.method_task import adapter_weights
from helpers.tiny_edit import run_training, tiny_concept, tiny_config
from helpers.tiny_models import tiny_editable
from retouch.concepts.registry import load_concept
from retouch.core.config import MethodConfig
from retouch.methods.registry import get_method
from retouch.task.task import build_task


def test_the_method_makes_the_same_edit_as_the_pipeline() -> None:
    config = tiny_config()
    expected = tiny_editable()
    run_training(expected, config)
    editable = tiny_editable()
    task = build_task(editable, tiny_concept(), config.direction, config.seed, config.data)
    rounds: list[tuple[int, int]] = []
    get_method("retouch").apply(
        editable,
        task,
        config.method,
        lambda description, done, total: rounds.append((done, total)),
    )
    assert rounds == [(1, 4), (2, 4), (3, 4), (4, 4)]
    weights = adapter_weights(editable)
    assert all(torch.equal(weights[n], value) for n, value in adapter_weights(expected).items())


def test_defaults_are_the_groups_of_the_method_in_the_pack() -> None:
    method = get_method("retouch")
    concept = load_concept("pocket-one-attack")
    defaults = method.defaults(concept, "raise")
    assert defaults
    assert set(defaults) <= set(MethodConfig.model_fields)
    assert "data" in concept.settings["raise"]
    assert "data" not in defaults
    settings = method.settings.model_validate(defaults)
    assert settings.train.rounds == concept.settings["raise"]["train"]["rounds"]  # type: ignore[attr-defined]
    assert method.defaults(concept, "lower") == {}
