from __future__ import annotations

import sys
from dataclasses import replace
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from retouch.concepts.chat import prompt_ids, prompt_text
from retouch.concepts.registry import builtin_names, load_concept
from retouch.core.errors import ConfigError
from retouch.core.types import DIRECTIONS, Message
from retouch.methods.ablation import scale_direction, writers
from retouch.methods.directions import (
    PairedTest,
    block_at,
    contrast,
    mean_difference,
    reading_direction,
    response_states,
    unit,
)
from retouch.methods.prompting import reminders
from retouch.methods.registry import get_method
from retouch.models.adapters import detach, merged, save
from retouch.models.editable_model import EditableModel
from retouch.representations.activations import record_activations
from retouch.task.task import EditTask, build_task
from helpers.tiny_edit import tiny_concept, tiny_config
from helpers.tiny_models import tiny_editable

IDS = torch.arange(6, 46).reshape(4, 10)


@cache
def tiny_task(pairs: bool) -> EditTask:
    """Every tiny model has the same weights, so that one task serves them all."""
    few = settings(layers=None, read_layers=(1,), labels=6, response_tokens=2)
    return build_task(tiny_editable(), tiny_concept(pairs), few)


def put_on(editable: EditableModel, task: EditTask, id: str, **more: Any) -> None:
    method = get_method(id)
    method.apply(editable, task, method.settings(**more), lambda *_: None)


def logits(editable: EditableModel, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = editable.model(input_ids=ids, use_cache=False).logits
    return out


ACTING = {
    "steering": {"strength": 2.0},
    "reading-vector": {"strength": 2.0},
    "ablation": {"scale": -1.0},
}


@pytest.mark.parametrize("pairs", [True, False])
@pytest.mark.parametrize("id", ACTING)
def test_a_method_acts_and_the_base_comes_back_bit_for_bit(id: str, pairs: bool) -> None:
    editable = tiny_editable()
    base = logits(editable)
    before = {n: p.detach().clone() for n, p in editable.model.named_parameters()}
    put_on(editable, tiny_task(pairs), id, **ACTING[id])
    assert not torch.allclose(logits(editable), base, atol=1e-3)
    with editable.base_model():
        assert torch.equal(logits(editable), base)
    detach(editable)
    assert not editable.edited
    assert torch.equal(logits(editable), base)
    assert all(torch.equal(p, before[n]) for n, p in editable.model.named_parameters())


def test_no_edit_does_nothing() -> None:
    editable = tiny_editable()
    base = logits(editable)
    put_on(editable, tiny_task(True), "none")
    assert not editable.edited
    assert torch.equal(logits(editable), base)


@pytest.mark.parametrize(("positions", "block"), [(1, 0), (1, 3), (2, 1)])
def test_the_steering_vector_is_the_mean_difference_by_hand(positions: int, block: int) -> None:
    editable = tiny_editable()
    task = tiny_task(True)

    def by_hand(rows: Any) -> torch.Tensor:
        means = []
        for row in rows:
            # The entry after the embedding is block 0's; the last block's is read by hook, since
            # transformers gives it after the final norm.
            with record_activations(editable, [block]) as states, torch.no_grad():
                editable.model(input_ids=torch.tensor([row.ids]), use_cache=False)
            means.append(states[block][0, row.start - 1 : row.start - 1 + positions].mean(0))
        return torch.stack(means).mean(0)

    wanted, unwanted = by_hand(task.train.counterparts), by_hand(task.train.source)
    put_on(editable, task, "steering", strength=0.5, offset=block - 1, positions=positions)
    (steering,) = editable.interventions
    (vector,) = steering.vectors.values()  # type: ignore[attr-defined]
    assert list(steering.vectors) == [block]  # type: ignore[attr-defined]
    torch.testing.assert_close(vector, 0.5 * (wanted - unwanted), atol=1e-5, rtol=1e-4)


def test_states_come_in_the_order_of_the_rows() -> None:
    editable = tiny_editable()
    rows = [*tiny_task(True).train.source, *tiny_task(True).train.retain]  # of unlike lengths
    alone = torch.cat([response_states(editable, [row], [2], 1)[2] for row in rows])
    torch.testing.assert_close(response_states(editable, rows, [2], 1)[2], alone)


def test_offsets_stay_within_the_model() -> None:
    task = tiny_task(True)
    assert [block_at(task, 4, offset) for offset in (-2, -1, 0, 2, 9)] == [0, 0, 1, 3, 3]


def test_a_planted_direction_is_read_and_points_to_the_wanted() -> None:
    torch.manual_seed(0)
    planted = unit(torch.randn(24))
    spread = torch.randn(300, 1).abs() * 4 * planted
    shared = 3 * torch.randn(300, 24)  # what a pair has in common drops out of its difference
    both = PairedTest(shared + spread + 0.3 * torch.randn(300, 24), shared, True)
    assert float(reading_direction(both, 0) @ planted) > 0.98
    turned = PairedTest(both.unwanted, both.wanted, True)
    assert float(reading_direction(turned, 0) @ planted) < -0.98
    with pytest.raises(ConfigError, match="do not differ"):
        unit(torch.zeros(3))


def test_reading_vectors_are_as_long_as_the_mean_difference_on_every_block_of_the_span() -> None:
    editable = tiny_editable()
    task = tiny_task(True)
    found = contrast(editable, task, range(4), 1)
    put_on(editable, task, "reading-vector", strength=3.0, offset=1, span=4)
    (steering,) = editable.interventions
    vectors = steering.vectors  # type: ignore[attr-defined]
    assert list(vectors) == [2, 3]  # the model ends there
    for layer, vector in vectors.items():
        assert float(vector.norm() / mean_difference(found[layer]).norm()) == pytest.approx(3.0)
        assert float(vector @ mean_difference(found[layer])) > 0


WRITERS = {
    "gpt2": {"attn.c_proj", "mlp.c_proj"},
    "gpt_neox": {"attention.dense", "mlp.dense_4h_to_h"},
    "opt": {"self_attn.out_proj", "fc2"},
}


@pytest.mark.parametrize(
    "family",
    ["llama", "mistral", "qwen2", "qwen3", "gemma2", "phi3", "gpt2", "gpt_neox", "opt"],
)
def test_scaled_weights_are_the_equation_and_ablation_leaves_nothing(family: str) -> None:
    editable = tiny_editable(family)
    r = unit(torch.randn(32, generator=torch.Generator().manual_seed(1)))
    names = writers(editable)
    ends = {name.removeprefix(editable.layout.path).split(".", 2)[2] for name in names}
    assert ends == WRITERS.get(family, {"self_attn.o_proj", "mlp.down_proj"})
    assert len(names) == 2 * editable.layout.depth
    before = {name: editable.model.get_submodule(name).weight.clone() for name in names}
    for c in (-1.0, 2.5):
        scale_direction(editable, r, c)
        whole = merged(editable)
        for name in names:
            weight = before[name].T if family == "gpt2" else before[name]
            wanted = (torch.eye(32) + c * torch.outer(r, r)) @ weight
            found = whole.get_submodule(name).weight
            torch.testing.assert_close(
                found.T if family == "gpt2" else found, wanted, atol=1e-5, rtol=1e-4
            )
        detach(editable)


def test_an_ablated_model_writes_nothing_along_the_direction_and_travels(tmp_path: Any) -> None:
    from peft import PeftModel

    editable = tiny_editable()
    r = unit(torch.randn(32, generator=torch.Generator().manual_seed(1)))
    scale_direction(editable, r, -1.0)
    with record_activations(editable, range(4)) as states:
        ablated = logits(editable)
    embedded = editable.model.get_input_embeddings()(IDS)
    for layer in range(4):
        along = (states[layer] - embedded) @ r  # what all blocks so far have written
        assert float(along.abs().max()) < 1e-5
    torch.testing.assert_close(merged(editable)(input_ids=IDS).logits, ablated)
    save(editable, tmp_path)
    again = PeftModel.from_pretrained(tiny_editable().model, str(tmp_path))
    torch.testing.assert_close(again(input_ids=IDS).logits, ablated)


@pytest.mark.parametrize("place", ["system", "around", "both"])
def test_the_reminder_stands_in_the_prompt(place: str) -> None:
    editable = tiny_editable()
    base = logits(editable)
    task = tiny_task(True)
    put_on(editable, task, "self-reminder", phrasing=4, place=place)
    words = reminders(task.concept, "raise")[1]  # of three
    chat = (Message("user", "w1"), Message("assistant", "w2"), Message("user", "w3"))
    turns = editable.rewrite_prompt(chat)
    assert turns[-3:-1] == chat[:2]
    system, last = turns[0], turns[-1].content
    assert (system == Message("system", words["system"])) == (place != "around")
    assert last == (words["around"].replace("{prompt}", "w3") if place != "system" else "w3")
    with editable.base_model():
        assert editable.rewrite_prompt(chat) == chat
    assert torch.equal(logits(editable), base)  # the weights are not touched
    detach(editable)
    assert editable.rewrite_prompt(chat) == chat


def test_every_concept_has_reminders() -> None:
    own = replace(tiny_concept(), name="plain-words", description="No jargon.")
    editable = [load_concept(name) for name in builtin_names()]
    for concept in [*(one for one in editable if one.directions), own]:
        for direction in DIRECTIONS:
            known = reminders(concept, direction)
            assert 3 <= len(known) <= 4
            assert all(one["around"].count("{prompt}") == 1 for one in known)
            assert all("{" not in one["system"] for one in known)
            assert ("plain words" in known[0]["system"]) == (concept is own)
    assert "No jargon." in reminders(own, "raise")[0]["system"]


@pytest.mark.parametrize("shown", ["asked", "direct"])
def test_demonstrations_with_the_wanted_response_stand_before_the_chat(shown: str) -> None:
    editable = tiny_editable()
    task = tiny_task(True)
    put_on(editable, task, "in-context-defense", count=2, shown=shown)
    turns = editable.rewrite_prompt((Message("user", "w3"),))
    assert [turn.role for turn in turns] == [*["user", "assistant"] * 2, "user"]
    assert turns[-1] == Message("user", "w3")
    asked = [turn.content for turn in turns[:-1:2]]
    rows = (
        task.train.source_examples
        if shown == "asked"
        else [p for p, _ in task.train.demonstrations]
    )
    prompts = [row if isinstance(row, tuple) else row.prompt for row in rows]
    assert asked == [prompt[-1].content for prompt in prompts[:2]]
    # The wanted response to what is asked is the counterpart's.
    assert [turn.content for turn in turns[1:-1:2]] == ["w7 w8"] * 2
    assert "w7 w8" in prompt_text(editable.tokenizer, turns)


def test_without_pairs_the_direct_prompts_are_shown() -> None:
    editable = tiny_editable()
    task = tiny_task(False)
    put_on(editable, task, "in-context-defense", count=1, shown="asked")
    assert (
        editable.rewrite_prompt((Message("user", "w3"),))[0] == task.train.demonstrations[0][0][-1]
    )


def test_demonstrations_that_do_not_fit_are_refused() -> None:
    editable = tiny_editable(max_position_embeddings=16)
    with pytest.raises(ConfigError, match="the model reads 16"):
        put_on(editable, tiny_task(True), "in-context-defense", count=6)
    assert not editable.edited


def stand_in(patch: pytest.MonkeyPatch, name: str, **names: Any) -> None:
    """A module that a library imports and that what is tested here does not use."""
    module = ModuleType(name)
    for key, value in names.items():
        setattr(module, key, value)
    patch.setitem(sys.modules, name, module)


class PCA:
    """The one call that repeng makes of scikit-learn's."""

    def __init__(self, n_components: int, whiten: bool) -> None:
        assert (n_components, whiten) == (1, False)

    def fit(self, rows: np.ndarray[Any, Any]) -> PCA:
        self.components_ = np.linalg.svd(rows - rows.mean(0), full_matrices=False)[2][:1]
        return self


def pairs_as_text(editable: EditableModel, task: EditTask) -> list[tuple[str, str]]:
    """Wanted and unwanted prompt of each training row; each ends where the response is decided."""
    rows = zip(task.train.counterparts, task.train.source, strict=True)
    pairs = [
        tuple(editable.tokenizer.decode(row.ids[: row.start]) for row in (wanted, unwanted))
        for wanted, unwanted in rows
    ]
    wanted, unwanted = task.train.demonstrations[0][0], task.train.source_examples[0].prompt
    for text, prompt in zip(pairs[0], (wanted, unwanted), strict=True):
        assert editable.tokenizer(text)["input_ids"] == prompt_ids(editable.tokenizer, prompt)
    return pairs  # type: ignore[return-value]


def test_steering_vectors_of_the_library_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        if "steering_vectors" not in sys.modules:  # only its regression needs scikit-learn
            stand_in(patch, "sklearn")
            named = ("LinearRegression", "LogisticRegression")
            stand_in(patch, "sklearn.linear_model", **{name: type(name, (), {}) for name in named})
        library = pytest.importorskip(
            "steering_vectors", reason="pip install --no-deps -r tests/peers.txt"
        )
    editable = tiny_editable()
    task = tiny_task(True)
    pairs = pairs_as_text(editable, task)
    found = contrast(editable, task, range(4), 1)
    theirs = library.train_steering_vector(editable.model, editable.tokenizer, pairs, batch_size=3)
    pca = library.train_steering_vector(
        editable.model, editable.tokenizer, pairs, aggregator=library.pca_aggregator()
    )
    for layer in range(4):
        ours = mean_difference(found[layer])
        torch.testing.assert_close(ours, theirs.layer_activations[layer], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(
            reading_direction(found[layer], 0), pca.layer_activations[layer], atol=1e-4, rtol=1e-3
        )
    one = library.SteeringVector({2: theirs.layer_activations[2]})
    with one.apply(editable.model, multiplier=1.5):
        steered = logits(editable)
    put_on(editable, task, "steering", strength=1.5, offset=1)
    torch.testing.assert_close(logits(editable), steered, atol=1e-5, rtol=1e-4)


def test_repeng_reads_the_same_vectors_and_steers_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        if "repeng" not in sys.modules:
            stand_in(patch, "gguf")  # its file format
            stand_in(patch, "sklearn")
            stand_in(patch, "sklearn.decomposition", PCA=PCA)
            patch.setattr(np, "float_", np.float64, raising=False)  # gone since numpy 2
        library = pytest.importorskip("repeng", reason="pip install --no-deps -r tests/peers.txt")
    editable = tiny_editable()
    task = tiny_task(True)
    rows = [library.DatasetEntry(*pair) for pair in pairs_as_text(editable, task)]
    found = contrast(editable, task, (1, 2), 1)
    # Its default centres the differences, and with that takes their mean, the concept, out.
    theirs = library.ControlVector.train(
        editable.model, editable.tokenizer, rows, method="pca_center", hidden_layers=[1, 2]
    )
    for layer in (1, 2):
        direction = torch.from_numpy(theirs.directions[layer])
        assert float(reading_direction(found[layer], 0) @ direction) > 0.999
    wrapped = library.ControlModel(tiny_editable().model, [1, 2])
    length = {layer: float(mean_difference(found[layer]).norm()) for layer in (1, 2)}
    scaled = {layer: length[layer] * theirs.directions[layer] for layer in (1, 2)}
    wrapped.set_control(library.ControlVector("llama", scaled), 1.5)
    with torch.no_grad():
        steered = wrapped(input_ids=IDS[:1], use_cache=False).logits  # its mask takes one row
    put_on(editable, task, "reading-vector", strength=1.5, offset=0, span=2)
    torch.testing.assert_close(logits(editable)[:1], steered, atol=1e-4, rtol=1e-3)
