"""The segment's blocks run on their own as they do inside the model."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import GPT2Config

from helpers.tiny_edit import build_training, tiny_config
from helpers.tiny_models import tiny_editable
from retouch.concepts.chat import TokenizedChat
from retouch.core.errors import ModelError
from retouch.models.editable_model import EditableModel
from retouch.models.layout import find_layout
from retouch.models.segment import Segment
from retouch.representations.batch import make_batches

IDS = torch.arange(6, 46).reshape(4, 10)


def test_capturing_inputs_stops_before_the_last_block_and_removes_the_hooks() -> None:
    editable = tiny_editable()
    runs: list[int] = []
    handle = editable.blocks[2].register_forward_hook(lambda *_: runs.append(1))
    Segment(editable, 1, 2).capture_inputs(IDS)
    assert not runs
    handle.remove()
    assert all(not block._forward_pre_hooks for block in editable.blocks)


class SkipBlock(nn.Module):
    """A block that adds a second argument to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(8, 8)

    def forward(self, hidden: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        return hidden + torch.tanh(self.mix(hidden)) + skip


class SkipDecoder(nn.Module):
    """A decoder whose blocks receive something besides the hidden state.

    `zeros`: nothing. `first-output`: the first block's output. `embeddings`: the embeddings, which
    no edit changes. `stale`: the embeddings of the previous run.
    """

    def __init__(self, skip: str) -> None:
        super().__init__()
        self.config = GPT2Config(n_layer=3)
        self.skip = skip
        self.embed = nn.Embedding(99, 8)
        self.layers = nn.ModuleList(SkipBlock() for _ in range(3))
        if skip == "stale":
            self.layers[2].register_forward_pre_hook(lambda _, args: (args[0], self.embedded))

    def forward(self, input_ids: torch.Tensor, use_cache: bool = False) -> torch.Tensor:
        hidden = self.embedded = self.embed(input_ids)
        skip = self.embedded if self.skip == "embeddings" else torch.zeros_like(hidden)
        for block in self.layers:
            hidden = block(hidden, skip)
            if self.skip == "first-output" and block is self.layers[0]:
                skip = hidden
        return hidden


def skip_editable(skip: str) -> EditableModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = SkipDecoder(skip).requires_grad_(False)
    return EditableModel(model, None, "skip", None, torch.device("cpu"), find_layout(model))


@pytest.mark.parametrize("skip", ["first-output", "stale"])
def test_a_model_that_passes_on_more_than_the_hidden_state_is_rejected(skip: str) -> None:
    editable = skip_editable(skip)
    with pytest.raises(ModelError, match=r"\(layers 0 to 2\)") as raised:
        Segment(editable, 0, 2).check(IDS)
    assert raised.value.code == "architecture-unsupported"
    assert all(not block._forward_hooks for block in editable.blocks)


def test_blocks_may_receive_what_no_edit_changes() -> None:
    Segment(skip_editable("zeros"), 0, 2).check(IDS)
    Segment(skip_editable("embeddings"), 0, 2).check(IDS)
    Segment(skip_editable("first-output"), 1, 2).check(IDS)


def test_hidden_states_of_another_shape_are_rejected() -> None:
    editable = skip_editable("zeros")
    editable.model.embed.register_forward_hook(lambda *args: args[2][None])
    with pytest.raises(ModelError, match=r"states are \[1, 4, 10, 8\]") as raised:
        Segment(editable, 0, 2).check(IDS)
    assert raised.value.code == "architecture-unsupported"


def test_the_segment_is_checked_before_an_adapter_is_attached(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    editable, forward = tiny_editable(), Segment.forward
    wrong = lambda *args: {i: states + 1 for i, states in forward(*args).items()}  # noqa: E731
    monkeypatch.setattr(Segment, "forward", wrong)
    with pytest.raises(ModelError) as raised:
        build_training(editable, tiny_config())
    assert raised.value.code == "architecture-unsupported"
    assert not editable.adapted


def test_padding_does_not_change_the_states_of_tokens() -> None:
    editable = tiny_editable()
    chats = [TokenizedChat(tuple(range(6, 14)), 5), TokenizedChat(tuple(range(20, 32)), 7)]
    (batch,) = make_batches(chats, 4, 0)
    segment = Segment(editable, 1, 2)
    together = segment.forward(segment.capture_inputs(batch.ids), (2,))[2]
    alone = segment.forward(segment.capture_inputs(torch.tensor([chats[0].ids])), (2,))[2]
    row = batch.index.index(0)
    assert torch.allclose(together[row, :8], alone[0], rtol=1e-4, atol=1e-4)
    assert batch.token_mask().sum() == 20


@pytest.mark.parametrize("last", [2, 3])
def test_forward_states_equal_those_of_captured_inputs(last: int) -> None:
    editable = tiny_editable()
    segment, layers = Segment(editable, 1, last), (1, last)
    one_pass = segment.forward_states(IDS, layers)
    two_steps = segment.forward(segment.capture_inputs(IDS), layers)
    assert one_pass.keys() == two_steps.keys()
    assert all(torch.equal(one_pass[layer], two_steps[layer]) for layer in layers)
    assert all(not b._forward_hooks and not b._forward_pre_hooks for b in editable.blocks)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "cohere", "granite", "opt"])
def test_logits_of_last_states_are_the_models(family: str) -> None:
    editable = tiny_editable(family)
    depth = editable.layout.depth
    segment = Segment(editable, 1, depth - 1)
    assert segment.to_logits
    with torch.no_grad():
        states = segment.forward(segment.capture_inputs(IDS), (depth - 1,))[depth - 1]
        chosen = states[[0, 2, 3], [9, 4, 0]]
        logits = segment.logits(chosen)
        whole = editable.model(input_ids=IDS, use_cache=False).logits
    torch.testing.assert_close(logits, whole[[0, 2, 3], [9, 4, 0]], rtol=1e-5, atol=1e-5)
    assert not any("forward" in vars(block) for block in editable.blocks)
    states = chosen.clone().requires_grad_()
    segment.logits(states).sum().backward()
    assert states.grad is not None
    assert bool(states.grad.abs().sum() > 0)
