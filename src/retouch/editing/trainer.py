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

import math
import random
import time
from collections.abc import Iterator, Mapping
from itertools import islice

import torch

from retouch.core.config import EditConfig
from retouch.core.errors import DivergedError
from retouch.core.types import StepEvent
from retouch.editing.average import MovingAverage, put
from retouch.editing.board import Board, Pool
from retouch.editing.discriminator import Jury
from retouch.editing.judge import Judge, Verdict
from retouch.editing.objective import Objective, Turn
from retouch.editing.pieces import Place
from retouch.editing.state import optimizer_tensors, restore_optimizer, under
from retouch.editing.tampering import Change, Tamperer
from retouch.models import ranks
from retouch.models.adapters import parameters
from retouch.models.load import LoadedModel
from retouch.models.segment import Segment
from retouch.representations.batch import turns

NOTICED = 0.001  # nats a token: behaviour that is better by less is not better


class Trainer:
    """Plays the rounds and keeps the state that a resumed run goes on from.

    Attributes:
        board: the rows that are played with.
        seconds: spent on training and on judging, in this sitting.
        round: rounds that are finished.
    """

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
        self._loaded, self._config, self.board = loaded, config, board
        self._segment, self._taps, self._judge = segment, taps, judge
        self._tamperer = tamperer
        self._weights = parameters(loaded)
        self._optimizer = torch.optim.Adam(self._weights.values(), lr=config.lr)
        self._average = MovingAverage(self._weights, config.average)
        # What the first round learns too: nothing has changed by then.
        self._pools: tuple[Pool, Pool] | None = board.pools()
        self._jury = self._new_jury(0, self._pools[0])
        self._objective = Objective(loaded, config, board, segment, taps, self._jury)
        self._best: dict[str, torch.Tensor] = {}
        self._best_behaviour = float("-inf")
        self._least_drift = float("inf")
        self._stale = 0
        self.round = 0
        self.seconds = {"train_seconds": 0.0, "judge_seconds": 0.0}

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
            round_began = time.monotonic()
            accuracy = self._teach()
            losses = self._answer()
            self.round += 1
            judged = time.monotonic()
            with self._average.applied():
                verdict = ranks.from_first(self._judge())
            self.seconds["train_seconds"] += judged - round_began
            self.seconds["judge_seconds"] += time.monotonic() - judged
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

    def _new_jury(self, number: int, learn: Pool) -> Jury:
        """Discriminators of a round, not yet taught, that expect states such as those to learn."""
        config = self._config
        jury = Jury(
            self._taps,
            self.board.target_seen[self._taps[0]].shape[-1],
            config.discriminator_width,
            config.discriminator_lr,
            config.seed * 7919 + number,
        ).to(self._loaded.device)
        jury.standardise({t: torch.cat([learn.wanted[t], learn.unwanted[t]]) for t in self._taps})
        return jury

    def _teach(self) -> float:
        """Train the discriminators on the present states; their accuracy on unseen rows."""
        config = self._config
        learn, test = self._pools or self.board.pools()
        self._pools = None
        first = self.round == 0 or config.discriminator_fresh
        if config.discriminator_fresh and self.round > 0:
            self._jury = self._objective.jury = self._new_jury(self.round, learn)
        steps = config.discriminator_first if first else config.discriminator_steps
        self._jury.learn(learn.wanted, learn.unwanted, steps, config.smoothing)
        return self._jury.accuracy(test.wanted, test.unwanted)

    def _answer(self) -> dict[str, float]:
        """Train the adapter for the steps of one round; the mean of each part of the loss.

        Raises:
            DivergedError: a part of the loss is not finite.
        """
        config = self._config
        rng = random.Random(f"{config.seed}:{self.round}")
        board, steps = self.board, config.steps

        def drawn(places: list[Place]) -> list[int]:
            return list(islice(turns(range(len(places)), rng), steps))

        sources, holds = drawn(board.source), drawn(board.hold)
        taught = drawn(board.taught) if board.taught is not board.source else []
        changes = self._tamper()
        sums: dict[str, torch.Tensor] = {}
        for step in range(steps):
            tampered = (rng.choice(changes), rng.random() < 0.5) if changes else None
            turn = Turn(
                sources[step],
                taught[step] if taught else None,
                holds[step] if holds else None,
                tampered,
            )
            for name, part in self._objective.gradients(turn).items():
                sums[name] = sums.get(name, 0.0) + part / steps
            torch.nn.utils.clip_grad_norm_(self._weights.values(), 1.0)
            self._optimizer.step()
            self._average.update()
        ranks.add_up(sums.values())
        # Looked at once a round: at every step the device would have to wait for the host.
        means = {name: part.item() for name, part in sums.items()}
        if not all(map(math.isfinite, means.values())):
            named = ", ".join(f"{name} {mean:.3g}" for name, mean in means.items())
            raise DivergedError(
                f"The loss is not finite in round {self.round + 1} ({named}).",
                "Lower --lr; the run is whole up to the round before.",
            )
        return means

    def _tamper(self) -> list[Change]:
        """What this round's adversary makes of the model; nothing before there is an edit."""
        if self._tamperer is None or self.round == 0:
            return []
        with self._average.applied():
            return self._tamperer.train(self.round)

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
        self._pools = None
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
