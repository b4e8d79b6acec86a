"""Circuit breaking: make the states of source responses orthogonal to the base model's."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch.nn import functional as F

from retouch.core.config import option
from retouch.core.types import Progress
from retouch.methods.cached_batches import CachedBatches
from retouch.methods.lora import LoraSettings, attach_adapter, check_pairs, train
from retouch.methods.method import Method
from retouch.methods.state_matching import reference_loss
from retouch.models.adapters import parameters
from retouch.models.editable_model import EditableModel
from retouch.models.segment import Segment
from retouch.representations.batch import ChatBatch, shuffled_forever
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
        check_pairs(task, self.title)
        examples, layers = task.train, task.layers.read
        segment = Segment(editable, 0, max(layers))
        batches = CachedBatches(editable, task, segment)
        source = batches.cache(examples.rejected, settings.batch_size, layers)
        retain = batches.cache(
            [*examples.retain, *examples.target],
            settings.retain_batch_size,
            layers,
            positions=ChatBatch.token_positions,
        )
        sources = shuffled_forever(source, random.Random(f"{task.seed}:unwanted"))
        retains = shuffled_forever(retain, random.Random(f"{task.seed}:hold"))

        def loss(step: int) -> torch.Tensor:
            reroute, keep = schedule(step, settings.max_steps)
            rerouting = reference_loss(segment, next(sources), reroute_loss)
            retaining = reference_loss(segment, next(retains), retain_loss)
            total: torch.Tensor = settings.reroute_weight * reroute * rerouting
            return total + settings.retain_weight * keep * retaining  # type: ignore[no-any-return]

        attach_adapter(editable, range(segment.last + 1), settings, task.seed)
        init_lora_b(editable, task.seed)
        train(editable, task, settings, loss, progress)


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


def reroute_loss(current: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """Mean ReLU of the cosine between current states and base states `[n, hidden]`."""
    return F.cosine_similarity(current.float(), base.float(), dim=-1).relu().mean()


def retain_loss(current: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """Mean Euclidean distance to base states `[n, hidden]`, relative to their mean norm.

    Relative, unlike the paper's, so that one weight serves models of any hidden size.
    """
    distance, norm = (current - base).float().norm(dim=-1), base.float().norm(dim=-1)
    relative: torch.Tensor = distance.mean() / norm.mean()
    return relative
