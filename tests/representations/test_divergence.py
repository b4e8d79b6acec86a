import pytest
import torch

from retouch.concepts.chat import TokenizedChat, tokenize_chat
from retouch.core.types import Message
from retouch.evaluation.drift import mean_kl
from retouch.representations.batch import make_batches
from retouch.representations.divergence import token_kl
from helpers.char_tokenizer import edit, char_editable

PROMPTS = ["Hi", "What is the capital of France?", "Count these: a, b.", "So?"]


def tokenized(editable):
    return [
        tokenize_chat(
            editable.tokenizer, (Message("user", text),), f"Well, {i}", "Oh" if i % 2 else ""
        )
        for i, text in enumerate(PROMPTS)
    ]


def by_hand(editable, text):
    """The definition, one text at a time, in float64."""
    ids = torch.tensor([text.ids])
    with torch.no_grad():
        edited = editable.model(input_ids=ids).logits[0].double().softmax(-1)
        with editable.base_model():
            base = editable.model(input_ids=ids).logits[0].double().softmax(-1)
    return (base * (base.log() - edited.log())).sum(-1)[:-1].tolist()


def test_kl_is_the_definition_whatever_the_batch():
    editable = edit(char_editable(), 0.3)
    texts = tokenized(editable)
    for batch_size in (1, 3, 8):
        rows = token_kl(editable, texts, batch_size)
        for text, row in zip(texts, rows, strict=True):
            oracle = by_hand(editable, text)
            assert row.total == pytest.approx(sum(oracle), rel=1e-3)
            assert row.response_total == pytest.approx(sum(oracle[text.start - 1 :]), rel=1e-3)
            assert row.count == len(text.ids) - 1
            assert row.response_count == len(text.ids) - text.start
    assert mean_kl(rows, responses=False).value > 1e-3  # there was something to measure


@pytest.mark.parametrize("editable", [char_editable(), edit(char_editable(), 0.0)], ids=["bare", "adapter"])
def test_a_model_is_at_exactly_no_distance_from_itself(editable):
    rows = token_kl(editable, tokenized(editable), 2)
    for responses in (True, False):
        score = mean_kl(rows, responses=responses)
        assert (score.value, score.low, score.high) == (0.0, 0.0, 0.0)


def test_farther_edits_drift_farther():
    scores = [
        mean_kl(token_kl(editable, tokenized(editable), 4), responses=True).value
        for editable in (edit(char_editable(), scale) for scale in (0.01, 0.1, 1.0))
    ]
    assert scores == sorted(scores)
    assert scores[0] > 0


def test_what_the_base_rules_out_is_no_nan():
    editable = edit(char_editable(), 0.3)
    head = editable.model.get_base_model().lm_head

    def ruled_out(module, args, logits):
        return logits.index_fill(-1, torch.tensor([5]), float("-inf"))

    handle = head.register_forward_hook(ruled_out)
    rows = token_kl(editable, tokenized(editable), 4)
    handle.remove()
    assert all(0 < row.total < float("inf") for row in rows)


def test_batches_hold_every_row_once_and_like_lengths_together():
    lengths = [5, 1, 4, 2, 3, 9, 7]
    rows = [TokenizedChat(tuple(range(n)), 0) for n in lengths]
    found = [batch.index for batch in make_batches(rows, 3, 0, 1000)]
    assert sorted(i for index in found for i in index) == list(range(len(rows)))
    assert [lengths[i] for index in found for i in index] == sorted(lengths)
    assert max(map(len, found)) == 3
    assert all(len(batch.index) == 1 for batch in make_batches(rows, 3, 0, 1))
    assert not make_batches([], 3, 0, 10)
