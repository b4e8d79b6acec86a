"""Steering and reading vectors against the libraries steering-vectors and repeng."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from helpers.steering_task import IDS, apply, logits, steering_task
from helpers.tiny_models import tiny_editable
from retouch.concepts.chat import prompt_ids
from retouch.methods.steering import contrast_states, mean_difference, reading_direction
from retouch.models.editable_model import EditableModel
from retouch.task.task import EditTask

INSTALL = "pip install --no-deps -r tests/oracles/requirements.txt"


def replace_module(monkeypatch: pytest.MonkeyPatch, name: str, **attributes: Any) -> None:
    """Replace a module that a library imports and the test does not use."""
    module = ModuleType(name)
    for key, value in attributes.items():
        setattr(module, key, value)
    monkeypatch.setitem(sys.modules, name, module)


class PCA:
    """The one call of scikit-learn's PCA that repeng makes."""

    def __init__(self, n_components: int, whiten: bool) -> None:
        assert (n_components, whiten) == (1, False)

    def fit(self, rows: np.ndarray[Any, Any]) -> PCA:
        self.components_ = np.linalg.svd(rows - rows.mean(0), full_matrices=False)[2][:1]
        return self


def prompt_pairs(editable: EditableModel, task: EditTask) -> list[tuple[str, str]]:
    """Target and source prompt of each training pair, as texts."""
    chats = zip(task.train.counterparts, task.train.source, strict=True)
    pairs = [
        tuple(editable.tokenizer.decode(chat.ids[: chat.start]) for chat in pair) for pair in chats
    ]
    target, source = task.train.demonstrations[0][0], task.train.source_examples[0].prompt
    for text, prompt in zip(pairs[0], (target, source), strict=True):
        assert editable.tokenizer(text)["input_ids"] == prompt_ids(editable.tokenizer, prompt)
    return pairs  # type: ignore[return-value]


def test_steering_vectors_computes_the_same_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        if "steering_vectors" not in sys.modules:  # only its regression needs scikit-learn
            replace_module(patch, "sklearn")
            classes = ("LinearRegression", "LogisticRegression")
            attributes = {name: type(name, (), {}) for name in classes}
            replace_module(patch, "sklearn.linear_model", **attributes)
        library = pytest.importorskip("steering_vectors", reason=INSTALL)
    editable = tiny_editable()
    task = steering_task(True)
    pairs = prompt_pairs(editable, task)
    states = contrast_states(editable, task, range(4), 1)
    mean = library.train_steering_vector(editable.model, editable.tokenizer, pairs, batch_size=3)
    pca = library.train_steering_vector(
        editable.model, editable.tokenizer, pairs, aggregator=library.pca_aggregator()
    )
    for layer in range(4):
        torch.testing.assert_close(
            mean_difference(states[layer]), mean.layer_activations[layer], atol=1e-5, rtol=1e-4
        )
        torch.testing.assert_close(
            reading_direction(states[layer], 0), pca.layer_activations[layer], atol=1e-4, rtol=1e-3
        )
    vector = library.SteeringVector({2: mean.layer_activations[2]})
    with vector.apply(editable.model, multiplier=1.5):
        steered = logits(editable)
    apply(editable, task, "steering", strength=1.5, offset=1)
    torch.testing.assert_close(logits(editable), steered, atol=1e-5, rtol=1e-4)


def test_repeng_computes_the_same_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        if "repeng" not in sys.modules:
            replace_module(patch, "gguf")  # its file format
            replace_module(patch, "sklearn")
            replace_module(patch, "sklearn.decomposition", PCA=PCA)
            patch.setattr(np, "float_", np.float64, raising=False)  # removed in numpy 2
        library = pytest.importorskip("repeng", reason=INSTALL)
    editable = tiny_editable()
    task = steering_task(True)
    dataset = [library.DatasetEntry(*pair) for pair in prompt_pairs(editable, task)]
    states = contrast_states(editable, task, (1, 2), 1)
    # Its default centres the differences, which removes their mean, the concept.
    trained = library.ControlVector.train(
        editable.model, editable.tokenizer, dataset, method="pca_center", hidden_layers=[1, 2]
    )
    for layer in (1, 2):
        direction = torch.from_numpy(trained.directions[layer])
        assert float(reading_direction(states[layer], 0) @ direction) > 0.999
    wrapped = library.ControlModel(tiny_editable().model, [1, 2])
    scaled = {
        layer: float(mean_difference(states[layer]).norm()) * trained.directions[layer]
        for layer in (1, 2)
    }
    wrapped.set_control(library.ControlVector("llama", scaled), 1.5)
    with torch.no_grad():
        steered = wrapped(input_ids=IDS[:1], use_cache=False).logits  # its mask takes one row
    apply(editable, task, "reading-vector", strength=1.5, offset=0, span=2)
    torch.testing.assert_close(logits(editable)[:1], steered, atol=1e-4, rtol=1e-3)
