"""What the adapter is trained on: the losses of a step, piece by piece, and their gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from retouch.core.config import EditConfig
from retouch.editing.board import Board
from retouch.editing.discriminator import Jury
from retouch.editing.losses import confusion_loss, fooling_loss, matching_loss, supervised_loss
from retouch.editing.perturbation import worst_push
from retouch.editing.pieces import Piece, Place, States
from retouch.editing.tampering import Change, tampered
from retouch.models import ranks
from retouch.models.adapters import parameters
from retouch.models.load import LoadedModel
from retouch.models.memory import give_back, ran_out
from retouch.models.segment import Caught, Segment
from retouch.representations.batch import Batch
from retouch.representations.capture import run_whole

FIRST = 10.0  # weight of a reply's first token under tampering, since it decides what follows


@dataclass(frozen=True)
class Turn:
    """What a step takes part with, by number, so that the batches may be cut anew meanwhile.

    Attributes:
        source: the place of the source rows.
        taught: that of replies to learn, where these are not the source's.
        hold: that of the retain set.
        tampered: an adversary's change, and whether the target's prompts are answered under it.
    """

    source: int
    taught: int | None
    hold: int | None
    tampered: tuple[Change, bool] | None


class Objective:
    """The losses of the adapter, and their gradients in its weights.

    Attributes:
        jury: the discriminators to fool, as they are now.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        config: EditConfig,
        board: Board,
        segment: Segment,
        taps: tuple[int, ...],
        jury: Jury,
    ) -> None:
        self._loaded, self._config, self._board = loaded, config, board
        self._segment, self._taps, self.jury = segment, taps, jury
        self._weights = parameters(loaded)

    def gradients(self, turn: Turn) -> dict[str, torch.Tensor]:
        """Put the gradients of a step into the weights; its losses by part, of this process's rows.

        Where memory runs out, the batches are cut smaller and the step begins anew.
        """
        while True:
            for weight in self._weights.values():
                weight.grad = None
            try:
                losses = self._backward(turn)
                break
            except (RuntimeError, MemoryError) as error:
                if not ran_out(error):
                    raise
            give_back()
            self._board.lay_again()
        ranks.add_up(p.grad for p in self._weights.values() if p.grad is not None)
        return losses

    def _backward(self, turn: Turn) -> dict[str, torch.Tensor]:
        """Add up gradients piece by piece, so that no more than one piece is held at a time."""
        board, sums = self._board, dict[str, torch.Tensor]()

        def add(place: Place, losses: Callable[[Place, Piece], dict[str, torch.Tensor]]) -> None:
            for piece in place.pieces:
                if not (parts := losses(place, piece)):
                    continue  # without pairs and without a game, source rows ask for nothing
                share = 0.0 if piece.idle else 1.0
                loss = torch.stack(list(parts.values())).sum()
                (share * loss).backward()  # type: ignore[no-untyped-call]
                for name, part in parts.items():
                    sums[name] = sums.get(name, 0.0) + share * part.detach()

        source = board.source[turn.source]
        add(source, self._source_losses)
        if turn.taught is not None:
            add(board.taught[turn.taught], self._taught_loss)
        if turn.tampered is not None:
            change, twin = turn.tampered
            add(source, lambda place, piece: self._tampered_loss(place, piece, change, twin))
        if turn.hold is not None:
            add(board.hold[turn.hold], self._retain_loss)
        return sums

    def _source_losses(self, place: Place, piece: Piece) -> dict[str, torch.Tensor]:
        config, caught = self._config, piece.caught
        parts: dict[str, torch.Tensor] = {}
        states: States = {}
        if config.supervised_weight and self._board.taught is self._board.source:
            states, logits = run_whole(self._loaded, piece.batch.ids, self._taps)
            parts |= self._supervised(place, piece, logits)
        if config.perturb:

            def harm(pushed: Caught) -> torch.Tensor:
                found = self._game_losses(place, piece, self._segment.run(pushed, self._taps))
                return torch.stack(list(found.values())).sum()

            caught = worst_push(caught, harm, config.perturb, config.perturb_steps)
        if config.perturb or not states:
            states = self._segment.run(caught, self._taps)
        return parts | self._game_losses(place, piece, states)

    def _game_losses(self, place: Place, piece: Piece, states: States) -> dict[str, torch.Tensor]:
        config, sizes, parts = self._config, place.sizes, {}
        if config.adversarial_weight:
            loss = fooling_loss if self._board.groups is None else confusion_loss
            read = {tap: self.jury.members[tap](states[tap][piece.early]) for tap in states}
            fooled = [loss(logits, sizes.early) for logits in read.values()]
            parts["adversarial"] = config.adversarial_weight * torch.stack(fooled).mean()
        wanted = piece.wanted if config.pair_weight else {}
        if wanted:
            weights, at = piece.matched_weights, piece.matched
            near = [matching_loss(states[t][at], wanted[t], weights, sizes.pair[t]) for t in states]
            parts["pair"] = config.pair_weight * torch.stack(near).mean()
        return parts

    def _taught_loss(self, place: Place, piece: Piece) -> dict[str, torch.Tensor]:
        _, logits = run_whole(self._loaded, piece.batch.ids, ())
        return self._supervised(place, piece, logits)

    def _supervised(
        self, place: Place, piece: Piece, logits: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        loss = _reply_loss(piece.batch, place.batch, logits, self._config.first_weight)
        return {"supervised": self._config.supervised_weight * loss}

    def _tampered_loss(
        self, place: Place, piece: Piece, change: Change, to_twin: bool
    ) -> dict[str, torch.Tensor]:
        """Of the wanted replies, to source or target prompts, with an adversary's change on top."""
        batch = piece.twin if to_twin and piece.twin is not None else piece.batch
        with tampered(self._loaded, change):
            _, logits = run_whole(self._loaded, batch.ids, ())
        loss = _reply_loss(batch, place.batch, logits, FIRST)
        return {"tamper": self._config.tamper_weight * loss}

    def _retain_loss(self, place: Place, piece: Piece) -> dict[str, torch.Tensor]:
        last = self._segment.last
        states = self._segment.run(piece.caught, (last,))[last][piece.real]
        loss = matching_loss(states, piece.base, piece.real_weights, place.sizes.retain)
        return {"retain": self._config.retain_weight * loss}


def _reply_loss(batch: Batch, whole: Batch, logits: torch.Tensor, first: float) -> torch.Tensor:
    """The supervised loss of a batch's replies from the logits `[rows, tokens, vocabulary]`.

    It is divided by the weights of the `whole` batch that `batch` is a piece of, or the twin's: a
    wanted reply is as long behind either prompt.
    """
    at = batch.reply()
    weights, told = batch.weights(at, first), batch.told()
    size = whole.weights(whole.reply(), first).sum()
    at_rows, positions = (one.to(logits.device) for one in at)
    return supervised_loss(
        logits[at_rows, positions],
        told.to(logits.device),
        weights.to(logits.device),
        size.to(logits.device),
    )
