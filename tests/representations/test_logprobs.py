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


def test_responses_of_one_token_are_read_from_one_prediction() -> None:
    editable = tiny_editable()
    prompts = [tuple(range(start, start + length)) for start, length in ((5, 3), (40, 6))]
    chats = [TokenizedChat((*prompt, one), len(prompt)) for one in (3, 7) for prompt in prompts]
    chats.append(TokenizedChat((1, 2, 3, 4), 2))
    seen = []
    hook = editable.model.register_forward_pre_hook(
        lambda _, args, given: seen.append(len(given["input_ids"])), with_kwargs=True
    )
    found = response_logprob(editable, chats)
    hook.remove()
    assert seen == [2, 1]
    alone = torch.cat([response_logprob(editable, [chat]) for chat in chats])
    torch.testing.assert_close(found, alone)


def test_responses_to_one_prompt_are_packed_and_score_the_same() -> None:
    editable = tiny_editable()
    prompts = [tuple(range(start, start + 12)) for start in (5, 40)]
    responses = [(3,), (7, 8), (9, 10, 11), (4, 6, 5, 3)]
    chats = [TokenizedChat((*prompt, *one), 12) for one in responses for prompt in prompts]
    chats.append(TokenizedChat((1, 2, 3, 4), 1))
    seen = []
    hook = editable.model.register_forward_pre_hook(
        lambda _, args, given: seen.append(given["input_ids"].numel()), with_kwargs=True
    )
    found = response_logprob(editable, chats)
    hook.remove()
    alone = torch.cat([response_logprob(editable, [chat]) for chat in chats])
    torch.testing.assert_close(found, alone)
    assert sum(seen) < sum(len(chat.ids) for chat in chats)
