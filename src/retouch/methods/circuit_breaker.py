"""Circuit breaking: the states of unwanted responses are turned away from what they were."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch.nn import functional as F

from retouch.core.errors import ConfigError
from retouch.methods.lora import LoraSettings, train
from retouch.methods.lorra import CachedBatch, present, see
from retouch.methods.method import Method, Progress, tunable
from retouch.models.adapters import parameters
from retouch.models.editable_model import EditableModel
from retouch.models.segment import Segment
from retouch.task.task import EditTask

NUDGE = 0.02  # deviation of the adapters' first upper weights


class CircuitBreakerSettings(LoraSettings):
    """With the weights of the two losses."""

    # The paper keeps the last step. The judge would choose the step that breaks least, since it
    # waits for the wanted response.
    num_validations: int = 1

    lr: float = tunable(3e-3, low=1e-4, high=1e-2, log=True, description="learning rate (Adam)")
    reroute_weight: float = tunable(
        10.0, low=1.0, high=30.0, log=True, description="of turning unwanted states away"
    )
    retain_weight: float = tunable(
        100.0, low=10.0, high=300.0, log=True, description="of the retain set's states"
    )


class CircuitBreaker(Method):
    r"""Representation rerouting (algorithm 1): unwanted states become orthogonal to the base's.

    $$L = c_s \, ReLU(\cos(h^{base}(x_s), h(x_s)))
        + c_r \, \lVert h^{base}(x_r) - h(x_r) \rVert_2$$

    with $c_s = \alpha_s (1 - \frac{t}{2T})$ and $c_r = \alpha_r \frac{t}{2T}$ in step $t$ of $T$.
    $x_s$ are the unwanted responses, at the states that predict their tokens, so that what an
    unwanted prompt shares with a harmless one is not turned; $x_r$ are the retain set and, as the
    paper's refusal retain data, the target rows, at every token. The paper has one $\alpha$.

    It breaks the unwanted response off into something else; that this is the wanted response is no part
    of the method.
    """

    id = "circuit-breaker"
    title = "Circuit breaker"
    source = "Zou et al. 2024, arXiv 2406.04313, algorithm 1"
    settings = CircuitBreakerSettings

    def apply(
        self, editable: EditableModel, task: EditTask, settings: Any, progress: Progress
    ) -> None:
        """Train adapters from the first block to the last that is read.

        Raises:
            ConfigError: no unwanted responses are known.
        """
        if not task.train.rejected:
            raise ConfigError(
                f"Circuit breaking turns unwanted responses away, and {task.concept.name} has none: "
                "its rows are no pairs.",
                "Give the concept's rows a `pair`, or choose another method.",
            )
        read_layers, size = task.layers.read, settings.batch
        segment = Segment(editable, 0, max(read_layers))
        unwanted = see(editable, segment, task.train.rejected, read_layers, size)
        kept = [*task.train.retain, *task.train.target]
        retain = see(editable, segment, kept, read_layers, size, whole=True)

        def make_loss() -> Any:
            nudge(editable, task.config.seed)
            turned = shuffled_forever(unwanted, random.Random(f"{task.config.seed}:unwanted"))
            holds = shuffled_forever(retain, random.Random(f"{task.config.seed}:hold"))

            def loss(step: int) -> torch.Tensor:
                away, still = schedule(step, settings.steps)
                turned_away = settings.reroute_weight * away * reroute_loss(segment, next(turned))
                kept_still = settings.retain_weight * still * retain_loss(segment, next(holds))
                total: torch.Tensor = turned_away + kept_still
                return total

            return loss

        train(editable, task, settings, range(segment.last + 1), make_loss, progress)


@torch.no_grad()
def nudge(editable: EditableModel, seed: int) -> None:
    """Draw the adapters' upper weights small at random, where they would begin at 0.

    The cosine has no slope where it is 1. The paper's training leaves that place by dropout, which
    ours is without, and by what rounding leaves.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, weight in parameters(editable).items():
        if "lora_B" in name:
            weight.copy_(NUDGE * torch.randn(weight.shape, generator=generator))


def schedule(step: int, steps: int) -> tuple[float, float]:
    r"""How much rerouting and retaining count: $1 - \frac{t}{2T}$ and $\frac{t}{2T}$."""
    share = step / (2 * steps)
    return 1 - share, share


def reroute_loss(segment: Segment, seen: CachedBatch) -> torch.Tensor:
    """ReLU of the cosine between the base's states and the present ones, mean of blocks."""
    states = present(segment, seen)
    parts = [
        F.cosine_similarity(states[block].float(), base.float(), dim=-1).relu().mean()
        for block, base in seen.base.items()
    ]
    return torch.stack(parts).mean()


def retain_loss(segment: Segment, seen: CachedBatch) -> torch.Tensor:
    """Euclidean distance to the base's states in units of their mean length, mean of blocks.

    The unit is ours: with it one weight serves models of any width.
    """
    states = present(segment, seen)
    parts = [
        (states[block] - base).float().norm(dim=-1).mean() / base.float().norm(dim=-1).mean()
        for block, base in seen.base.items()
    ]
    return torch.stack(parts).mean()
