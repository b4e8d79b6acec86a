from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from helpers.method_task import apply_method, method_settings, method_task
from helpers.tiny_models import tiny_editable
from retouch.core.config import LoraConfig
from retouch.methods import dpo
from retouch.models import adapters
from retouch.representations.batch import make_batches
from retouch.representations.logprobs import response_logprob, response_logprobs


@pytest.mark.parametrize("sft_weight", [0.0, 0.5])
def test_trl_trains_on_the_given_ids_from_a_loss_of_log_2(
    sft_weight: float, tmp_path: Path
) -> None:
    editable = tiny_editable()
    examples = method_task(editable).train
    adapters.attach(editable, range(4), LoraConfig(r=4, lora_alpha=8.0), 0)
    with dpo.base_model_preserved(editable):
        settings = method_settings("dpo", sft_weight=sft_weight)
        trainer = dpo.build_dpo_trainer(editable, examples, settings, 0, str(tmp_path))
        (batch,) = trainer.get_train_dataloader()
        loss = float(trainer.compute_loss(editable.model, batch))
    assert sorted(editable.model.peft_config) == ["default"]
    chats = (*examples.chosen, *examples.rejected)

    def selected(mask: str) -> set[tuple[int, ...]]:
        pairs = zip(batch["input_ids"], batch[mask].bool(), strict=True)
        return {tuple(ids[inside].tolist()) for ids, inside in pairs}

    assert selected("attention_mask") == {chat.ids for chat in chats}
    assert selected("completion_mask") == {chat.ids[chat.start :] for chat in chats}
    (chosen,) = make_batches(examples.chosen, 8, 0)
    logits = editable.model(input_ids=chosen.ids).logits.detach()
    sft = -float(response_logprobs(logits, chosen).mean())
    assert loss == pytest.approx(math.log(2) + sft_weight * sft, rel=1e-4)


def test_dpo_prints_nothing_and_leaves_no_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    editable = tiny_editable()
    apply_method(editable, "dpo", method_task(editable), max_steps=4)
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_dpo_increases_the_margin_over_the_base() -> None:
    editable = tiny_editable()
    task = method_task(editable)
    apply_method(editable, "dpo", task, beta=0.5)

    def margin() -> float:
        chosen, rejected = task.train.chosen, task.train.rejected
        more, less = (response_logprob(editable, chats).mean() for chats in (chosen, rejected))
        return float(more - less)

    with torch.no_grad(), editable.base_model():
        before = margin()
    assert margin() > before + 0.1
