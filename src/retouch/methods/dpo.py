"""Direct preference optimisation, through TRL: the wanted responses over the unwanted ones."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from retouch.core.errors import ConfigError, DivergedError
from retouch.methods.lora import BestCheckpoint, LoraSettings, every_layer
from retouch.methods.method import Method, Progress, tunable
from retouch.models.adapters import attach, parameters
from retouch.models.editable_model import EditableModel
from retouch.task.examples import EditExamples
from retouch.task.task import EditTask


class DpoSettings(LoraSettings):
    """With the strength of the tie to the base, and of learning the wanted responses outright."""

    lr: float = tunable(3e-4, low=3e-5, high=3e-3, log=True, description="learning rate (Adam)")
    beta: float = tunable(0.1, low=0.01, high=1.0, log=True, description="of the tie to the base")
    sft_weight: float = tunable(
        0.0, choices=(0.0, 0.1, 0.3, 1.0), description="of cross-entropy on the wanted responses"
    )


class Dpo(Method):
    r"""Prefer the wanted response $y_w$ to the unwanted $y_l$ (equation 7), through TRL's trainer.

    $$L = -\log \sigma(\beta \log \frac{p(y_w|x)}{p_{base}(y_w|x)}
        - \beta \log \frac{p(y_l|x)}{p_{base}(y_l|x)})$$

    with the base being the model without its adapter. There is no retain set in it. The checkpoint
    that is kept is chosen as for all LoRA methods.
    """

    id = "dpo"
    title = "DPO"
    source = "Rafailov et al. 2023, arXiv 2305.18290; TRL's DPOTrainer"
    settings = DpoSettings

    def apply(
        self, editable: EditableModel, task: EditTask, settings: Any, progress: Progress
    ) -> None:
        """Train on the pairs of responses; the best checkpoint stays.

        Raises:
            ConfigError: no unwanted responses are known.
            DivergedError: the weights are not finite at the end.
        """
        if not task.train.rejected:
            raise ConfigError(
                f"DPO prefers one response to another, and {task.concept.name} has no unwanted ones: "
                "its rows are no pairs.",
                "Give the concept's rows a `pair`, or choose another method.",
            )
        layers, seed = every_layer(editable), task.config.seed
        attach(editable, layers, (), settings.rank, settings.alpha, seed)
        weights = parameters(editable)
        keeper = BestCheckpoint(weights, settings.drift_guard)
        with left_alone(editable), tempfile.TemporaryDirectory() as folder:
            trainer = make_trainer(editable, task.train, settings, seed, folder)
            trainer.add_callback(_judging(task, settings, keeper, progress))
            trainer.train()
        if not all(torch.isfinite(weight).all() for weight in weights.values()):
            raise DivergedError("The weights that DPO ends in are not finite.", "Lower the lr.")
        keeper.put_best()


def preferences(rows: EditExamples) -> list[dict[str, list[int]]]:
    """The token ids of each prompt with its wanted and its unwanted response, as TRL names them."""
    return [
        {
            "prompt_ids": list(wanted.ids[: wanted.start]),
            "chosen_ids": list(wanted.ids[wanted.start :]),
            "rejected_ids": list(rejected.ids[rejected.start :]),
        }
        for wanted, rejected in zip(rows.chosen, rows.rejected, strict=True)
    ]


def make_trainer(
    editable: EditableModel, rows: EditExamples, settings: DpoSettings, seed: int, folder: str
) -> Any:
    """TRL's trainer for a model with a fresh adapter: silent, offline, writing to `folder` alone.

    Adam with a constant rate and clipped gradients, as the other LoRA methods have it.
    """
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    class Trainer(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *args: Any, **named: Any) -> Any:
            # The rows are tokenized already, prompt and response apart as when they are generated;
            # TRL would tokenize their texts anew, joined, and might cut elsewhere.
            return dataset

        def _send_telemetry(self) -> None:
            # It would ask the hub for a page.
            return

        def compute_loss(self, model: Any, *args: Any, **named: Any) -> Any:
            # No dropout, as in all our training; TRL would have taken it out of the base for good.
            model.eval()
            return super().compute_loss(model, *args, **named)  # type: ignore[no-untyped-call]

    mixed = settings.sft_weight > 0
    on_cpu = editable.device.type == "cpu"
    arguments = DPOConfig(
        output_dir=folder,
        beta=settings.beta,
        loss_type=["sigmoid", "sft"] if mixed else ["sigmoid"],
        loss_weights=[1.0, settings.sft_weight] if mixed else None,
        learning_rate=settings.lr,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch,
        max_length=None,
        disable_dropout=False,
        gradient_checkpointing=False,
        bf16=False,  # the model runs in the type that it was editable in
        seed=seed,
        use_cpu=on_cpu,
        dataloader_pin_memory=not on_cpu,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    # Trainer would spread the model over every GPU that it sees; ours is on one.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    trainer = Trainer(
        model=editable.model,
        args=arguments,
        train_dataset=Dataset.from_list(preferences(rows)),
        processing_class=editable.tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    # TRL takes an adapter that is there already for a trained one, and a copy of it for the
    # reference. Ours is fresh: without the copy the reference is the model with its adapter off.
    if "ref" in editable.model.peft_config:
        editable.model.delete_adapter("ref")
    return trainer


@contextmanager
def left_alone(editable: EditableModel) -> Iterator[None]:
    """Afterwards the base model is as it was: TRL hangs a forward and tags on it, and sets it up.

    Inside, nothing is told either.
    """
    from transformers.utils import logging

    base = editable.model.get_base_model()
    had, loud = set(vars(base)), logging.get_verbosity()
    setups = [vars(one) for one in (base.config, base.config.get_text_config())]
    if base.generation_config is not None:
        setups.append(vars(base.generation_config))
    were = [dict(setup) for setup in setups]
    logging.set_verbosity_error()
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # TRL sets the global seed, and names what transformers calls otherwise by now.
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.set_verbosity(loud)
        for name in set(vars(base)) - had:
            delattr(base, name)
        for setup, was in zip(setups, were, strict=True):
            setup.clear()
            setup.update(was)
        editable.model.eval()


def _judging(
    task: EditTask, settings: DpoSettings, keeper: BestCheckpoint, progress: Progress
) -> Any:
    """A callback that shows the keeper the weights as often as the other LoRA methods do."""
    from transformers import TrainerCallback

    every = max(1, settings.steps // settings.num_validations)

    class Judging(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **named: Any) -> None:
            step = state.global_step
            if step % every == 0 or step == settings.steps:
                result = task.validator()
                keeper.see(result.validation_score, result.drift)
                progress("training", step, settings.steps)

    return Judging()
