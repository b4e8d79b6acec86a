"""Circuit breaking: make the states of source responses orthogonal to the base model's."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch.nn import functional as F

from retouch.core.config import option
from retouch.core.errors import ConfigError
from retouch.core.types import Progress
from retouch.methods.lora import LoraSettings, Loss, train
from retouch.methods.method import Method
from retouch.methods.state_batches import StateBatches
from retouch.models.adapters import parameters
from retouch.models.editable_model import EditableModel
from retouch.models.segment import Segment
from retouch.representations.batch import PaddedBatch, shuffled_forever
from retouch.representations.cached_states import CachedStates
from retouch.task.task import EditTask

INITIAL_STD = 0.02  # standard deviation of the initial LoRA B


class CircuitBreakerSettings(LoraSettings):
    """LoRA settings with the weights of the two losses."""

    # As in the paper, the last step is kept: validation scores the target response, which the
    # method does not train, and would select the step that reroutes least.
    num_validations: int = option(1, "validations during the training", ge=1)
    learning_rate: float = option(3e-3, "learning rate (Adam)", search=(1e-4, 1e-2), log=True)
    reroute_weight: float = option(
        10.0, "weight of rerouting the source responses' states", search=(1, 30), log=True, ge=0
    )
    retain_weight: float = option(
        100.0, "weight of keeping the retain set's states", search=(10, 300), log=True, ge=0
    )


class CircuitBreaker(Method):
    r"""Representation rerouting (algorithm 1): make source states orthogonal to the base's.

    $$L = c_s \, ReLU(\cos(h^{base}(x_s), h(x_s)))
        + c_r \, \lVert h^{base}(x_r) - h(x_r) \rVert_2$$

    with $c_s = \alpha_s (1 - \frac{t}{2T})$ and $c_r = \alpha_r \frac{t}{2T}$ in step $t$ of $T$.
    $x_s$ are the source responses at the states that predict their tokens, so that states which a
    source prompt shares with a harmless one are not rerouted. $x_r$ are the retain set and, as the
    paper's refusal retain data, the target examples, at every token. The paper has one $\alpha$.

    The method only breaks the source response off; it does not train the target response.
    """

    id = "circuit-breaker"
    title = "Circuit breaker"
    source = "Zou et al. 2024, arXiv 2406.04313, algorithm 1"
    settings = CircuitBreakerSettings

    def apply(
        self, editable: EditableModel, task: EditTask, settings: Any, progress: Progress
    ) -> None:
        """Train adapters from the first layer to the last that is read.

        Raises:
            ConfigError: the examples have no source responses.
        """
        examples, layers = task.train, task.layers.read
        if not examples.rejected:
            raise ConfigError(
                f"Circuit breaking needs source responses, and the examples of "
                f"{task.concept.name} have none, since they are no pairs.",
                "Give the concept's examples a `pair`, or choose another method.",
                code="pairs-missing",
            )
        segment = Segment(editable, 0, max(layers))
        batches = StateBatches(editable, segment, layers, settings.batch_size)
        source = batches.cache(examples.rejected)
        retain = batches.cache(
            [*examples.retain, *examples.target], positions=PaddedBatch.token_positions
        )

        def make_loss() -> Loss:
            init_lora_b(editable, task.seed)
            sources = shuffled_forever(source, random.Random(f"{task.seed}:unwanted"))
            retains = shuffled_forever(retain, random.Random(f"{task.seed}:hold"))

            def loss(step: int) -> torch.Tensor:
                reroute, keep = schedule(step, settings.max_steps)
                total: torch.Tensor = settings.reroute_weight * reroute * reroute_loss(
                    segment, next(sources)
                ) + settings.retain_weight * keep * retain_loss(segment, next(retains))
                return total

            return loss

        train(editable, task, settings, range(segment.last + 1), make_loss, progress)


@torch.no_grad()
def init_lora_b(editable: EditableModel, seed: int) -> None:
    """Initialise LoRA's B with small random values in place of zeros.

    The cosine has no gradient where it is 1. The paper's training leaves this point through
    dropout, which is not used here, and through rounding.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, weight in parameters(editable).items():
        if "lora_B" in name:
            weight.copy_(INITIAL_STD * torch.randn(weight.shape, generator=generator))


def schedule(step: int, max_steps: int) -> tuple[float, float]:
    r"""The coefficients of rerouting and retaining: $1 - \frac{t}{2T}$ and $\frac{t}{2T}$."""
    share = step / (2 * max_steps)
    return 1 - share, share


def reroute_loss(segment: Segment, cached: CachedStates) -> torch.Tensor:
    """ReLU of the cosine between base states and current states, mean over the layers."""
    base = cached.states
    current = cached.current(segment, tuple(base))
    losses = [
        F.cosine_similarity(current[layer].float(), states.float(), dim=-1).relu().mean()
        for layer, states in base.items()
    ]
    return torch.stack(losses).mean()


def retain_loss(segment: Segment, cached: CachedStates) -> torch.Tensor:
    """Euclidean distance to the base states relative to their mean norm, mean over the layers.

    Relative, unlike the paper's, so that one weight serves models of any hidden size.
    """
    base = cached.states
    current = cached.current(segment, tuple(base))
    losses = [
        (current[layer] - states).float().norm(dim=-1).mean() / states.float().norm(dim=-1).mean()
        for layer, states in base.items()
    ]
    return torch.stack(losses).mean()
