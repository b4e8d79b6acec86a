"""Measure a training step of an edit beside a plain LoRA step on the same chats.

    python -m benchmarks.step [--model smollm2] [--concept safety] [--repeats 5]

plain
    LoRA fine-tuning as it is usually done: adapters on all linear layers of all layers, the whole
    model on padded chats, logits at every token, the cross-entropy of the responses.
segment
    The edit's losses at the layers that are read, on packed chats from cached inputs: no layer
    above the last one that is read is run.
logits
    The edit's step with the defaults: on to the logits, at the positions of the responses.

A step is the forward and backward passes of one batch of source and one of retain examples. The
plain one multiplies in the dtype of the weights; the others as `compute_dtype` has it, in bfloat16
on a processor with AMX or AVX512-BF16. The median of the repeats counts; ratios are of one run.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks.common import (
    SEED,
    Clock,
    Target,
    add_load_options,
    argument_parser,
    describe_machine,
    finish,
    load_config,
    machine_text,
)
from retouch.concepts.registry import load_concept
from retouch.core.config import DataConfig, LoraConfig, MethodConfig
from retouch.evaluation.scorers import shows_effect
from retouch.models.adapters import attach, detach, parameters
from retouch.models.editable_model import EditableModel
from retouch.models.load import load
from retouch.representations.batch import ChatBatch, pad_right
from retouch.task.task import EditTask, build_task
from retouch.training.objective import Step
from retouch.training.setup import build_trainer
from retouch.training.trainer import Trainer

DATA = DataConfig(num_examples=32, num_retain=64)
FIRST = Step(source=0, sft=None, retain=0, unlearned=None, finetuned=None)
WITHOUT_LOGITS = {"sft_weight": 0.0, "kl_weight": 0.0}
TARGETS = {"segment": 10.0, "logits": 5.0}
HEADER = "| variant | s a step | chats | tokens | times plain |\n|---|---|---|---|---|"


def edit_step(trainer: Trainer) -> None:
    """The gradients of the first batches."""
    trainer._objective.gradients(FIRST, trainer.discriminators)


def plain_step(editable: EditableModel, batch: ChatBatch) -> None:
    """The gradients of the cross-entropy of a padded batch's responses."""
    for weight in parameters(editable).values():
        weight.grad = None
    device = editable.device
    mask = batch.token_mask().to(device)
    logits = editable.model(input_ids=batch.ids.to(device), attention_mask=mask).logits
    rows, positions = (index.to(device) for index in batch.response_positions())
    loss = F.cross_entropy(logits[rows, positions].float(), batch.response_tokens().to(device))
    loss.backward()  # type: ignore[no-untyped-call]


def seconds_of(step: Callable[[], None], device: torch.device, repeats: int) -> float:
    """The median time of a step after one that warms up."""
    step()
    clock, laps = Clock(device), []
    for _ in range(repeats):
        clock.lap()
        step()
        laps.append(clock.lap())
    return statistics.median(laps)


def measure(editable: EditableModel, task: EditTask, repeats: int) -> list[dict[str, Any]]:
    """The seconds of a step of each variant, on the same chats."""
    default = MethodConfig()
    losses = default.loss.model_copy(update=WITHOUT_LOGITS)
    methods = {"segment": default.model_copy(update={"loss": losses}), "logits": default}
    seconds: dict[str, float] = {}
    chats, tokens = [], 0
    for name, method in methods.items():
        trainer = build_trainer(editable, task, task.layers, method)
        seconds[name] = seconds_of(partial(edit_step, trainer), editable.device, repeats)
        source, retain = trainer.dataset.source[0].index, trainer.dataset.retain[0].index
        chats = [*(task.train.source[i] for i in source), *(task.train.retain[i] for i in retain)]
        tokens = sum(len(chat.ids) for chat in chats)
        detach(editable)
    attach(editable, range(editable.layout.depth), LoraConfig(), SEED)
    batch = pad_right(range(len(chats)), chats, int(editable.tokenizer.pad_token_id))
    seconds["plain"] = seconds_of(lambda: plain_step(editable, batch), editable.device, repeats)
    detach(editable)
    return [
        {
            "variant": name,
            "seconds": value,
            "chats": len(chats),
            "tokens": tokens,
            "ratio_to_plain": seconds["plain"] / value,
        }
        for name, value in seconds.items()
    ]


def main(words: Sequence[str] | None = None) -> None:
    """Parse the options, measure, print and write."""
    parser = argument_parser(__doc__)
    parser.add_argument("--model", default="smollm2", help="a name, folder or hub id")
    parser.add_argument("--concept", default="safety")
    parser.add_argument("--repeats", type=int, default=5)
    add_load_options(parser)
    parser.add_argument("--out", type=Path, default=Path("build/step.json"))
    options = parser.parse_args(words)
    if options.repeats < 1:
        parser.error(f"--repeats must be at least 1, got {options.repeats}.")
    machine = describe_machine(options.device)
    editable, concept = load(options.model, load_config(options)), load_concept(options.concept)
    shows = shows_effect(concept, "raise")
    task = build_task(editable, concept, "raise", SEED, DATA, MethodConfig(), shows=shows)
    records = measure(editable, task, options.repeats)
    print(machine_text(machine))
    print(f"{task.layers}\n\n{HEADER}")
    for one in records:
        print(
            f"| {one['variant']} | {one['seconds']:.3f} | {one['chats']} | {one['tokens']} "
            f"| {one['ratio_to_plain']:.1f} |"
        )
    targets = [
        Target(f"{one['variant']}: times a plain LoRA step", one["ratio_to_plain"], TARGETS[name])
        for one in records
        if (name := one["variant"]) in TARGETS
    ]
    finish(options.out, machine, records, targets)


if __name__ == "__main__":
    main()
