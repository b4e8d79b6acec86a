"""The opponent that goes on training the model which is edited."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from retouch.concepts.render import Rendered
from retouch.core.errors import DataError
from retouch.editing.edit import lay_out, set_up
from retouch.editing.layers import Layers
from retouch.editing.rows import choose_rows
from retouch.editing.tampering import RANK, SCALE, Tamperer, tampered
from retouch.models import adapters
from retouch.representations.likelihood import reply_log_probability
from test_game import settings, tiny_concept
from tiny import tiny_loaded

IDS = torch.arange(6, 46).reshape(4, 10)


def adversarial(**more: Any) -> Any:
    return settings(**({"tamper": 6, "tamper_lr": 2e-2, "tamper_weight": 1.0} | more))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_change_is_what_it_would_be_in_the_weights(family: str) -> None:
    loaded, turned = tiny_loaded(family), family == "gpt2"
    config = adversarial()
    rows = choose_rows(loaded, tiny_concept(), config, "train")
    change = Tamperer(loaded, rows, config).train(1)[-1]
    with tampered(loaded, change):
        hooked = loaded.model(input_ids=IDS, use_cache=False).logits
    plain = loaded.model(input_ids=IDS, use_cache=False).logits
    for name, (a, b) in change.items():
        assert a.shape[0] == b.shape[1] == RANK
        delta = SCALE * b @ a
        loaded.model.get_submodule(name).weight.data += delta.T if turned else delta
    merged = loaded.model(input_ids=IDS, use_cache=False).logits
    assert torch.allclose(hooked, merged, atol=1e-5)
    assert not torch.allclose(hooked, plain, atol=1e-3)


def test_the_adversary_learns_and_leaves_model_and_adapter_as_they_are() -> None:
    loaded, config = tiny_loaded(), adversarial(tamper=30, tamper_lr=5e-3)
    rows = choose_rows(loaded, tiny_concept(), config, "train")
    tamperer = Tamperer(loaded, rows, config)
    adapters.attach(loaded, (1, 2), (), 4, 8.0, 0)
    before = {n: p.detach().clone() for n, p in loaded.model.named_parameters()}
    changes = tamperer.train(1)
    # It asks the target's prompts, with the replies that the base gives to the source's.
    pairs = zip(rows.twins, rows.rejected, strict=True)
    demands = [Rendered((*t.ids[: t.start], *bad.ids[bad.start :]), t.start) for t, bad in pairs]

    def likely() -> float:
        return float(reply_log_probability(loaded, demands).mean())

    untouched = likely()
    with tampered(loaded, changes[0]):
        early = likely()
    with tampered(loaded, changes[-1]):
        late = likely()
    assert untouched < early < late
    assert likely() == untouched
    for name, parameter in loaded.model.named_parameters():
        assert torch.equal(parameter, before[name]), name
        assert parameter.grad is None, name


def test_the_edit_learns_to_stand_it() -> None:
    config = adversarial(
        rounds=8,
        steps=8,
        lr=2e-2,
        layers=(0, 1, 2, 3),
        taps=(3,),
        adversarial_weight=0.0,
        pair_weight=0.0,
        retain_weight=0.0,
    )
    setting = set_up(tiny_loaded(), tiny_concept(), config)
    events = list(setting.trainer.play())
    assert "tamper" not in events[0].losses  # there is no edit yet that could be undone
    assert events[-1].losses["tamper"] < 0.95 * events[1].losses["tamper"]
    assert events[-1].best  # with an adversary the last round within the guard is kept


def test_a_restored_game_meets_the_same_adversaries() -> None:
    config, whole = adversarial(), tiny_loaded()
    setting = set_up(whole, tiny_concept(), config)
    for event in setting.trainer.play():
        if event.round == 2:
            tensors, numbers = setting.trainer.state()
    loaded = tiny_loaded()
    again = set_up(loaded, tiny_concept(), config)
    again.trainer.restore(tensors, numbers)
    assert [event.round for event in again.trainer.play()] == [3, 4]
    ours, theirs = adapters.parameters(loaded), adapters.parameters(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_without_pairs_there_is_nothing_to_teach() -> None:
    loaded, config = tiny_loaded(), adversarial()
    rows = choose_rows(loaded, tiny_concept(pairs=False), config, "train")
    with pytest.raises(DataError, match="--tamper"):
        lay_out(loaded, rows, Layers((1, 2), (2,), ""), lambda: None, config)  # type: ignore[arg-type, return-value]
    assert not loaded.edited
