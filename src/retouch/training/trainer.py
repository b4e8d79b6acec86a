"""Adversarial training, round by round.

The loop of ARE (Zhang et al. 2024), with these differences:

* only the blocks from the first adapted one on are run, from cached inputs;
* with pairs, source states are also matched to their target counterparts along the response, and
  the target responses are learned;
* the responses to the retain set are kept at the base model's probabilities;
* the result is the exponential moving average of the weights from the best round, which is selected
  by validation near or within the limits; the strength that is chosen afterwards brings it within.
  The paper stops when fresh discriminators are at chance; here they hardly ever are, not even when
  the edit is complete;
* a round that is far over a limit is undone, and the learning rate halved.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator
from itertools import islice

import torch

from retouch.core.errors import DivergedError
from retouch.core.types import RoundEvent
from retouch.models import distributed
from retouch.models.adapters import parameters
from retouch.models.segment import Segment
from retouch.representations.batch import shuffled_forever
from retouch.representations.discriminator import Discriminators
from retouch.representations.finetuning import LoraDelta
from retouch.task.best_checkpoint import BestCheckpoint, copy_into
from retouch.task.validation import ValidationResult
from retouch.training.checkpoint import (
    TrainingState,
    optimizer_tensors,
    restore_optimizer,
    with_prefix,
)
from retouch.training.context import TrainingContext
from retouch.training.dataset import EditDataset, Pool
from retouch.training.ema import EMA
from retouch.training.finetuning_adversary import FinetuningAdversary
from retouch.training.micro_batch import Batch
from retouch.training.objective import Objective, Step

MIN_IMPROVEMENT = 0.001  # of the validation score
MAX_GRAD_NORM = 1.0
FINAL_RATE = 0.1  # of the peak learning rate, at the end of a cosine decay
SLACK = 1.5  # a round may be so many times over a limit, since a lower strength brings it within
UNDO_EXCESS = 5.0  # a round whose validation is so many times over a limit is undone
KL_GROWTH = 1.5  # of the KL divergence's weight after a round over a limit; it falls back as fast
ADAM_BETAS = (0.9, 0.99)  # a second moment that is averaged over fewer steps than a training has


class Trainer:
    """Trains the adapter and the discriminators, and holds the state that a resumed run restores.

    Attributes:
        dataset: the batches.
        discriminators: as they are now.
        round: rounds finished.
        seconds: spent on training and on validation since the program started.
    """

    def __init__(
        self,
        context: TrainingContext,
        dataset: EditDataset,
        validate: Callable[[Segment | None], ValidationResult],
        adversary: FinetuningAdversary | None = None,
    ) -> None:
        """Prepare the first round; the adapter is attached.

        Args:
            context: the model, the segment and the settings.
            dataset: the batches.
            validate: measures the present adapter, from the segment's cached inputs where they
                lead to the logits, else (None) through the whole model.
            adversary: fine-tunes the adapter away, to train against that.
        """
        self._context, self.dataset, self._run_validation = context, dataset, validate
        self._adversary = adversary
        self._train, self._discriminator = context.method.train, context.method.discriminator
        self._weights = parameters(context.editable)
        self._optimizer = self._new_optimizer()
        self._ema = EMA(self._weights, self._train.ema_decay)
        # The first round uses them too, since no weight has changed by then.
        self._pools: tuple[Pool, Pool] | None = dataset.pools(0)
        self.discriminators = self._new_discriminators(0, self._pools[0])
        self._objective = Objective(context, dataset)
        self._best = BestCheckpoint(
            self._train.max_drift,
            max_change=self._train.max_retain_change,
            min_improvement=MIN_IMPROVEMENT,
            slack=SLACK if min(self._train.strengths) < 1 else 1.0,
        )
        # What a round that is undone is reset to: new weights change nothing.
        self._initial = {name: weight.detach().clone() for name, weight in self._weights.items()}
        self._rate_scale = 1.0
        self._rounds_without_improvement = 0
        self.round = 0
        self.seconds = {"train_seconds": 0.0, "validation_seconds": 0.0}

    @property
    def finished(self) -> bool:
        """Whether all rounds are done, or the patience is exhausted."""
        exhausted = self._rounds_without_improvement >= self._train.patience
        return self.round >= self._train.rounds or exhausted

    def train(self) -> Iterator[RoundEvent]:
        """Run the remaining rounds; one event after each.

        Raises:
            DivergedError: a loss is not finite; the last checkpoint is valid.
        """
        began = time.monotonic()
        while not self.finished:
            round_began = time.monotonic()
            accuracy = self._train_discriminators()
            losses = self._train_generator()
            self.round += 1
            validation_began = time.monotonic()
            with self._ema.applied():
                result = self._validate()
            self.seconds["train_seconds"] += validation_began - round_began
            self.seconds["validation_seconds"] += time.monotonic() - validation_began
            yield RoundEvent(
                round=self.round,
                rounds=self._train.rounds,
                losses=losses,
                discriminator_accuracy=accuracy,
                validation_score=result.score,
                drift=result.drift,
                retain_change=result.retain_change,
                best=self._keep_best(result),
                undone=self._correct(result),
                seconds=time.monotonic() - began,
            )

    def measure_excess(self) -> float:
        """How far the model as it is now is over the limits, as `BestCheckpoint.excess`."""
        return self._best.excess_of(self._validate())

    def finish(self) -> None:
        """Copy the best averaged weights into the adapter."""
        self._best.restore(self._weights)

    def _validate(self) -> ValidationResult:
        segment = self._context.segment
        return distributed.broadcast(self._run_validation(segment if segment.to_logits else None))

    def _new_discriminators(self, number: int, fit: Pool) -> Discriminators:
        """Untrained discriminators of a round, standardised for the states that they will fit."""
        layers, seed = self._context.read_layers, self._context.seed * 7919 + number
        size = fit.target[layers[0]].shape[-1]
        made = Discriminators(layers, size, self._discriminator, seed)
        made.to(self._context.editable.device)
        made.standardise({i: torch.cat([fit.target[i], fit.nontarget[i]]) for i in layers})
        return made

    def _train_discriminators(self) -> float:
        """Fit the discriminators to the present states; their accuracy on held-out examples."""
        config = self._discriminator
        fit, test = self._pools or self.dataset.pools(self.round)
        self._pools = None
        if config.reset_each_round and self.round > 0:
            self.discriminators = self._new_discriminators(self.round, fit)
        warm_up = self.round == 0 or config.reset_each_round
        steps = config.warmup_steps if warm_up else config.steps_per_round
        self.discriminators.fit(fit.target, fit.nontarget, steps)
        return self.discriminators.accuracy(test.target, test.nontarget)

    def _train_generator(self) -> dict[str, float]:
        """Train the adapter for the steps of one round; the mean of each loss term.

        Raises:
            DivergedError: a term is not finite.
        """
        rng = random.Random(f"{self._context.seed}:{self.round}")
        dataset, count = self.dataset, self._train.steps_per_round

        def shuffled(batches: list[Batch]) -> list[int]:
            return list(islice(shuffled_forever(range(len(batches)), rng), count))

        sources, retains = shuffled(dataset.source), shuffled(dataset.retain)
        sft = shuffled(dataset.sft) if dataset.sft is not dataset.source else []
        unlearned = shuffled(dataset.unlearned) if dataset.unlearned else []
        deltas = self._finetuned()
        sums: dict[str, torch.Tensor] = {}
        for i in range(count):
            finetuned = (rng.choice(deltas), rng.random() < 0.5) if deltas else None
            step = Step(
                source=sources[i],
                sft=sft[i] if sft else None,
                retain=retains[i] if retains else None,
                unlearned=unlearned[i] if unlearned else None,
                finetuned=finetuned,
            )
            for name, term in self._objective.gradients(step, self.discriminators).items():
                sums[name] = sums.get(name, 0.0) + term / count
            torch.nn.utils.clip_grad_norm_(self._weights.values(), MAX_GRAD_NORM)
            self._set_learning_rate(self._learning_rate(self.round * count + i))
            self._optimizer.step()
            self._ema.update()
        distributed.all_reduce(sums.values())
        # Read once a round, since reading a value blocks until the device has finished.
        means = {name: term.item() for name, term in sums.items()}
        if not all(map(math.isfinite, means.values())):
            named = ", ".join(f"{name} {mean:.3g}" for name, mean in means.items())
            raise DivergedError(
                f"The loss is not finite in round {self.round + 1} ({named}).",
                "Lower `learning_rate`; the run is valid up to the round before.",
                code="loss-not-finite",
            )
        return means

    def _new_optimizer(self) -> torch.optim.Adam:
        """Adam with two groups of weights, LoRA's A and its B matrices.

        Source: LoRA+ (Hayou et al. 2024, arXiv 2402.12354).
        """
        weights = self._weights.items()
        groups = [
            {"params": [weight for name, weight in weights if (".lora_B." in name) is is_b]}
            for is_b in (False, True)
        ]
        return torch.optim.Adam(groups, lr=self._train.learning_rate, betas=ADAM_BETAS)

    def _set_learning_rate(self, rate: float) -> None:
        """Set the rate of the A matrices, and LoRA+'s of the B matrices."""
        of_a, of_b = self._optimizer.param_groups
        of_a["lr"], of_b["lr"] = rate, rate * self._train.loraplus_lr_ratio

    def _learning_rate(self, step: int) -> float:
        """The learning rate of a step, numbered from 0 over all rounds."""
        config = self._train
        total = config.rounds * config.steps_per_round
        warmup = round(config.warmup_ratio * total)
        rate = config.learning_rate * self._rate_scale
        if step < warmup:
            return rate * (step + 1) / warmup
        if config.lr_scheduler_type == "constant":
            return rate
        done = (step - warmup) / max(1, total - warmup)
        return rate * (FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * done)))

    def _correct(self, result: ValidationResult) -> bool:
        """Adjust the KL divergence's weight, and undo a round that is far over a limit.

        Returns whether it is undone.
        """
        excess = self._best.excess_of(result)
        factor = 1.0 / KL_GROWTH if self._best.is_within(result) else KL_GROWTH
        self._objective.kl_scale = max(1.0, self._objective.kl_scale * factor)
        if excess <= UNDO_EXCESS:
            return False
        self._rate_scale /= 2
        values = self._best.values if self._best.excess <= UNDO_EXCESS else self._initial
        copy_into(self._weights, values)
        self._ema.values = {name: value.clone() for name, value in values.items()}
        self._optimizer.state.clear()
        return True

    def _finetuned(self) -> list[LoraDelta]:
        """The adversary's updates of this round; before the first there is no edit to undo."""
        if self._adversary is None or self.round == 0:
            return []
        with self._ema.applied():
            return self._adversary.train(self.round)

    def _keep_best(self, result: ValidationResult) -> bool:
        # Resistance to fine-tuning does not show in validation: it grows with the training.
        latest = self._adversary is not None
        best = self._best.update(result, self._ema.values, prefer_latest=latest)
        if best:
            self._rounds_without_improvement = 0
        elif self._best.within:
            self._rounds_without_improvement += 1
        return best

    def state(self) -> TrainingState:
        """Everything that the next round depends on."""
        tensors = {f"weights/{name}": p.detach() for name, p in self._weights.items()}
        tensors |= {f"ema/{name}": value for name, value in self._ema.values.items()}
        tensors |= {f"best/{name}": value for name, value in self._best.values.items()}
        tensors |= optimizer_tensors("adapter", self._optimizer)
        for layer, one in self.discriminators.by_layer.items():
            named = one.state_dict().items()
            tensors |= {f"discriminator/{layer}/{name}": value for name, value in named}
        tensors |= optimizer_tensors("discriminators", self.discriminators.optimizer)
        numbers = {
            "round": str(self.round),
            "rounds_without_improvement": str(self._rounds_without_improvement),
            "best_score": repr(self._best.score),
            "best_excess": repr(self._best.excess),
            "rate_scale": repr(self._rate_scale),
            "kl_scale": repr(self._objective.kl_scale),
        }
        return TrainingState(tensors, numbers)

    def restore(self, state: TrainingState) -> None:
        """Restore a state that `state` returned, bit for bit.

        Raises:
            KeyError: a tensor or a number is missing.
            RuntimeError: a tensor has another shape.
            ValueError: a counter is out of range.
        """
        self._pools = None
        tensors, numbers = state.tensors, state.numbers
        for name in ("round", "rounds_without_improvement"):
            if not 0 <= int(numbers[name]) <= self._train.rounds:
                raise ValueError(f"`{name}` is {numbers[name]}, of {self._train.rounds} rounds")
        copy_into(self._weights, with_prefix("weights/", tensors))
        self._ema.values = with_prefix("ema/", tensors)
        restore_optimizer("adapter", self._optimizer, tensors)
        for layer, one in self.discriminators.by_layer.items():
            one.load_state_dict(with_prefix(f"discriminator/{layer}/", tensors))
        restore_optimizer("discriminators", self.discriminators.optimizer, tensors)
        self.round = int(numbers["round"])
        self._rounds_without_improvement = int(numbers["rounds_without_improvement"])
        self._best.values = with_prefix("best/", tensors)
        self._best.score = float(numbers["best_score"])
        self._best.excess = float(numbers["best_excess"])
        self._rate_scale = float(numbers["rate_scale"])
        self._objective.kl_scale = float(numbers["kl_scale"])
