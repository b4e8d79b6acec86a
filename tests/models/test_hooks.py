"""Activations are recorded and patched by hooks, which are always removed."""

from __future__ import annotations

import pytest
import torch

from helpers.tiny_models import tiny_editable
from retouch.models.hooks import patch_activations, record_activations

IDS = torch.arange(6, 46).reshape(4, 10)


def test_hooks_are_removed_after_an_error() -> None:
    editable = tiny_editable()
    with pytest.raises(RuntimeError), record_activations(editable, [0, 3]):
        raise RuntimeError
    assert all(not block._forward_hooks for block in editable.blocks)


def test_patching_all_states_of_another_run_gives_that_run() -> None:
    editable = tiny_editable()
    with record_activations(editable, [2]) as states:
        other = editable.model(input_ids=IDS + 40, use_cache=False).logits
    rows = torch.arange(4).repeat_interleave(10)
    positions = torch.arange(10).repeat(4)
    with patch_activations(editable, 2, rows, positions, states[2].reshape(40, -1)):
        patched = editable.model(input_ids=IDS, use_cache=False).logits
    assert torch.equal(patched, other)
