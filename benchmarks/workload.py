"""What the speed benchmarks run on: random models, random prompts, and the sizes of each case."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import torch

from retouch.concepts.chat import TokenizedChat
from retouch.core.config import EditConfig
from retouch.methods.are_original import PublishedSettings
from retouch.models.layout import find_layout
from retouch.models.editable_model import EditableModel
from retouch.models.load import load
from retouch.task.examples import EditExamples

LENGTHS = (24, 36)  # tokens of a prompt: thirty on average
RESERVED = 8  # the lowest token ids: padding, and what the prompts of the two classes end in


@dataclass(frozen=True)
class Case:
    """One model with one amount of work, for all variants alike.

    Attributes:
        name: what the table calls it.
        layers: blocks with adapters; a LoRA on their `modules`.
        read_layers: blocks whose outputs the discriminators read.
        model: the configuration of a random Llama or Qwen; empty: the built-in model.
        prompts: prompts that are trained on, half of them of each class.
        tests: prompts that the discriminators are tested on after every round.
        batch: prompts a training step, but for the published loop, which takes one.
        rounds: rounds of the game.
        epochs: times that a round goes over the prompts.
        discriminator_epochs: times that a discriminator does, in minibatches of 64.
        modules: ends of the names of the linear layers that are adapted.
        dtype: of the frozen weights.
    """

    name: str
    layers: tuple[int, ...]
    read_layers: tuple[int, ...]
    model: dict[str, Any] = field(default_factory=dict)
    prompts: int = 64
    tests: int = 32
    batch: int = 32
    rounds: int = 3
    epochs: int = 2
    discriminator_epochs: int = 30
    modules: tuple[str, ...] = ("q_proj", "v_proj")
    dtype: str = "float32"

    @property
    def steps(self) -> int:
        """Training steps a round of the batched variants."""
        return self.epochs * -(-self.prompts // self.batch)

    @property
    def published(self) -> PublishedSettings:
        """The published loop's constants, with this case's amount of work."""
        return PublishedSettings(
            lr=1e-3,
            rounds=self.rounds,
            epochs=self.epochs,
            modules=self.modules,
            discriminator_epochs=self.discriminator_epochs,
        )

    @property
    def config(self) -> EditConfig:
        """The same work for the project's trainer: the published loss, and as many steps of each.

        The adversarial loss on the last token of the prompt, no pairs, no responses, no retain set;
        discriminators made anew every round.
        """
        theirs = self.published
        taught = theirs.discriminator_epochs * -(-self.prompts // theirs.discriminator_batch)
        return EditConfig(
            layers=self.layers,
            read_layers=self.read_layers,
            modules=self.modules,
            rank=theirs.rank,
            alpha=theirs.alpha,
            rounds=self.rounds,
            patience=self.rounds + 1,
            steps=self.steps,
            batch=self.batch,
            lr=theirs.lr,
            pair_weight=0.0,
            response_positions=1,
            discriminator_width=theirs.width,
            discriminator_lr=theirs.discriminator_lr,
            discriminator_fresh=True,
            discriminator_first=taught,
            discriminator_steps=taught,
        )

    def load(self, device: str) -> EditableModel:
        """The model of the case on the device: frozen, and without an adapter."""
        if not self.model:
            from transformers.utils.logging import disable_progress_bar

            disable_progress_bar()  # it would stand between the rows of the table
            return load("pocket", device=device, dtype=self.dtype)
        return random_model(self.model, device, self.dtype)


@dataclass(frozen=True)
class Prompts:
    """The prompts of a case, as the loops take them: a token of response after each, never trained on.

    Attributes:
        source: of the class that is to move.
        target: of the class that it moves to. As published, both are trained on.
        tests: the same two for the test of the discriminators.
    """

    source: list[TokenizedChat]
    target: list[TokenizedChat]
    tests: tuple[list[TokenizedChat], list[TokenizedChat]]

    @cached_property
    def trained(self) -> list[TokenizedChat]:
        """All that is trained on."""
        return [*self.source, *self.target]

    @property
    def ours(self) -> EditExamples:
        """As rows of the project's game."""
        return EditExamples(self.trained, (), self.target, (), ())

    @property
    def theirs(self) -> EditExamples:
        """As rows of the published loop, which trains on source and target by itself."""
        return EditExamples(self.source, (), self.target, (), ())

    @property
    def theirs_tested(self) -> EditExamples:
        """The published loop's test prompts."""
        return EditExamples(self.tests[0], (), self.tests[1], (), ())


def draw_prompts(case: Case, vocabulary: int) -> Prompts:
    """Random prompts of a case; the classes differ in the last token, so that there is a game."""
    rng = random.Random(case.name)

    def rows(count: int, last: int) -> list[TokenizedChat]:
        made = []
        for _ in range(count):
            length = rng.randint(*LENGTHS)
            ids = [rng.randrange(RESERVED, vocabulary) for _ in range(length - 1)]
            # The state of the last prompt token counts as the decision of a response, so one follows.
            made.append(TokenizedChat((*ids, last, 1), length))
        return made

    half, tested = case.prompts // 2, case.tests // 2
    tests = (rows(tested, 2), rows(tested, 3))
    return Prompts(rows(case.prompts - half, 2), rows(half, 3), tests)


def random_model(options: dict[str, Any], device: str, dtype: str) -> EditableModel:
    """A seeded random decoder, made on its device; `model_type` is `llama` unless it is named."""
    from transformers import AutoConfig, AutoModelForCausalLM

    options = {"model_type": "llama", "max_position_embeddings": 512, "pad_token_id": 0} | options
    config = AutoConfig.for_model(options.pop("model_type"), **options)
    where = torch.device(device)
    devices = [where] if where.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), where:
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    model.requires_grad_(False).eval().to(where)
    tokenizer = SimpleNamespace(pad_token_id=0)  # the prompts are token ids from the start
    return EditableModel(model, tokenizer, "random", None, where, find_layout(model))


def llama(depth: int, hidden: int, mlp: int, vocabulary: int, heads: int) -> dict[str, Any]:
    """The options of a random Llama."""
    return {
        "num_hidden_layers": depth,
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "vocab_size": vocabulary,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
    }


def middle(depth: int, blocks: int = 4) -> tuple[int, ...]:
    """So many blocks in the middle of a model."""
    first = (depth - blocks) // 2
    return tuple(range(first, first + blocks))
