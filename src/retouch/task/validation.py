"""Validation during training: the effect and the drift on the validation split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from retouch.concepts.chat import TokenizedChat
from retouch.core.config import DiscriminatorConfig
from retouch.models.editable_model import EditableModel
from retouch.representations.activations import response_states
from retouch.representations.choice_probs import choice_probs
from retouch.representations.discriminator import Discriminators, States
from retouch.representations.divergence import token_kl
from retouch.representations.logprobs import response_logprob
from retouch.task.examples import EditExamples


@dataclass(frozen=True)
class ValidationResult:
    """A validation of the model as it is now.

    Attributes:
        score: the effect, higher is better; its unit is that of the `Validator`'s criterion.
        drift: KL(base || edited) on the retain set, nats a token.
    """

    score: float
    drift: float


class Validator:
    """Validates a model with its present adapter and steering.

    It is created on the base model. Its prompts are tokenized once, so that prompts which a method
    adds have no effect on it; `evaluation` measures those.

    The score is the first of these that the concept allows:

    * with pairs, the mean log-probability of the target responses to the source prompts, nats a
      token;
    * where the effect is a gap between groups, that gap, with the sign of the direction;
    * otherwise the mean log-probability of the target class under discriminators that take no part
      in the training.
    """

    def __init__(
        self,
        editable: EditableModel,
        train: EditExamples,
        validation: EditExamples,
        layers: Sequence[int],
        discriminator: DiscriminatorConfig,
        seed: int,
    ) -> None:
        """Choose the criterion and fit its discriminators, if it needs any.

        Args:
            editable: the base model.
            train: the examples that discriminators are fitted on.
            validation: the examples to validate on.
            layers: the layers that discriminators read.
            discriminator: their settings.
            seed: of their initial weights.
        """
        self._editable, self._validation = editable, validation
        self._score: Callable[[], float]
        if validation.counterparts:
            self._score = self._target_logprob
        elif validation.group_gap is not None:
            self._score = self._signed_gap
        else:
            fixed = _fit(editable, train, tuple(layers), discriminator, seed)
            positions = discriminator.positions
            self._score = lambda: _target_class_logprob(
                editable, fixed, validation.source, positions
            )

    @torch.no_grad()
    def __call__(self) -> ValidationResult:
        """Score and drift of the model as it is now."""
        kl = token_kl(self._editable, self._validation.retain)
        tokens = sum(one.count for one in kl)
        drift = sum(one.total for one in kl) / tokens if tokens else 0.0
        return ValidationResult(self._score(), drift)

    def _target_logprob(self) -> float:
        return float(response_logprob(self._editable, self._validation.source).mean())

    def _signed_gap(self) -> float:
        """The gap between the groups' mean probabilities: up to 0 reduced, or up to 0 increased."""
        examples, gap = self._validation.source_examples, self._validation.group_gap
        assert gap is not None
        probs = torch.tensor(choice_probs(self._editable, examples, gap.choices))
        first = torch.tensor([example.group == gap.groups[0] for example in examples])
        second = torch.tensor([example.group == gap.groups[1] for example in examples])
        size = float((probs[first].mean() - probs[second].mean()).abs())
        return -size if self._validation.reduce_gap else size - 1.0


def _states(
    editable: EditableModel,
    chats: Sequence[TokenizedChat],
    layers: tuple[int, ...],
    positions: int,
) -> States:
    """The states `[n, hidden]` by layer at the first response positions of all chats."""
    parts = [states for _, _, states in response_states(editable, chats, layers, positions)]
    return {layer: torch.cat([part[layer] for part in parts]) for layer in layers}


@torch.no_grad()
def _target_class_logprob(
    editable: EditableModel,
    discriminators: Discriminators,
    chats: Sequence[TokenizedChat],
    positions: int,
) -> float:
    states = _states(editable, chats, tuple(discriminators.by_layer), positions)
    logits = [discriminators.by_layer[layer](found) for layer, found in states.items()]
    return float(torch.cat([F.logsigmoid(one) for one in logits]).mean())


def _fit(
    editable: EditableModel,
    examples: EditExamples,
    layers: tuple[int, ...],
    config: DiscriminatorConfig,
    seed: int,
) -> Discriminators:
    """Discriminators fitted once, on the base model's states."""
    with torch.no_grad():
        target = _states(editable, examples.target, layers, config.positions)
        source = _states(editable, examples.source, layers, config.positions)
        pairs = zip(examples.retain, examples.retain_nontarget, strict=True)
        chats = [chat for chat, nontarget in pairs if nontarget]
        other = source
        if chats:
            retain = _states(editable, chats, layers, config.positions)
            other = {layer: torch.cat([source[layer], retain[layer]]) for layer in layers}
    size = target[layers[0]].shape[-1]
    fitted = Discriminators(layers, size, config, seed + 1).to(editable.device)
    fitted.standardise({layer: torch.cat([target[layer], source[layer]]) for layer in layers})
    fitted.fit(target, other, config.warmup_steps)
    return fitted
