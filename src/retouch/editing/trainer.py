"""The game, round by round: discriminators learn, the adapter answers, the average is judged.

The loop of ARE (Zhang et al. 2024), with what departs from it:

* the adapter runs and is trained on the segment alone;
* it is pulled to the wanted twin of each row where there are pairs, along the whole reply;
* the retain set is held at the base model's states;
* what counts is the moving average of its weights, judged by behaviour on validation rows within a
  guard on drift. The paper stops when fresh discriminators guess; here they hardly ever do, also
  when the edit is done.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

import torch

from retouch.core.config import EditConfig
from retouch.core.errors import DivergedError
from retouch.core.types import StepEvent
from retouch.editing.average import MovingAverage, put
from retouch.editing.board import Board, Place, States
from retouch.editing.discriminator import Jury
from retouch.editing.judge import Judge, Verdict
from retouch.editing.losses import (
    confusion_loss,
    fooling_loss,
    matching_loss,
    supervised_loss,
)
from retouch.editing.perturbation import worst_push
from retouch.editing.state import optimizer_tensors, restore_optimizer, under
from retouch.editing.tampering import Change, Tamperer, tampered
from retouch.models.adapters import parameters
from retouch.models.load import LoadedModel
from retouch.models.segment import Caught, Segment
from retouch.representations.batch import Batch, turns
from retouch.representations.capture import run_whole

NOTICED = 0.001  # nats a token: behaviour that is better by less is not better
FIRST = 10.0  # weight of a reply's first token under tampering, since it decides what follows


class Trainer:
    """Plays the rounds and keeps the state that a resumed run goes on from."""

    def __init__(
        self,
        loaded: LoadedModel,
        config: EditConfig,
        board: Board,
        segment: Segment,
        taps: tuple[int, ...],
        judge: Judge,
        tamperer: Tamperer | None = None,
    ) -> None:
        self._loaded, self._config, self._board = loaded, config, board
        self._segment, self._taps, self._judge = segment, taps, judge
        self._tamperer = tamperer
        self._weights = parameters(loaded)
        self._optimizer = torch.optim.Adam(self._weights.values(), lr=config.lr)
        self._average = MovingAverage(self._weights, config.average)
        self._jury = self._new_jury(0)
        self._best: dict[str, torch.Tensor] = {}
        self._best_behaviour = float("-inf")
        self._least_drift = float("inf")
        self._stale = 0
        self.round = 0

    @property
    def jury(self) -> Jury:
        """The discriminators as they are now."""
        return self._jury

    @property
    def finished(self) -> bool:
        """Whether all rounds are played, or patience has run out."""
        return self.round >= self._config.rounds or self._stale >= self._config.patience

    def play(self) -> Iterator[StepEvent]:
        """Play the rounds that are left; one event after each.

        Raises:
            DivergedError: a loss is not finite; the last checkpoint is whole.
        """
        began = time.monotonic()
        while not self.finished:
            accuracy = self._teach()
            losses = self._answer()
            self.round += 1
            with self._average.applied():
                verdict = self._judge()
            best = self._keep(verdict)
            yield StepEvent(
                round=self.round,
                rounds=self._config.rounds,
                losses=losses,
                discriminator_accuracy=accuracy,
                behaviour=verdict.behaviour,
                drift=verdict.drift,
                best=best,
                seconds=time.monotonic() - began,
            )

    def finish(self) -> None:
        """Put the best averaged weights into the adapter.

        Raises:
            DivergedError: no round stayed within the drift guard.
        """
        if not self._best:
            raise DivergedError(
                f"No round stayed within the drift guard of {self._config.drift_guard} nats a "
                f"token; the lowest drift was {self._least_drift:.4f}.",
                "Raise --drift-guard or --retain-weight, or lower --lr.",
            )
        put(self._weights, self._best)

    def _new_jury(self, number: int) -> Jury:
        config = self._config
        jury = Jury(
            self._taps,
            self._board.target_seen[self._taps[0]].shape[-1],
            config.discriminator_width,
            config.discriminator_lr,
            config.seed * 7919 + number,
        ).to(self._loaded.device)
        learn, _ = self._board.pools()
        jury.standardise({t: torch.cat([learn.wanted[t], learn.unwanted[t]]) for t in self._taps})
        return jury

    def _teach(self) -> float:
        """Train the discriminators on the present states; their accuracy on unseen rows."""
        config = self._config
        learn, test = self._board.pools()
        first = self.round == 0 or config.discriminator_fresh
        if config.discriminator_fresh and self.round > 0:
            self._jury = self._new_jury(self.round)
        steps = config.discriminator_first if first else config.discriminator_steps
        self._jury.learn(learn.wanted, learn.unwanted, steps, config.smoothing)
        return self._jury.accuracy(test.wanted, test.unwanted)

    def _answer(self) -> dict[str, float]:
        """Train the adapter for the steps of one round; the mean of each part of the loss."""
        config = self._config
        rng = random.Random(f"{config.seed}:{self.round}")

        def drawn(places: list[Place]) -> list[Place]:
            return list(islice(turns(places, rng), config.steps))

        sources = drawn(self._board.source)
        holds = drawn(self._board.hold)
        apart = self._board.taught is not self._board.source
        taught = drawn(self._board.taught) if apart else []
        changes = self._tamper()
        sums: dict[str, float] = {}
        for step in range(config.steps):
            parts = self._source_losses(sources[step])
            if taught:
                _, logits = run_whole(self._loaded, taught[step].batch.ids, ())
                parts["supervised"] = self._supervised(taught[step], logits)
            if changes:
                parts["tamper"] = self._tampered_loss(sources[step], changes, rng)
            if holds:
                parts["retain"] = config.retain_weight * self._retain_loss(holds[step])
            loss = torch.stack(list(parts.values())).sum()
            if not torch.isfinite(loss):
                named = ", ".join(f"{k} {v.item():.3g}" for k, v in parts.items())
                raise DivergedError(
                    f"The loss is not finite in round {self.round + 1} ({named}).",
                    "Lower --lr; the run is whole up to the round before.",
                )
            self._optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self._weights.values(), 1.0)
            self._optimizer.step()
            self._average.update()
            for name, part in parts.items():
                sums[name] = sums.get(name, 0.0) + part.item() / config.steps
        return sums

    def _tamper(self) -> list[Change]:
        """What this round's adversary makes of the model; nothing before there is an edit."""
        if self._tamperer is None or self.round == 0:
            return []
        with self._average.applied():
            return self._tamperer.train(self.round)

    def _source_losses(self, place: Place) -> dict[str, torch.Tensor]:
        config, caught = self._config, place.caught
        parts: dict[str, torch.Tensor] = {}
        states: States = {}
        if config.supervised_weight and self._board.taught is self._board.source:
            states, logits = run_whole(self._loaded, place.batch.ids, self._taps)
            parts["supervised"] = self._supervised(place, logits)
        if config.perturb:

            def harm(pushed: Caught) -> torch.Tensor:
                found = self._game_losses(place, self._segment.run(pushed, self._taps))
                return torch.stack(list(found.values())).sum()

            caught = worst_push(caught, harm, config.perturb, config.perturb_steps)
        if config.perturb or not states:
            states = self._segment.run(caught, self._taps)
        return parts | self._game_losses(place, states)

    def _game_losses(self, place: Place, states: States) -> dict[str, torch.Tensor]:
        config, parts = self._config, {}
        if config.adversarial_weight:
            loss = fooling_loss if self._board.groups is None else confusion_loss
            fooled = [loss(self._jury.members[t](states[t][place.early])) for t in states]
            parts["adversarial"] = config.adversarial_weight * torch.stack(fooled).mean()
        if config.pair_weight and place.wanted:
            at = place.matched
            weights = place.batch.weights(at, config.first_weight).to(self._loaded.device)
            near = [matching_loss(states[t][at], place.wanted[t], weights) for t in states]
            parts["pair"] = config.pair_weight * torch.stack(near).mean()
        return parts

    def _supervised(self, place: Place, logits: torch.Tensor) -> torch.Tensor:
        loss = _reply_loss(place.batch, logits, self._config.first_weight)
        return self._config.supervised_weight * loss

    def _tampered_loss(
        self, place: Place, changes: Sequence[Change], rng: random.Random
    ) -> torch.Tensor:
        """Of the wanted replies, to source or target prompts, with an adversary's change on top."""
        batch = place.twin if place.twin is not None and rng.random() < 0.5 else place.batch
        with tampered(self._loaded, rng.choice(changes)):
            _, logits = run_whole(self._loaded, batch.ids, ())
        return self._config.tamper_weight * _reply_loss(batch, logits, FIRST)

    def _retain_loss(self, place: Place) -> torch.Tensor:
        last = self._segment.last
        states = self._segment.run(place.caught, (last,))[last]
        assert place.base is not None
        real = place.batch.real()
        weights = torch.ones(real.shape)
        weights[place.reply] = self._config.retain_reply_weight
        return matching_loss(states[real], place.base, weights[real].to(states.device))

    def _keep(self, verdict: Verdict) -> bool:
        self._least_drift = min(self._least_drift, verdict.drift)
        better = verdict.behaviour > self._best_behaviour + NOTICED
        # What an adversary cannot undo shows in no behaviour: the longer it was played the better.
        better = better or self._tamperer is not None
        if better and verdict.drift <= self._config.drift_guard:
            self._best = {name: value.clone() for name, value in self._average.values.items()}
            self._best_behaviour = verdict.behaviour
            self._stale = 0
            return True
        if self._best:
            self._stale += 1
        return False

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        """All that the next round depends on: tensors by name, and numbers as text."""
        tensors = {}
        for name, parameter in self._weights.items():
            tensors[f"weights/{name}"] = parameter.detach()
        for name, value in self._average.values.items():
            tensors[f"average/{name}"] = value
        for name, value in self._best.items():
            tensors[f"best/{name}"] = value
        tensors |= optimizer_tensors("adapter", self._optimizer)
        for tap, member in self._jury.members.items():
            for name, value in member.state_dict().items():
                tensors[f"jury/{tap}/{name}"] = value
            tensors |= optimizer_tensors(f"jury-{tap}", self._jury.optimizers[tap])
        numbers = {
            "round": str(self.round),
            "stale": str(self._stale),
            "best_behaviour": repr(self._best_behaviour),
            "least_drift": repr(self._least_drift),
        }
        return {name: value.contiguous().clone() for name, value in tensors.items()}, numbers

    def restore(self, tensors: Mapping[str, torch.Tensor], numbers: Mapping[str, str]) -> None:
        """Go back to a state that `state` returned, bit for bit."""
        put(self._weights, under("weights/", tensors))
        self._average.values = under("average/", tensors)
        self._best = under("best/", tensors)
        restore_optimizer("adapter", self._optimizer, tensors)
        for tap, member in self._jury.members.items():
            member.load_state_dict(under(f"jury/{tap}/", tensors))
            restore_optimizer(f"jury-{tap}", self._jury.optimizers[tap], tensors)
        self.round, self._stale = int(numbers["round"]), int(numbers["stale"])
        self._best_behaviour = float(numbers["best_behaviour"])
        self._least_drift = float(numbers["least_drift"])


def _reply_loss(batch: Batch, logits: torch.Tensor, first: float) -> torch.Tensor:
    """The supervised loss of a batch's replies from the logits `[rows, tokens, vocabulary]`."""
    at = batch.reply()
    weights, told = batch.weights(at, first), batch.told()
    return supervised_loss(logits[at], told.to(logits.device), weights.to(logits.device))
