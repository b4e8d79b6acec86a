from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import GPT2Config

from retouch.concepts.chat import TokenizedChat
from retouch.core.errors import ModelError
from retouch.models.layout import find_layout
from retouch.models.editable_model import EditableModel
from retouch.models.segment import Segment, patch_activations
from retouch.representations.activations import record_activations
from retouch.representations.batch import make_batches
from retouch.representations.divergence import token_kl
from retouch.representations.logprobs import response_logprob
from retouch.training.setup import set_up_training
from helpers.tiny_edit import tiny_concept, tiny_config
from helpers.tiny_models import tiny_editable

IDS = torch.arange(6, 46).reshape(4, 10)


def test_catching_stops_before_the_last_block_and_leaves_no_hook() -> None:
    editable = tiny_editable()
    seen: list[int] = []
    handle = editable.blocks[2].register_forward_hook(lambda *_: seen.append(1))
    Segment(editable, 1, 2).catch(IDS)
    assert not seen
    handle.remove()
    assert all(not block._forward_pre_hooks for block in editable.blocks)


class Handing(nn.Module):
    """A block that adds to its input what the model hands it besides."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(8, 8)

    def forward(self, hidden: torch.Tensor, besides: torch.Tensor) -> torch.Tensor:
        return hidden + torch.tanh(self.mix(hidden)) + besides


class Handed(nn.Module):
    """A decoder in which something besides the hidden state reaches the blocks, or nothing does.

    `first`: the first block's output goes to the third past the second; `embedded`: so do the
    embeddings, which no edit changes; `kept`: the blocks read the embeddings of the last run.
    """

    def __init__(self, way: str) -> None:
        super().__init__()
        self.config = GPT2Config(n_layer=3)
        self.way = way
        self.embed, self.layers = nn.Embedding(99, 8), nn.ModuleList(Handing() for _ in range(3))
        if way == "kept":
            self.layers[2].register_forward_pre_hook(lambda _, args: (args[0], self.seen))

    def forward(self, input_ids: torch.Tensor, use_cache: bool = False) -> torch.Tensor:
        hidden = self.seen = self.embed(input_ids)
        besides = self.seen if self.way == "embedded" else torch.zeros_like(hidden)
        for block in self.layers:
            hidden = block(hidden, besides)
            besides = hidden if self.way == "first" and block is self.layers[0] else besides
        return hidden


def handed(way: str) -> EditableModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Handed(way).requires_grad_(False)
    return EditableModel(model, None, "handed", None, torch.device("cpu"), find_layout(model))


@pytest.mark.parametrize("way", ["first", "kept"])
def test_a_model_whose_blocks_hand_on_more_than_the_state_is_refused(way: str) -> None:
    editable = handed(way)
    with pytest.raises(ModelError, match=r"flows between its blocks \(blocks 0 to 2\)"):
        Segment(editable, 0, 2).check(IDS)
    assert all(not block._forward_hooks for block in editable.blocks)


def test_what_no_edit_changes_may_reach_every_block() -> None:
    Segment(handed("nothing"), 0, 2).check(IDS)
    Segment(handed("embedded"), 0, 2).check(IDS)
    Segment(handed("first"), 1, 2).check(IDS)


def test_states_of_another_shape_are_refused() -> None:
    editable = handed("nothing")
    editable.model.embed.register_forward_hook(lambda *given: given[2][None])
    with pytest.raises(ModelError, match=r"states are \[1, 4, 10, 8\]"):
        Segment(editable, 0, 2).check(IDS)


def test_an_edit_checks_the_segment_before_it_attaches_an_adapter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    editable, held = tiny_editable(), Segment.run
    monkeypatch.setattr(Segment, "run", lambda *given: {i: s + 1 for i, s in held(*given).items()})
    with pytest.raises(ModelError, match="tiny cannot be edited"):
        set_up_training(editable, tiny_concept(), settings())
    assert not editable.adapted


def test_record_lets_go_after_an_error() -> None:
    editable = tiny_editable()
    with pytest.raises(RuntimeError), record(editable, [0, 3]):
        raise RuntimeError
    assert all(not block._forward_hooks for block in editable.blocks)


def test_padding_changes_no_state_of_a_real_token() -> None:
    editable = tiny_editable()
    rows = [TokenizedChat(tuple(range(6, 14)), 5), TokenizedChat(tuple(range(20, 32)), 7)]
    (batch,) = make_batches(rows, 4, 0)
    segment = Segment(editable, 1, 2)
    together = segment.forward(segment.capture_inputs(batch.ids), (2,))[2]
    alone = segment.forward(segment.capture_inputs(torch.tensor([rows[0].ids])), (2,))[2]
    at = batch.index.index(0)
    assert torch.allclose(together[at, :8], alone[0], rtol=1e-4, atol=1e-4)
    assert batch.token_mask().sum() == 20


def test_response_positions_predict_the_response() -> None:
    (batch,) = make_batches([TokenizedChat((5, 6, 7, 8, 9, 10), 3)], 4, 0)
    rows, at = batch.response_positions()
    assert at.tolist() == [2, 3, 4]
    assert batch.ids[rows, at + 1].tolist() == [8, 9, 10]
    assert batch.response_positions(1)[1].tolist() == [2]


def test_replacing_states_with_those_of_another_run_gives_that_run() -> None:
    editable = tiny_editable()
    with record_activations(editable, [2]) as states:
        other = editable.model(input_ids=IDS + 40, use_cache=False).logits
    rows = torch.arange(4).repeat_interleave(10)
    at = torch.arange(10).repeat(4)
    with patch_activations(editable, 2, rows, at, states[2].reshape(40, -1)):
        patched = editable.model(input_ids=IDS, use_cache=False).logits
    assert torch.equal(patched, other)


def test_patching_the_last_block_brings_the_whole_response_back() -> None:
    editable = tiny_editable()
    source = [TokenizedChat((10 + i, 20, 30, 40, 50), 3) for i in range(6)]
    target = [TokenizedChat((60 + i, 21, 31, 40, 50), 3) for i in range(6)]
    found = causal_trace(editable, source, target)
    if found.pairs:
        assert found.recovery[-1] == pytest.approx(1.0, abs=1e-3)
    assert len(found.recovery) == 4


def test_log_probability_of_a_response_by_hand() -> None:
    editable = tiny_editable()
    row = TokenizedChat((10, 11, 12, 13), 2)
    logits = editable.model(input_ids=torch.tensor([row.ids])).logits[0].log_softmax(-1)
    by_hand = (logits[1, 12] + logits[2, 13]) / 2
    assert response_logprob(editable, [row])[0] == pytest.approx(float(by_hand), abs=1e-5)


def test_divergence_of_a_model_from_itself_is_zero() -> None:
    from retouch.models import adapters

    editable = tiny_editable()
    adapters.attach(editable, [1], (), 2, 4.0, 0)
    rows = [TokenizedChat((10, 11, 12, 13), 2)]
    assert token_kl(editable, rows)[0].total == 0.0
    with torch.no_grad():
        for parameter in adapters.parameters(editable).values():
            parameter.add_(0.1)
    moved = token_kl(editable, rows)[0]
    assert moved.total > moved.response_total > 0
    assert (moved.count, moved.response_count) == (3, 2)


@pytest.mark.parametrize("last", [2, 3])
def test_reading_at_once_is_catching_and_running(last: int) -> None:
    editable = tiny_editable()
    segment = Segment(editable, 1, last)
    both = (1, last)
    read, run = (
        segment.forward_states(IDS, both),
        segment.forward(segment.capture_inputs(IDS), both),
    )
    assert read.keys() == run.keys()
    assert all(torch.equal(read[layer], run[layer]) for layer in both)
    assert all(not b._forward_hooks and not b._forward_pre_hooks for b in editable.blocks)
