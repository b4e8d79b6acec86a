"""Packed chats have the states of padded ones."""

from __future__ import annotations

import random

import pytest
import torch

from helpers.tiny_models import tiny_editable
from retouch.concepts.chat import TokenizedChat
from retouch.models.segment import Segment
from retouch.representations.batch import ChatBatch, pack, pad_right
from retouch.representations.packing import Packer, supports_packing

BEGINNING = tuple(range(10, 22))


def chats(count: int = 9) -> list[TokenizedChat]:
    """Chats of several lengths; all but two have a common beginning."""
    rng = random.Random(0)
    made = []
    for number in range(count):
        own = tuple(rng.randrange(6, 99) for _ in range(rng.randint(4, 14)))
        before = BEGINNING if number not in (2, 5) else (50 + number,) * 12
        made.append(TokenizedChat((*before, *own), len(before) + rng.randint(1, 3)))
    return made


def last_states(batch: ChatBatch, family: str) -> torch.Tensor:
    editable = tiny_editable(family)
    segment = Segment(editable, 1, 3)
    packing = batch.packing(torch.float32, editable.device)
    states = segment.forward(segment.capture_inputs(batch.ids, packing), (3,))[3]
    return states[batch.response_positions()]


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "olmo2"])
def test_packed_chats_have_the_states_of_padded_ones(family: str) -> None:
    index = [4, 2, 0, 7, 5, 1, 8]
    packed, padded = pack(index, chats(), 0, row_tokens=120), pad_right(index, chats(), 0)
    assert len(packed.ids) < len(padded.ids)
    assert torch.equal(packed.response_tokens(), padded.response_tokens())
    torch.testing.assert_close(
        last_states(packed, family), last_states(padded, family), rtol=1e-4, atol=1e-4
    )


def test_a_packed_batch_places_every_token_once() -> None:
    made = chats()
    batch = pack(range(len(made)), made, 0, row_tokens=40)
    assert batch.lengths == tuple(len(chat.ids) for chat in made)
    for number, chat in enumerate(made):
        row, shared = batch.rows[number], batch.shared[number]
        own = batch.ids[row, batch.begins[number] : batch.ends[number]].tolist()
        assert (*batch.ids[row, :shared].tolist(), *own) == chat.ids
        assert batch.ends[number] - batch.starts[number] == len(chat.ids) - chat.start
    assert {batch.shared[2], batch.shared[5]} == {0}
    assert set(batch.shared) - {0} == {len(BEGINNING)}
    weights = batch.position_weights(batch.response_positions(), 4.0)
    assert int((weights == 4.0).sum()) == len(made)
    counts = torch.bincount(batch.response_chats())
    assert counts.tolist() == [len(chat.ids) - chat.start for chat in made]


def test_a_long_chat_has_a_row_of_its_own_length() -> None:
    long = TokenizedChat(tuple(range(1, 60)), 5)
    batch = pack([0, 1], [long, TokenizedChat((1, 2, 3), 1)], 0, row_tokens=10)
    assert batch.ids.shape[1] == 59


@pytest.mark.parametrize(
    ("family", "supported"), [("llama", True), ("gpt2", True), ("mamba", False)]
)
def test_models_with_a_running_state_do_not_support_packing(family: str, supported: bool) -> None:
    assert supports_packing(tiny_editable(family)) is supported


def test_chats_that_are_longer_than_a_window_are_padded() -> None:
    editable = tiny_editable("llama")
    packer = Packer(editable)
    assert packer.packed
    made = chats()
    assert packer.batch([0, 1], made).packed
    editable.model.config.sliding_window = max(len(made[i].ids) for i in (0, 1)) - 1
    assert not Packer(editable).batch([0, 1], made).packed
    assert not Packer(editable, packed=False).batch([2, 5], made).packed
