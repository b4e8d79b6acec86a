"""Log-probabilities of responses equal those of the definition."""

from __future__ import annotations

import pytest
import torch

from helpers.tiny_models import tiny_editable
from retouch.concepts.chat import TokenizedChat
from retouch.core.config import LoraConfig
from retouch.models import adapters
from retouch.representations.divergence import token_kl
from retouch.representations.logprobs import response_logprob

CHAT = TokenizedChat((10, 11, 12, 13), 2)


def test_the_log_probability_of_a_response_is_the_mean_over_its_tokens() -> None:
    editable = tiny_editable()
    logits = editable.model(input_ids=torch.tensor([CHAT.ids])).logits[0].log_softmax(-1)
    expected = (logits[1, 12] + logits[2, 13]) / 2
    assert response_logprob(editable, [CHAT])[0] == pytest.approx(float(expected), abs=1e-5)


def test_the_divergence_covers_every_predicted_token() -> None:
    editable = tiny_editable()
    adapters.attach(editable, [1], LoraConfig(r=2, lora_alpha=4.0), 0)
    assert token_kl(editable, [CHAT])[0].total == 0.0
    with torch.no_grad():
        for parameter in adapters.parameters(editable).values():
            parameter.add_(0.1)
    (found,) = token_kl(editable, [CHAT])
    assert found.total > found.response_total > 0
    assert (found.count, found.response_count) == (3, 2)
