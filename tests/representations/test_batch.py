from __future__ import annotations

import random
from itertools import islice

import torch

from retouch.concepts.chat import TokenizedChat
from retouch.models.shared_beginning import MIN_SHARED
from retouch.representations.batch import make_batches, pack, pad_right, shuffled_forever


def test_batches_have_every_chat_once_and_similar_lengths_together() -> None:
    lengths = [5, 1, 4, 2, 3, 9, 7]
    chats = [TokenizedChat(tuple(range(n)), 0) for n in lengths]
    found = [batch.index for batch in make_batches(chats, 3, 0, 1000)]
    assert sorted(i for index in found for i in index) == list(range(len(chats)))
    assert [lengths[i] for index in found for i in index] == sorted(lengths)
    assert max(map(len, found)) == 3
    assert all(len(batch.index) == 1 for batch in make_batches(chats, 3, 0, 1))
    assert not make_batches([], 3, 0, 10)


def test_positions_offsets_and_tokens_of_a_response() -> None:
    (batch,) = make_batches([TokenizedChat((5, 6, 7, 8, 9), 2), TokenizedChat((5, 6, 7), 2)], 2, 0)
    assert batch.lengths == (3, 5)
    rows, positions = batch.response_positions()
    assert (rows.tolist(), positions.tolist()) == ([0, 1, 1, 1], [1, 1, 2, 3])
    assert batch.response_offsets().tolist() == [0, 0, 1, 2]
    assert batch.response_tokens().tolist() == [7, 7, 8, 9]
    assert batch.position_weights((rows, positions), 4.0).tolist() == [4, 4, 1, 1]
    assert len(batch.token_positions()[0]) == 8
    limited = batch.response_positions(2)
    assert limited[1].tolist() == [1, 1, 2]
    assert batch.select([0]).ids.tolist() == [[5, 6, 7]]


def test_the_common_prompt_suffix_excludes_the_last_token() -> None:
    source = [TokenizedChat((9, 5, 6, 7, 1, 2), 4), TokenizedChat((5, 6, 8, 1), 3)]
    target = [TokenizedChat((5, 6, 7, 1, 2), 3), TokenizedChat((5, 6, 7, 8, 1), 4)]
    (batch,) = make_batches(source, 2, 0)
    counterpart = batch.counterpart(target, 0)
    shared = batch.common_prompt_suffix(counterpart)
    # 5 6 7 is shared, its last token begins the response; of 5 6 8 and 5 6 7 8 only 8 is shared.
    assert dict(zip(batch.index, shared, strict=True)) == {0: 2, 1: 0}
    rows, positions = batch.response_positions(prompt_tokens=shared)
    other_rows, other_positions = counterpart.response_positions(prompt_tokens=shared)
    assert rows.tolist() == other_rows.tolist()
    assert batch.ids[rows, positions].tolist() == counterpart.ids[rows, other_positions].tolist()


def test_shuffled_forever_has_every_item_once_in_each_epoch() -> None:
    items = shuffled_forever([1, 2, 3], random.Random(0))
    epochs = [list(islice(items, 3)) for _ in range(5)]
    assert all(sorted(epoch) == [1, 2, 3] for epoch in epochs)
    assert len(set(map(tuple, epochs))) > 1
    assert list(shuffled_forever([], random.Random(0))) == []


def test_the_states_of_a_prefill_are_those_where_the_response_could_begin() -> None:
    beginning = tuple(range(1, MIN_SHARED + 1))
    chats = [
        TokenizedChat((*beginning, 20, 21, 22, 23, 24), MIN_SHARED + 3, prefill=2),
        TokenizedChat((*beginning, 30, 31, 32), MIN_SHARED + 1),
        TokenizedChat((*beginning, 20, 21, 22, 23, 25), MIN_SHARED + 4, prefill=3),
    ]
    for make in (pad_right, pack):
        batch = make(range(3), chats, 0)
        positions, of_chats = batch.prefill_positions()
        assert of_chats.tolist() == [0, 0, 2, 2, 2]
        tokens = [int(batch.ids[row, at]) for row, at in zip(*positions, strict=True)]
        assert tokens == [20, 21, 20, 21, 22]
    none = pad_right([1], chats, 0).prefill_positions()
    assert none[1].dtype == torch.long
    assert not len(none[1])
