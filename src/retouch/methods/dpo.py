"""Direct preference optimisation of target responses over source responses, through TRL."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from retouch.core.config import option
from retouch.core.plugins import import_library
from retouch.core.types import Progress
from retouch.methods.lora import (
    MAX_GRAD_NORM,
    LoraSettings,
    PeriodicValidation,
    attach_adapter,
    check_finite,
    check_pairs,
)
from retouch.methods.method import Method
from retouch.models.adapters import parameters
from retouch.models.editable_model import EditableModel
from retouch.task.examples import EditExamples
from retouch.task.task import EditTask

# Here, so that no comparison begins without it; it loads its parts when they are used.
import_library("trl", "DPO", "'retouch[compare]'")


class DpoSettings(LoraSettings):
    """LoRA settings with DPO's beta and the weight of supervised fine-tuning."""

    learning_rate: float = option(3e-4, "learning rate (Adam)", search=(3e-5, 3e-3), log=True)
    beta: float = option(
        0.1, "DPO's beta: how strongly the model is kept at the base", search=(0.01, 1), log=True
    )
    sft_weight: float = option(
        0.0, "weight of the target responses' cross-entropy", choices=(0.0, 0.1, 0.3, 1.0)
    )


class Dpo(Method):
    r"""Prefer target responses $y_w$ to source responses $y_l$ (equation 7), with TRL's trainer.

    $$L = -\log \sigma(\beta \log \frac{p(y_w|x)}{p_{base}(y_w|x)}
        - \beta \log \frac{p(y_l|x)}{p_{base}(y_l|x)})$$

    where the base is the model without its adapter. There is no retain set. The checkpoint is
    selected as for all LoRA methods.
    """

    id = "dpo"
    title = "DPO"
    source = "Rafailov et al. 2023, arXiv 2305.18290; TRL's DPOTrainer"
    settings = DpoSettings

    def apply(
        self, editable: EditableModel, task: EditTask, settings: Any, progress: Progress
    ) -> None:
        """Train on the pairs of responses; the best checkpoint stays on the model.

        Raises:
            ConfigError: the examples have no source responses.
            DivergedError: the final weights are not finite.
        """
        from transformers import TrainerCallback

        class ValidationCallback(TrainerCallback):  # type: ignore[misc]
            def on_step_end(self, args: Any, state: Any, control: Any, **named: Any) -> None:
                validation.after_step(state.global_step)

        check_pairs(task, self.title)
        attach_adapter(editable, range(editable.layout.depth), settings, task.seed)
        validation = PeriodicValidation(editable, task, settings, progress)
        with base_model_preserved(editable), tempfile.TemporaryDirectory() as folder:
            trainer = build_dpo_trainer(editable, task.train, settings, task.seed, folder)
            trainer.add_callback(ValidationCallback())
            trainer.train()
        for weight in parameters(editable).values():
            check_finite(weight, "A final weight of DPO")
        validation.restore_best()


def build_dpo_trainer(
    editable: EditableModel, examples: EditExamples, settings: DpoSettings, seed: int, folder: str
) -> Any:
    """TRL's trainer for a model with a new adapter: silent, offline, writing to `folder` alone.

    As in the other LoRA methods, the learning rate is constant and gradients are clipped.
    """
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    class Trainer(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *args: Any, **named: Any) -> Any:
            # The examples are tokenized, prompt and response separately, as in generation. TRL
            # would tokenize the joined texts, which may divide them elsewhere.
            return dataset

        def _send_telemetry(self) -> None:
            return  # it would send a request to the hub

        def compute_loss(self, model: Any, *args: Any, **named: Any) -> Any:
            # No dropout, as in the other methods; TRL would remove it from the base permanently.
            model.eval()
            with editable.compute_precision():
                return super().compute_loss(model, *args, **named)  # type: ignore[no-untyped-call]

    with_sft = settings.sft_weight > 0
    on_cpu = editable.device.type == "cpu"
    arguments = DPOConfig(
        output_dir=folder,
        beta=settings.beta,
        loss_type=["sigmoid", "sft"] if with_sft else ["sigmoid"],
        loss_weights=[1.0, settings.sft_weight] if with_sft else None,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=MAX_GRAD_NORM,
        max_steps=settings.max_steps,
        per_device_train_batch_size=settings.batch_size,
        max_length=None,
        disable_dropout=False,
        gradient_checkpointing=False,
        bf16=False,  # the model keeps the dtype that it was loaded in
        seed=seed,
        use_cpu=on_cpu,
        dataloader_pin_memory=not on_cpu,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    # The model is on one GPU; the trainer would replicate it on every visible one.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    columns = {
        "prompt_ids": [chat.ids[: chat.start] for chat in examples.chosen],
        "chosen_ids": [chat.ids[chat.start :] for chat in examples.chosen],
        "rejected_ids": [chat.ids[chat.start :] for chat in examples.rejected],
    }
    trainer = Trainer(
        model=editable.model,
        args=arguments,
        train_dataset=Dataset.from_dict(columns),
        processing_class=editable.tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    # TRL takes an existing adapter for a trained one and copies it as the reference. This one is
    # new: without the copy, the reference is the model with its adapter disabled.
    if "ref" in editable.model.peft_config:
        editable.model.delete_adapter("ref")
    return trainer


@contextmanager
def base_model_preserved(editable: EditableModel) -> Iterator[None]:
    """Restore the base model's attributes and configurations on exit, and silence transformers.

    TRL sets a forward method, tags and configuration values on the base model.
    """
    from transformers.utils import logging

    base, verbosity = editable.model.get_base_model(), logging.get_verbosity()
    changed = (base, base.config, base.config.get_text_config(), base.generation_config)
    attributes = [vars(one) for one in changed if one is not None]
    originals = [dict(one) for one in attributes]
    logging.set_verbosity_error()
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # TRL sets the global seed and uses deprecated names of transformers.
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.set_verbosity(verbosity)
        for one, original in zip(attributes, originals, strict=True):
            one.clear()
            one.update(original)
        editable.model.eval()
