from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import GPT2Config

from retouch.concepts.render import Rendered
from retouch.core.errors import ModelError
from retouch.editing.edit import set_up
from retouch.models.layout import find_layout
from retouch.models.load import LoadedModel
from retouch.models.segment import Segment, replaced
from retouch.representations.batch import make_batches
from retouch.representations.capture import record
from retouch.representations.divergence import token_kl
from retouch.representations.likelihood import reply_log_probability
from retouch.representations.patching import trace
from test_game import settings, tiny_concept
from tiny import tiny_loaded

IDS = torch.arange(6, 46).reshape(4, 10)


def test_catching_stops_before_the_last_block_and_leaves_no_hook() -> None:
    loaded = tiny_loaded()
    seen: list[int] = []
    handle = loaded.blocks[2].register_forward_hook(lambda *_: seen.append(1))
    Segment(loaded, 1, 2).catch(IDS)
    assert not seen
    handle.remove()
    assert all(not block._forward_pre_hooks for block in loaded.blocks)


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


def handed(way: str) -> LoadedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Handed(way).requires_grad_(False)
    return LoadedModel(model, None, "handed", None, torch.device("cpu"), find_layout(model))


@pytest.mark.parametrize("way", ["first", "kept"])
def test_a_model_whose_blocks_hand_on_more_than_the_state_is_refused(way: str) -> None:
    loaded = handed(way)
    with pytest.raises(ModelError, match=r"flows between its blocks \(blocks 0 to 2\)"):
        Segment(loaded, 0, 2).check(IDS)
    assert all(not block._forward_hooks for block in loaded.blocks)


def test_what_no_edit_changes_may_reach_every_block() -> None:
    Segment(handed("nothing"), 0, 2).check(IDS)
    Segment(handed("embedded"), 0, 2).check(IDS)
    Segment(handed("first"), 1, 2).check(IDS)


def test_states_of_another_shape_are_refused() -> None:
    loaded = handed("nothing")
    loaded.model.embed.register_forward_hook(lambda *given: given[2][None])
    with pytest.raises(ModelError, match=r"states are \[1, 4, 10, 8\]"):
        Segment(loaded, 0, 2).check(IDS)


def test_an_edit_checks_the_segment_before_it_attaches_an_adapter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded, held = tiny_loaded(), Segment.run
    monkeypatch.setattr(Segment, "run", lambda *given: {i: s + 1 for i, s in held(*given).items()})
    with pytest.raises(ModelError, match="tiny cannot be edited"):
        set_up(loaded, tiny_concept(), settings())
    assert not loaded.adapted


def test_record_lets_go_after_an_error() -> None:
    loaded = tiny_loaded()
    with pytest.raises(RuntimeError), record(loaded, [0, 3]):
        raise RuntimeError
    assert all(not block._forward_hooks for block in loaded.blocks)


def test_padding_changes_no_state_of_a_real_token() -> None:
    loaded = tiny_loaded()
    rows = [Rendered(tuple(range(6, 14)), 5), Rendered(tuple(range(20, 32)), 7)]
    (batch,) = make_batches(rows, 4, 0)
    segment = Segment(loaded, 1, 2)
    together = segment.run(segment.catch(batch.ids), (2,))[2]
    alone = segment.run(segment.catch(torch.tensor([rows[0].ids])), (2,))[2]
    at = batch.index.index(0)
    assert torch.allclose(together[at, :8], alone[0], rtol=1e-4, atol=1e-4)
    assert batch.real().sum() == 20


def test_reply_positions_predict_the_reply() -> None:
    (batch,) = make_batches([Rendered((5, 6, 7, 8, 9, 10), 3)], 4, 0)
    rows, at = batch.reply()
    assert at.tolist() == [2, 3, 4]
    assert batch.ids[rows, at + 1].tolist() == [8, 9, 10]
    assert batch.reply(1)[1].tolist() == [2]


def test_replacing_states_with_those_of_another_run_gives_that_run() -> None:
    loaded = tiny_loaded()
    with record(loaded, [2]) as states:
        other = loaded.model(input_ids=IDS + 40, use_cache=False).logits
    rows = torch.arange(4).repeat_interleave(10)
    at = torch.arange(10).repeat(4)
    with replaced(loaded, 2, rows, at, states[2].reshape(40, -1)):
        patched = loaded.model(input_ids=IDS, use_cache=False).logits
    assert torch.equal(patched, other)


def test_patching_the_last_block_brings_the_whole_reply_back() -> None:
    loaded = tiny_loaded()
    source = [Rendered((10 + i, 20, 30, 40, 50), 3) for i in range(6)]
    target = [Rendered((60 + i, 21, 31, 40, 50), 3) for i in range(6)]
    found = trace(loaded, source, target)
    if found.pairs:
        assert found.recovery[-1] == pytest.approx(1.0, abs=1e-3)
    assert len(found.recovery) == 4


def test_log_probability_of_a_reply_by_hand() -> None:
    loaded = tiny_loaded()
    row = Rendered((10, 11, 12, 13), 2)
    logits = loaded.model(input_ids=torch.tensor([row.ids])).logits[0].log_softmax(-1)
    by_hand = (logits[1, 12] + logits[2, 13]) / 2
    assert reply_log_probability(loaded, [row])[0] == pytest.approx(float(by_hand), abs=1e-5)


def test_divergence_of_a_model_from_itself_is_zero() -> None:
    from retouch.models import adapters

    loaded = tiny_loaded()
    adapters.attach(loaded, [1], (), 2, 4.0, 0)
    rows = [Rendered((10, 11, 12, 13), 2)]
    assert token_kl(loaded, rows)[0].total == 0.0
    with torch.no_grad():
        for parameter in adapters.parameters(loaded).values():
            parameter.add_(0.1)
    moved = token_kl(loaded, rows)[0]
    assert moved.total > moved.reply_total > 0
    assert (moved.count, moved.reply_count) == (3, 2)


@pytest.mark.parametrize("last", [2, 3])
def test_reading_at_once_is_catching_and_running(last: int) -> None:
    loaded = tiny_loaded()
    segment = Segment(loaded, 1, last)
    both = (1, last)
    read, run = segment.read(IDS, both), segment.run(segment.catch(IDS), both)
    assert read.keys() == run.keys()
    assert all(torch.equal(read[tap], run[tap]) for tap in both)
    assert all(not b._forward_hooks and not b._forward_pre_hooks for b in loaded.blocks)
