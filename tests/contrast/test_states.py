"""Log-probabilities and states of the chats of a contrast."""

from __future__ import annotations

from dataclasses import replace

import pytest

import retouch
from retouch.concepts.registry import load_concept
from retouch.contrast.states import MAX_COMPARED, run_chats
from retouch.core.config import DataConfig
from retouch.representations.logprobs import response_logprob
from retouch.representations.packing import Packer
from retouch.task.examples import build_examples


def test_a_gap_is_the_difference_of_mean_log_probabilities() -> None:
    pocket = retouch.load("pocket")
    data = DataConfig(num_examples=6, num_retain=0, max_new_tokens=48)
    concept = load_concept("pocket-safety")
    train = build_examples(pocket, concept, "raise", "train", data, 0)
    cut = [replace(one, ids=one.ids[: one.start + MAX_COMPARED]) for one in train.source]
    expected = response_logprob(pocket, cut)
    for packed in (False, True):
        found, states = run_chats(pocket, train.source, (2, 5), Packer(pocket, packed=packed))
        assert found.tolist() == pytest.approx(expected.tolist(), abs=1e-4)
        assert {layer: tuple(one.shape) for layer, one in states[0].items()} == {
            2: (1, 128),
            5: (1, 128),
        }
