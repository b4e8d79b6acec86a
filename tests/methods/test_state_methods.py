"""LoRRA, circuit breaking and paired matching, which train on hidden states."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from helpers.method_task import apply_method, method_task
from helpers.tiny_models import tiny_editable
from retouch.methods.cached_batches import CachedBatches
from retouch.methods.circuit_breaker import reroute_loss, retain_loss, schedule
from retouch.methods.state_matching import (
    cache_source,
    reading_vectors,
    reference_loss,
    response_means,
    shift_loss,
    shifted_layers,
)
from retouch.models.editable_model import EditableModel
from retouch.models.segment import Segment
from retouch.representations.batch import ChatBatch
from retouch.representations.cached_states import CachedStates
from retouch.representations.packing import Packer
from retouch.task.task import EditTask

LAYERS = (1, 2)


def prepare(pairs: bool = True) -> tuple[EditableModel, EditTask, Segment, CachedBatches]:
    editable = tiny_editable()
    task, segment = method_task(editable, pairs), Segment(editable, 0, 2)
    return editable, task, segment, CachedBatches(editable, task, segment)


def offsets(cached: CachedStates, limit: int | None = None) -> torch.Tensor:
    return cached.batch.response_offsets(limit)


def test_lorra_shifts_states_along_the_reading_vector() -> None:
    editable, task, segment, batches = prepare()
    (source,) = batches.cache(task.train.source, 8, LAYERS)
    (target,) = batches.cache(task.train.counterparts, 8, LAYERS)
    vectors = reading_vectors(response_means([target]), response_means([source]))
    first = offsets(source) == 0
    expected = target.states[2][offsets(target) == 0].mean(0) - source.states[2][first].mean(0)
    assert torch.allclose(vectors[2][0], expected, atol=1e-6)
    apply_method(editable, "lorra", task, max_steps=60, shift=2.0, retain_weight=1.0)
    with torch.no_grad():
        change = source.current(segment)[2] - source.states[2]
        zeros = {layer: 0 * vector for layer, vector in vectors.items()}
        unshifted = shift_loss(segment, source, zeros, 0.0)
        after = shift_loss(segment, source, vectors, 2.0)
        with editable.base_model():
            assert float(after) < 0.5 * float(shift_loss(segment, source, vectors, 2.0))
    assert float(unshifted) > 0
    along = F.cosine_similarity(change[first].mean(0), vectors[2][0], dim=0)
    assert float(along) > 0.8


def test_reading_vectors_end_where_one_of_the_means_ends() -> None:
    vectors = reading_vectors({1: torch.ones(2, 4)}, {1: torch.zeros(3, 4)})
    assert vectors[1].shape == (2, 4)


def test_circuit_breaking_reroutes_source_states_and_keeps_the_others() -> None:
    editable, task, segment, batches = prepare()
    (source,) = batches.cache(task.train.rejected, 8, LAYERS)
    (retain,) = batches.cache(task.train.retain, 8, LAYERS, positions=ChatBatch.token_positions)
    assert float(reference_loss(segment, source, reroute_loss)) == pytest.approx(1, abs=1e-5)
    assert float(reference_loss(segment, retain, retain_loss)) == pytest.approx(0, abs=1e-6)
    apply_method(
        editable,
        "circuit-breaker",
        task,
        max_steps=60,
        num_validations=1,
        learning_rate=1e-2,
        retain_weight=10.0,
    )
    with torch.no_grad():
        cosine = float(reference_loss(segment, source, reroute_loss))
        distance = float(reference_loss(segment, retain, retain_loss))
    assert cosine < 0.7
    assert distance < 1 - cosine


def test_the_schedule_is_that_of_the_paper() -> None:
    assert schedule(0, 150) == (1.0, 0.0)
    assert schedule(75, 150) == (0.75, 0.25)


@pytest.mark.parametrize("pairs", [True, False])
def test_paired_matching_brings_states_closer_to_the_target(pairs: bool) -> None:
    editable, task, segment, batches = prepare(pairs)
    source = cache_source(batches, task.train, 8, LAYERS)[0]
    (target,) = batches.cache(task.train.target, 8, LAYERS)
    # Without pairs, the source's responses are longer than any of the target's.
    reach = int(offsets(target).max()) + 1
    first, target_first = offsets(source, reach) == 0, offsets(target) == 0
    assert len(source.states[2]) == len(first)
    if pairs:
        expected = target.states[2][target_first]
    else:
        expected = target.states[2][target_first].mean(0).expand(int(first.sum()), -1)
        assert len(offsets(source)) > len(first)
    assert torch.allclose(source.states[2][first], expected, atol=1e-5)
    apply_method(
        editable, "paired-matching", task, max_steps=40, num_validations=1, retain_weight=3.0
    )
    with torch.no_grad():
        after = float(reference_loss(segment, source))
        with editable.base_model():
            before = float(reference_loss(segment, source))
    assert after < 0.7 * before


def test_shifted_layers_stay_within_the_model() -> None:
    task = method_task(tiny_editable())
    assert shifted_layers(task, 0, 4) == (1, 2)
    assert shifted_layers(task, 1, 4) == (2, 3)
    assert shifted_layers(task, 2, 4) == (3,)
    assert shifted_layers(task, -2, 4) == (0,)


def test_batches_are_halved_while_they_exceed_the_memory() -> None:
    editable, task, segment, _ = prepare()
    padded = replace(task, packer=Packer(editable, packed=False))
    batches = CachedBatches(editable, padded, segment)
    (whole,) = batches.cache(task.train.source, 8, LAYERS)
    means = response_means([whole])

    def limited(_: Any, args: tuple[torch.Tensor, ...]) -> None:
        if len(args[0]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    with_limit = editable.blocks[1].register_forward_pre_hook(limited)
    parts = batches.cache(task.train.source, 8, LAYERS)
    with_limit.remove()
    part_means = response_means(parts)
    assert [len(part.batch.index) for part in parts] == [2, 2, 2, 2]
    index = [i for part in parts for i in part.batch.index]
    assert index == list(whole.batch.index)
    states = torch.cat([part.states[2] for part in parts])
    assert torch.allclose(states, whole.states[2], atol=1e-6)
    assert torch.allclose(part_means[2], means[2], atol=1e-6)
