from __future__ import annotations

import torch

from helpers.tiny_models import tiny_editable
from retouch.concepts.chat import TokenizedChat
from retouch.representations.activations import forward_with_states, response_states

IDS = torch.arange(6, 46).reshape(4, 10)


def test_states_and_logits_equal_those_of_transformers() -> None:
    editable = tiny_editable()
    states, logits = forward_with_states(editable, IDS, (0, 2))
    full = editable.model(input_ids=IDS, output_hidden_states=True, use_cache=False)
    assert torch.equal(states[2], full.hidden_states[3])
    assert torch.equal(logits, full.logits)


def test_response_states_begin_at_the_last_prompt_token() -> None:
    editable = tiny_editable()
    chats = [TokenizedChat(tuple(range(6, 14)), 3), TokenizedChat(tuple(range(9, 15)), 5)]
    ((batch, rows, states),) = response_states(editable, chats, [1], 2)
    assert [batch.index[row] for row in rows] == [1, 0, 0]
    full, _ = forward_with_states(editable, torch.tensor([chats[0].ids]), [1])
    torch.testing.assert_close(states[1][1:], full[1][0, 2:4].detach())
