"""ARE as its authors' repository implements it, to compare Retouch with.

After github.com/Zhang-Yihao/Adversarial-Representation-Engineering (commit 87c38c1): `main.py`,
`train.py`, `data.py` and `model.py`. Every constant names the file that it comes from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import zip_longest
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn
from torch.nn import functional as F

from retouch.core.config import LoraConfig, option
from retouch.core.types import Progress
from retouch.methods.lora import check_finite
from retouch.methods.method import Method, MethodSettings
from retouch.models.adapters import attach, parameters
from retouch.models.editable_model import EditableModel
from retouch.models.segment import Segment, SegmentInputs
from retouch.task.examples import EditExamples
from retouch.task.task import EditTask

SOURCE, TARGET = 0, 1  # main.py: `target_label = 1`
STOP_RANGE = (0.45, 0.70)  # train.py, `classifier_trainer`: `if 45 < acc and acc < 70`

Prompt = TypeVar("Prompt")
ReadState = Callable[[Prompt], torch.Tensor]
"""The state `[1, size]` of a prompt as the model is now."""


class AreOriginalSettings(MethodSettings):
    """The repository's constants. Its layers are those of Llama-2; here they come from patching."""

    # main.py: 1e-4, which "should be better designed", and 50 rounds, an "empirical value".
    learning_rate: float = option(1e-4, "learning rate (Adam)", search=(1e-4, 3e-3), log=True)
    rounds: int = option(50, "maximum number of rounds", search=(3, 50), log=True)
    # main.py: `generator_epoch`, and the generator's Adam.
    epochs: int = option(2, "epochs of the generator per round")
    eps: float = option(1e-2, "epsilon of the generator's Adam")
    # main.py; rank and alpha are PEFT's defaults.
    target_modules: tuple[str, ...] = option(
        ("q_proj", "v_proj"), "suffixes of the names of the linear layers to adapt"
    )
    r: int = option(8, "LoRA rank")
    lora_alpha: float = option(8.0, "LoRA alpha")
    # main.py: `discriminator_epoch` and `train_loader`.
    discriminator_epochs: int = option(30, "epochs of the discriminator")
    discriminator_batch_size: int = option(64, "batch size of the discriminator")
    # train.py: `classifier_trainer`.
    discriminator_learning_rate: float = option(1e-3, "learning rate of the discriminator (Adam)")
    discriminator_eps: float = option(1e-3, "epsilon of the discriminator's Adam")
    hidden_size: int = option(512, "hidden size of the discriminator")  # model.py


class AreOriginal(Method):
    r"""The original loop: prompts of both classes are trained to be classified as target prompts.

    A round trains the adapter for two epochs, one prompt at a time, on

    $$L = CE(D([h_{l_1}; \dots; h_{l_k}]), \text{target})$$

    with $h_l$ the state of the prompt's last token after layer $l$, and then a new discriminator on
    the new states of both classes. It stops when this discriminator's accuracy on test prompts is
    within (0.45, 0.70), near chance, otherwise after the last round. There are no responses, no
    retain set and no selection: the result is that of the last round.
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
        # Nothing changes below the first adapter, and the loss reads nothing above the last layer.
        segment = Segment(editable, min(*task.layers.adapted, *layers), max(layers))
        inputs, test_inputs = (
            [segment.capture_inputs(ids) for ids in some] for some in (prompts, test_prompts)
        )
        lora = settings.model_dump(include={"r", "lora_alpha", "target_modules"})
        attach(editable, task.layers.adapted, LoraConfig(**lora), seed)
        weights = list(parameters(editable).values())
        trained = [inputs[i] for i, label in enumerate(labels) if int(label) in self.trained]
        # main.py reports the first discriminator's accuracy, but does not stop on it.
        read = partial(last_state, segment, layers)
        states = last_states(read, inputs)
        discriminator = fit_discriminator(states, labels, settings, seed * 7919)
        for number in range(1, settings.rounds + 1):
            train_generator(weights, read, trained, discriminator, settings)
            states = last_states(read, inputs)
            discriminator = fit_discriminator(states, labels, settings, seed * 7919 + number)
            progress("rounds", number, settings.rounds)
            test_states = last_states(read, test_inputs)
            if STOP_RANGE[0] < accuracy(discriminator, test_states, test_labels) < STOP_RANGE[1]:
                return


class AreOriginalSource(AreOriginal):
    """The original loop with the generator trained on source prompts alone."""

    id = "are-original-source"
    title = "ARE, original, source only"
    trained = (SOURCE,)


def labelled_prompts(examples: EditExamples) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Token ids of the prompts `[1, tokens]`, the classes in turn, and their labels `[n]`."""
    # Prefill-attack examples follow the concept's own source examples and are no part of ARE.
    source = examples.source[: len(examples.source_examples) or None]
    pairs = zip_longest(source, examples.target)  # in the order of SOURCE and TARGET
    found = [(label, chat) for pair in pairs for label, chat in enumerate(pair) if chat]
    prompts = [torch.tensor([chat.ids[: chat.start]]) for _, chat in found]
    return prompts, torch.tensor([label for label, _ in found])


def last_state(segment: Segment, layers: Sequence[int], inputs: SegmentInputs) -> torch.Tensor:
    """The last token's states after layers, concatenated, in float32: `[1, layers * hidden]`.

    model.py: `CombinedModel.forward`, which runs the whole model.
    """
    states = segment.forward(inputs, layers)
    return torch.cat([states[layer][:, -1] for layer in layers], -1).float()


@torch.no_grad()
def last_states(read: ReadState[Prompt], prompts: Sequence[Prompt]) -> torch.Tensor:
    """The states of prompts, one at a time: `[n, layers * hidden]`."""
    return torch.cat([read(one) for one in prompts])


def fit_discriminator(
    states: torch.Tensor, labels: torch.Tensor, settings: AreOriginalSettings, seed: int
) -> nn.Module:
    """Train a new discriminator for all read layers, states `[n, size]` to logits `[n, 2]`.

    model.py: `SimpleClassifier`; train.py: `classifier_trainer`. The states are not standardised.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        discriminator = nn.Sequential(
            nn.Linear(states.shape[-1], settings.hidden_size),
            nn.ReLU(),
            nn.Linear(settings.hidden_size, 2),
        )
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
    weights: Sequence[torch.Tensor],
    read: ReadState[Prompt],
    prompts: Sequence[Prompt],
    discriminator: nn.Module,
    settings: AreOriginalSettings,
) -> float:
    """Train the adapter so that prompts are classified as target prompts; the mean loss.

    train.py: `peft_model_finetune`, which creates a new Adam every round and does not clip
    gradients.

    Raises:
        DivergedError: a loss is not finite.
    """
    optimizer = torch.optim.Adam(weights, lr=settings.learning_rate, eps=settings.eps)
    losses = []
    for prompt in [one for _ in range(settings.epochs) for one in prompts]:
        logits = discriminator(read(prompt))
        loss = F.cross_entropy(logits, torch.tensor([TARGET], device=logits.device))
        check_finite(loss, "The loss of the original ARE loop")
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return sum(losses) / len(losses)


@torch.no_grad()
def accuracy(discriminator: nn.Module, states: torch.Tensor, labels: torch.Tensor) -> float:
    """The share of states `[n, size]` that are classified correctly."""
    return float((discriminator(states).argmax(-1).cpu() == labels).float().mean())
