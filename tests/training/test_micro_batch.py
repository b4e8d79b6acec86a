from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from retouch.core.config import EditConfig
from retouch.core.errors import ConfigError, ModelError
from retouch.models import adapters
from retouch.models.activation_cache import ActivationCache
from retouch.models.oom import is_out_of_memory, split_on_oom
from retouch.training.setup import set_up_training
from helpers.tiny_edit import run_training, tiny_concept, tiny_config
from helpers.tiny_models import tiny_editable

CPU = torch.device("cpu")


def weights_of(config: EditConfig, pairs: bool = True) -> dict[str, torch.Tensor]:
    editable = tiny_editable()
    play(editable, config, tiny_concept(pairs))
    return {name: p.detach().clone() for name, p in adapters.parameters(editable).items()}


def close(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return all(torch.allclose(ours[name], theirs[name], atol=1e-4) for name in theirs)


@pytest.mark.parametrize(
    "more",
    [
        {"match_prompt": True},
        {"perturb": 0.2},
        {"supervised_weight": 1.0, "retain_response_weight": 3.0},
        {"tamper": 3, "layers": (0, 1, 2), "first_weight": 4.0},
    ],
)
def test_batches_cut_in_pieces_end_in_the_same_weights(more: dict[str, Any]) -> None:
    whole = weights_of(settings(**more))
    assert close(weights_of(settings(at_once=1, **more)), whole)
    assert close(weights_of(settings(at_once=3, **more)), whole)


def test_responses_without_pairs_may_be_cut_too() -> None:
    more = {"supervised_weight": 1.0}
    whole = weights_of(settings(**more), pairs=False)
    assert close(weights_of(settings(at_once=1, **more), pairs=False), whole)


def test_memory_that_runs_out_halves_what_runs_at_once() -> None:
    whole = weights_of(settings())
    editable = tiny_editable()

    def tight(_: Any, args: tuple[torch.Tensor, ...]) -> None:
        if torch.is_grad_enabled() and len(args[0]) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    editable.blocks[2].register_forward_pre_hook(tight)
    setting = set_up_training(editable, tiny_concept(), settings())
    assert setting.trainer.dataset.at_once == 4
    list(setting.trainer.train())
    setting.trainer.finish()
    assert setting.trainer.dataset.at_once == 1
    assert close(dict(adapters.parameters(editable)), whole)


def test_one_row_that_does_not_fit_is_a_clear_error() -> None:
    editable = tiny_editable()

    def full(*_: Any) -> None:
        if torch.is_grad_enabled():
            raise torch.OutOfMemoryError("CUDA out of memory.")

    editable.blocks[2].register_forward_pre_hook(full)
    setting = set_up_training(editable, tiny_concept(), settings())
    with pytest.raises(ModelError, match="1 rows at once"):
        list(setting.trainer.train())


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError())
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))
    with pytest.raises(RuntimeError, match="shapes"):
        split_on_oom(_failing, [1, 2])


def _failing(rows: Any) -> list[int]:
    raise RuntimeError("shapes do not fit")


def test_parts_keep_the_order() -> None:
    def run(rows: Any) -> list[int]:
        if len(rows) > 2:
            raise MemoryError
        return [10 * row for row in rows]

    assert split_on_oom(run, range(7)) == [10 * i for i in range(7)]


def test_states_beyond_the_budget_lie_on_disk_and_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    store = ActivationCache(CPU, 10**6)
    torch.manual_seed(0)
    states = [torch.randn(100, 600).to(kind) for kind in (torch.float32, torch.bfloat16)] * 6
    gets = [store.keep({"h": (one, one)}) for one in states]
    assert store.in_memory <= 10**6
    assert store.on_disk >= 10**6
    assert store.in_memory + store.on_disk == 6 * 100 * 600 * (4 + 2)  # a tensor is kept once
    for get, one in zip(gets, states, strict=True):
        assert torch.equal(get()["h"][0], one)
        assert get()["h"][1].dtype == one.dtype
    assert not list(tmp_path.iterdir())  # the file has no name, and is gone with the process


def test_an_edit_from_disk_is_the_edit_from_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = weights_of(settings())
    monkeypatch.setattr("retouch.models.activation_cache.SMALL", 0)
    editable = tiny_editable()
    setting = play(editable, settings(cache_memory="1B"))
    assert setting.trainer.dataset.kept["memory"] == 0
    assert setting.trainer.dataset.kept["disk"] > 10_000
    ours = adapters.parameters(editable)
    assert all(torch.equal(ours[name], whole[name]) for name in whole)


def test_a_size_that_is_none_is_named() -> None:
    from retouch.core.config import resolve

    with pytest.raises(ConfigError, match=r"cache_memory.*'much' is no size"):
        resolve({"cache_memory": "much"})
