from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from helpers.char_tokenizer import add_random_adapter
from helpers.tiny_models import tiny_editable
from retouch.concepts.chat import TokenizedChat
from retouch.core.config import LoraConfig
from retouch.evaluation import latent_attack as latent
from retouch.evaluation.latent_attack import (
    first_adapted_layer,
    latent_attack,
    search_perturbation,
)
from retouch.models.adapters import attach
from retouch.models.editable_model import EditableModel
from retouch.models.hooks import edit_inputs
from retouch.representations.batch import ChatBatch, make_batches
from retouch.representations.logprobs import batch_logprob

# The target tokens 22 and 40 are the words w16 and w34.
CHATS = [TokenizedChat((1, 9, 30, 31, 32, 33, 22), 6), TokenizedChat((1, 7, 8, 40), 3)]


def confident_editable() -> EditableModel:
    editable = tiny_editable()
    with torch.no_grad():
        editable.model.get_output_embeddings().weight.mul_(20.0)
    return editable


def batch() -> ChatBatch:
    chats = [
        TokenizedChat((1, 7, 8, 9, 20, 21), 4),
        TokenizedChat((1, 9, 30, 31, 32, 33, 22, 23), 6),
    ]
    return make_batches(chats, 8, 0)[0]


def test_a_perturbation_stays_within_its_radius_and_beats_a_random_one() -> None:
    editable, chats = add_random_adapter(tiny_editable(), 0.3), batch()
    delta = search_perturbation(editable, chats, 1, epsilon=0.3, steps=6)
    states: list[torch.Tensor] = []

    def record(hidden: torch.Tensor) -> torch.Tensor:
        states.append(hidden)
        return hidden

    with torch.no_grad(), edit_inputs(editable, 1, record):
        plain = batch_logprob(editable, chats)
    share = delta.norm(dim=-1) / states[0].norm(dim=-1)
    assert float(share.max()) <= 0.3 * (1 + 1e-5)
    assert float(share.max()) > 0.2
    for row, start in enumerate(chats.starts):
        assert not delta[row, start:].any()  # the response's own states are not perturbed

    noise = torch.randn(delta.shape, generator=torch.Generator().manual_seed(0))
    noise *= (delta.norm(dim=-1) / noise.norm(dim=-1))[..., None]

    def logprob(perturbation: torch.Tensor) -> torch.Tensor:
        with edit_inputs(editable, 1, lambda hidden: hidden + perturbation):
            return batch_logprob(editable, chats)

    assert bool((logprob(delta) > plain + 0.01).all())
    assert bool((logprob(delta) > logprob(noise)).all())
    assert all(not block._forward_pre_hooks for block in editable.blocks)


def responses(editable: EditableModel, epsilon: float, steps: int) -> list[str]:
    """The responses to `CHATS` under an attack on the first block."""
    targets: list[Any] = [
        SimpleNamespace(tokenized=lambda *_, chat=chat: chat, example=SimpleNamespace(prompt=()))
        for chat in CHATS
    ]
    outcomes = latent_attack(editable, targets, layer=0, epsilon=epsilon, steps=steps)
    return [outcome.response for outcome in outcomes]


def test_responses_are_generated_under_the_perturbation() -> None:
    editable = confident_editable()
    plain = responses(editable, epsilon=0.0, steps=1)
    perturbed = responses(editable, epsilon=1.0, steps=12)
    assert [response.split()[0] for response in perturbed] == ["w16", "w34"]
    assert [response.split()[0] for response in plain] != ["w16", "w34"]


def test_a_batch_that_does_not_fit_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    editable = confident_editable()
    expected = responses(editable, epsilon=1.0, steps=12)
    search, sizes = latent.search_perturbation, []

    def limited(editable: EditableModel, batch: ChatBatch, *rest: object) -> torch.Tensor:
        sizes.append(len(batch.index))
        if len(batch.index) > 1:
            raise torch.OutOfMemoryError
        return search(editable, batch, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(latent, "search_perturbation", limited)
    assert responses(editable, epsilon=1.0, steps=12) == expected
    assert sizes == [2, 1, 1]


def test_the_first_adapted_layer_is_perturbed_by_default() -> None:
    editable = tiny_editable()
    assert first_adapted_layer(editable) == 2
    attach(editable, [1, 3], LoraConfig(r=2, lora_alpha=2.0, target_modules=("q_proj",)), seed=0)
    assert first_adapted_layer(editable) == 1
