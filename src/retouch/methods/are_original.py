"""ARE as its authors' repository runs it, to measure what departing from it is worth.

After github.com/Zhang-Yihao/Adversarial-Representation-Engineering (commit 87c38c1): `main.py`,
`train.py`, `data.py` and `model.py`, whose constants stand here with the file they come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from retouch.core.errors import DivergedError
from retouch.methods.method import Method, Progress, Settings, tunable
from retouch.models.adapters import attach, parameters
from retouch.models.editable_model import EditableModel
from retouch.task.examples import EditExamples
from retouch.task.task import EditTask

SOURCE, TARGET = 0, 1  # main.py: `target_label = 1`
STOP = (0.45, 0.70)  # train.py: `if 45 < acc and acc < 70`

Labelled = tuple[list[torch.Tensor], torch.Tensor]


class PublishedSettings(Settings):
    """The repository's constants; it names blocks of Llama-2, ours are found by patching."""

    # main.py: 1e-4, which "should be better designed", and 50 rounds, an "empirical value".
    lr: float = tunable(1e-4, low=1e-4, high=3e-3, log=True, description="learning rate (Adam)")
    rounds: int = tunable(50, low=3, high=50, log=True, description="rounds at the most")
    epochs: int = 2  # main.py: `generator_epoch`
    eps: float = 1e-2  # main.py: of the generator's Adam
    modules: tuple[str, ...] = ("q_proj", "v_proj")  # main.py: `target_modules`
    rank: int = 8  # main.py leaves it to PEFT
    alpha: float = 8.0  # main.py leaves it to PEFT
    discriminator_epochs: int = 30  # main.py: `discriminator_epoch`
    discriminator_batch: int = 64  # main.py: `train_loader`
    discriminator_lr: float = 1e-3  # train.py: `classifier_trainer`
    discriminator_eps: float = 1e-3  # train.py: `classifier_trainer`
    width: int = 512  # model.py: `SimpleClassifier`


class AreOriginal(Method):
    r"""The published loop: prompts of both classes are pushed to be read as target ones.

    A round trains the adapter for two epochs, one prompt at a time, on

    $$L = CE(D([h_{l_1}; \dots; h_{l_k}]), \text{target})$$

    with $h_l$ the state of the prompt's last token after block $l$, and then a fresh discriminator
    on the new states of both classes. It stops when that one's accuracy on test prompts lies within
    (0.45, 0.70), else after the last round. No responses, no retain set and no selection: what the
    last round leaves is what there is.
    """

    id = "are-published"
    title = "ARE, as published"
    source = "Zhang et al. 2024, arXiv 2404.13752, and its repository"
    settings = PublishedSettings
    pushed: ClassVar[tuple[int, ...]] = (SOURCE, TARGET)  # data.py: every label becomes the target

    def apply(
        self, editable: EditableModel, task: EditTask, settings: Any, progress: Progress
    ) -> None:
        """Play the rounds; the last weights stay.

        Raises:
            ModelError: no linear layer of the blocks has one of the names in `modules`.
            DivergedError: a loss is not finite.
        """
        read_layers, seed = task.layers.read, task.config.seed
        shown, labels = prompts(task.train)
        # The repository tests on its test split; ours is not to be looked at.
        test, known = prompts(task.validation)
        attach(editable, task.layers.adapted, settings.modules, settings.rank, settings.alpha, seed)
        chosen = [
            ids for ids, label in zip(shown, labels.tolist(), strict=True) if label in self.pushed
        ]
        # main.py looks at the first discriminator's accuracy, but does not stop on it.
        reader = learn(last_states(editable, shown, read_layers), labels, settings, seed * 7919)
        for number in range(1, settings.rounds + 1):
            push(editable, chosen, reader, read_layers, settings)
            states = last_states(editable, shown, read_layers)
            reader = learn(states, labels, settings, seed * 7919 + number)
            progress("rounds", number, settings.rounds)
            if converged(accuracy(reader, last_states(editable, test, read_layers), known)):
                return


class AreOriginalSource(AreOriginal):
    """The same with the source prompts alone pushed; what is a target already is left in peace."""

    id = "are-published-wrapped"
    title = "ARE, as published, source only"
    pushed = (SOURCE,)


class Reader(nn.Module):
    """One discriminator for all read blocks: `[n, blocks * hidden]` to logits `[n, 2]`.

    model.py: `SimpleClassifier`. The states come as they are, not standardised.
    """

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(size, width), nn.ReLU(), nn.Linear(width, 2))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """The logits of source and target."""
        out: torch.Tensor = self.body(states.float())
        return out


def prompts(rows: EditExamples) -> Labelled:
    """The token ids of the prompts `[1, tokens]`, the classes in turn, and their labels `[n]`."""
    # PrefilledExamples beginnings of responses come after the rows that were asked for; they are none of ARE's.
    source = rows.source[: len(rows.source_examples)] if rows.source_examples else rows.source
    ids, labels = [], []
    for pair in zip_longest(source, rows.target):
        for label, row in zip((SOURCE, TARGET), pair, strict=True):
            if row is not None:
                ids.append(torch.tensor([row.ids[: row.start]]))
                labels.append(label)
    return ids, torch.tensor(labels)


def last_state(
    editable: EditableModel, ids: torch.Tensor, read_layers: Sequence[int]
) -> torch.Tensor:
    """The states of the last token after the read blocks, one after another `[1, k * hidden]`.

    model.py: `CombinedModel.forward`. Entry 0 of the hidden states are the embeddings.
    """
    out = editable.model(
        input_ids=ids.to(editable.device), output_hidden_states=True, use_cache=False
    ).hidden_states
    return torch.cat([out[layer + 1][:, -1] for layer in read_layers], -1)


@torch.no_grad()
def last_states(
    editable: EditableModel, prompts: Sequence[torch.Tensor], read_layers: Sequence[int]
) -> torch.Tensor:
    """The same for many prompts, one at a time: `[n, k * hidden]`."""
    return torch.cat([last_state(editable, ids, read_layers) for ids in prompts])


def learn(states: torch.Tensor, labels: torch.Tensor, settings: Any, seed: int) -> Reader:
    """A fresh discriminator that has learnt the states `[n, size]` of both classes.

    train.py: `classifier_trainer`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        reader = Reader(states.shape[-1], settings.width).to(states.device)
        orders = [torch.randperm(len(states)) for _ in range(settings.discriminator_epochs)]
    optimizer = torch.optim.Adam(
        reader.parameters(), lr=settings.discriminator_lr, eps=settings.discriminator_eps
    )
    labels = labels.to(states.device)
    for order in orders:
        for some in torch.split(order, settings.discriminator_batch):
            optimizer.zero_grad()
            F.cross_entropy(reader(states[some]), labels[some]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return reader.requires_grad_(False)


def push(
    editable: EditableModel,
    prompts: Sequence[torch.Tensor],
    reader: Reader,
    read_layers: Sequence[int],
    settings: Any,
) -> float:
    """Train the adapter to have every prompt read as a target one; the mean loss.

    train.py: `peft_model_finetune`, which begins a new Adam every round and clips nothing.

    Raises:
        DivergedError: a loss is not finite.
    """
    optimizer = torch.optim.Adam(parameters(editable).values(), lr=settings.lr, eps=settings.eps)
    total = 0.0
    for ids in [ids for _ in range(settings.epochs) for ids in prompts]:
        logits = reader(last_state(editable, ids, read_layers))
        loss = F.cross_entropy(logits, torch.tensor([TARGET], device=logits.device))
        if not torch.isfinite(loss):
            raise DivergedError("The loss of the published loop is not finite.", "Lower the lr.")
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        total += loss.item()
    return total / float(settings.epochs * len(prompts))


@torch.no_grad()
def accuracy(reader: Reader, states: torch.Tensor, labels: torch.Tensor) -> float:
    """The share of states `[n, size]` whose class is told."""
    told: torch.Tensor = reader(states)
    return float((told.argmax(-1).cpu() == labels).float().mean())


def converged(accuracy: float) -> bool:
    """The stop rule: fresh discriminators are at a loss (train.py: `classifier_trainer`)."""
    return STOP[0] < accuracy < STOP[1]
