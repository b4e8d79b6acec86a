"""ARE as its authors' repository implements it, to compare Retouch with.

After github.com/Zhang-Yihao/Adversarial-Representation-Engineering (commit 87c38c1): `main.py`,
`train.py`, `data.py` and `model.py`. Every constant names the file that it comes from.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from retouch.core.config import LoraConfig, option
from retouch.core.errors import DivergedError
from retouch.core.types import Progress
from retouch.methods.method import Method, MethodSettings
from retouch.models.adapters import attach, parameters
from retouch.models.editable_model import EditableModel
from retouch.task.examples import EditExamples
from retouch.task.task import EditTask

SOURCE, TARGET = 0, 1  # main.py: `target_label = 1`
STOP_RANGE = (0.45, 0.70)  # train.py: `if 45 < acc and acc < 70`


class AreOriginalSettings(MethodSettings):
    """The repository's constants. Its layers are those of Llama-2; here they come from patching."""

    # main.py: 1e-4, which "should be better designed", and 50 rounds, an "empirical value".
    learning_rate: float = option(1e-4, "learning rate (Adam)", search=(1e-4, 3e-3), log=True)
    rounds: int = option(50, "maximum number of rounds", search=(3, 50), log=True)
    epochs: int = option(2, "epochs of the generator per round")  # main.py: `generator_epoch`
    eps: float = option(1e-2, "epsilon of the generator's Adam")  # main.py
    target_modules: tuple[str, ...] = option(  # main.py
        ("q_proj", "v_proj"), "suffixes of the names of the linear layers to adapt"
    )
    r: int = option(8, "LoRA rank")  # PEFT's default
    lora_alpha: float = option(8.0, "LoRA alpha")  # PEFT's default
    discriminator_epochs: int = option(  # main.py: `discriminator_epoch`
        30, "epochs of the discriminator"
    )
    discriminator_batch_size: int = option(  # main.py: `train_loader`
        64, "batch size of the discriminator"
    )
    discriminator_learning_rate: float = option(  # train.py: `classifier_trainer`
        1e-3, "learning rate of the discriminator (Adam)"
    )
    discriminator_eps: float = option(  # train.py: `classifier_trainer`
        1e-3, "epsilon of the discriminator's Adam"
    )
    hidden_size: int = option(512, "hidden size of the discriminator")  # model.py


class AreOriginal(Method):
    r"""The original loop: prompts of both classes are trained to be classified as target prompts.

    A round trains the adapter for two epochs, one prompt at a time, on

    $$L = CE(D([h_{l_1}; \dots; h_{l_k}]), \text{target})$$

    with $h_l$ the state of the prompt's last token after layer $l$, and then a new discriminator on
    the new states of both classes. It stops when this discriminator's accuracy on test prompts is
    within (0.45, 0.70), otherwise after the last round. There are no responses, no retain set and
    no selection: the result is that of the last round.
    """

    id = "are-original"
    title = "ARE, original"
    source = "Zhang et al. 2024, arXiv 2404.13752, and its repository"
    settings = AreOriginalSettings
    # data.py: the generator's label of every prompt is the target.
    trained: ClassVar[tuple[int, ...]] = (SOURCE, TARGET)

    def apply(
        self, editable: EditableModel, task: EditTask, settings: Any, progress: Progress
    ) -> None:
        """Run the rounds; the last weights stay on the model.

        Raises:
            ModelError: no linear layer matches `target_modules`.
            DivergedError: a loss is not finite.
        """
        layers, seed = task.layers.read, task.seed
        prompts, labels = labelled_prompts(task.train)
        # The repository uses its test split here; this package's is reserved for the evaluation.
        test_prompts, test_labels = labelled_prompts(task.validation)
        lora = LoraConfig(
            r=settings.r, lora_alpha=settings.lora_alpha, target_modules=settings.target_modules
        )
        attach(editable, task.layers.adapted, lora, seed)
        trained = [
            ids
            for ids, label in zip(prompts, labels.tolist(), strict=True)
            if label in self.trained
        ]
        # main.py reports the first discriminator's accuracy, but does not stop on it.
        states = last_states(editable, prompts, layers)
        discriminator = fit_discriminator(states, labels, settings, seed * 7919)
        for number in range(1, settings.rounds + 1):
            train_generator(editable, trained, discriminator, layers, settings)
            states = last_states(editable, prompts, layers)
            discriminator = fit_discriminator(states, labels, settings, seed * 7919 + number)
            progress("rounds", number, settings.rounds)
            test_states = last_states(editable, test_prompts, layers)
            if should_stop(accuracy(discriminator, test_states, test_labels)):
                return


class AreOriginalSource(AreOriginal):
    """The original loop with the generator trained on source prompts alone."""

    id = "are-original-source"
    title = "ARE, original, source only"
    trained = (SOURCE,)


class OriginalDiscriminator(nn.Module):
    """One discriminator for all read layers: `[n, layers * hidden]` to logits `[n, 2]`.

    model.py: `SimpleClassifier`. The states are not standardised.
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(input_size, hidden_size), nn.ReLU(), nn.Linear(hidden_size, 2)
        )

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """The logits of source and target."""
        logits: torch.Tensor = self.body(states.float())
        return logits


def labelled_prompts(examples: EditExamples) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Token ids of the prompts `[1, tokens]`, the classes in turn, and their labels `[n]`."""
    # Prefill-attack examples follow the concept's own source examples and are no part of ARE.
    source = examples.source[: len(examples.source_examples) or None]
    ids, labels = [], []
    for pair in zip_longest(source, examples.target):
        for label, chat in zip((SOURCE, TARGET), pair, strict=True):
            if chat is not None:
                ids.append(torch.tensor([chat.ids[: chat.start]]))
                labels.append(label)
    return ids, torch.tensor(labels)


def last_state(editable: EditableModel, ids: torch.Tensor, layers: Sequence[int]) -> torch.Tensor:
    """The last token's states after layers, concatenated: `[1, layers * hidden]`.

    model.py: `CombinedModel.forward`. The first of transformers' hidden states is the embedding,
    and the last is after the final norm.
    """
    states = editable.model(
        input_ids=ids.to(editable.device), output_hidden_states=True, use_cache=False
    ).hidden_states
    return torch.cat([states[layer + 1][:, -1] for layer in layers], -1)


@torch.no_grad()
def last_states(
    editable: EditableModel, prompts: Sequence[torch.Tensor], layers: Sequence[int]
) -> torch.Tensor:
    """`last_state` of prompts, one at a time: `[n, layers * hidden]`."""
    return torch.cat([last_state(editable, ids, layers) for ids in prompts])


def fit_discriminator(
    states: torch.Tensor, labels: torch.Tensor, settings: AreOriginalSettings, seed: int
) -> OriginalDiscriminator:
    """A new discriminator, trained on states `[n, size]` (train.py: `classifier_trainer`)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        discriminator = OriginalDiscriminator(states.shape[-1], settings.hidden_size)
        orders = [torch.randperm(len(states)) for _ in range(settings.discriminator_epochs)]
    discriminator.to(states.device)
    optimizer = torch.optim.Adam(
        discriminator.parameters(),
        lr=settings.discriminator_learning_rate,
        eps=settings.discriminator_eps,
    )
    labels = labels.to(states.device)
    for order in orders:
        for index in torch.split(order, settings.discriminator_batch_size):
            optimizer.zero_grad()
            loss = F.cross_entropy(discriminator(states[index]), labels[index])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return discriminator.requires_grad_(False)


def train_generator(
    editable: EditableModel,
    prompts: Sequence[torch.Tensor],
    discriminator: OriginalDiscriminator,
    layers: Sequence[int],
    settings: AreOriginalSettings,
) -> float:
    """Train the adapter so that prompts are classified as target prompts; the mean loss.

    train.py: `peft_model_finetune`, which creates a new Adam every round and does not clip
    gradients.

    Raises:
        DivergedError: a loss is not finite.
    """
    optimizer = torch.optim.Adam(
        parameters(editable).values(), lr=settings.learning_rate, eps=settings.eps
    )
    total = 0.0
    for ids in [ids for _ in range(settings.epochs) for ids in prompts]:
        logits = discriminator(last_state(editable, ids, layers))
        loss = F.cross_entropy(logits, torch.tensor([TARGET], device=logits.device))
        if not torch.isfinite(loss):
            raise DivergedError(
                "The loss of the original ARE loop is not finite.",
                "Lower `learning_rate`.",
                code="loss-not-finite",
            )
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        total += loss.item()
    return total / float(settings.epochs * len(prompts))


@torch.no_grad()
def accuracy(
    discriminator: OriginalDiscriminator, states: torch.Tensor, labels: torch.Tensor
) -> float:
    """The share of states `[n, size]` that are classified correctly."""
    predicted = discriminator(states).argmax(-1).cpu()
    return float((predicted == labels).float().mean())


def should_stop(accuracy: float) -> bool:
    """The stopping rule: a new discriminator is near chance (train.py: `classifier_trainer`)."""
    return STOP_RANGE[0] < accuracy < STOP_RANGE[1]
