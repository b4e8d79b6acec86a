"""The pieces that batches are cut in, with all that stays the same of them through an edit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from retouch.concepts.render import Rendered
from retouch.core.config import EditConfig
from retouch.editing.losses import matching_size
from retouch.models import ranks
from retouch.models.segment import Call, Caught, Segment
from retouch.models.store import Get, StateStore
from retouch.representations.batch import Batch, make_batches

States = dict[int, torch.Tensor]
At = tuple[torch.Tensor, torch.Tensor]


@dataclass
class Sizes:
    """What the losses of a batch are divided by, the same in each of its pieces.

    Attributes:
        early: the positions that the discriminators read.
        pair: per tap `losses.matching_size` of the twins' states.
        retain: the same of the base's states.
    """

    early: int
    pair: dict[int, torch.Tensor] = field(default_factory=dict)
    retain: torch.Tensor | None = None

    def add(self, pair: States, retain: torch.Tensor | None, share: float) -> None:
        """Take in a piece."""
        for tap, size in pair.items():
            self.pair[tap] = self.pair[tap] + share * size if tap in self.pair else share * size
        if retain is not None:
            before = 0.0 if self.retain is None else self.retain
            self.retain = before + share * retain

    def tensors(self) -> list[torch.Tensor]:
        """What other processes add to."""
        return [*self.pair.values(), *([] if self.retain is None else [self.retain])]


@dataclass(frozen=True)
class Piece:
    """Rows of a batch that run at once: all of them, unless they are shared out or are too many.

    Positions, weights and states are on the device.

    Attributes:
        batch: its rows.
        twin: the wanted runs of its rows; None without pairs.
        idle: whether its rows are another process's, and it runs to keep step alone.
        early: row and position of the first states that predict a reply token, which the
            discriminators read.
        matched: the same of every state that has one in the twin's run.
        matched_weights: of these `[n]`.
        real: `[rows, tokens]`, where there is a token and no padding.
        real_weights: of these `[m]`; only for the retain set.
    """

    batch: Batch
    twin: Batch | None
    idle: bool
    early: At
    matched: At
    matched_weights: torch.Tensor
    real: torch.Tensor
    real_weights: torch.Tensor | None
    _caught: Get
    _wanted: Get
    _base: Get

    @property
    def caught(self) -> Caught:
        """The segment's input."""
        hidden, calls = self._caught()
        return Caught(hidden, tuple(Call(rest, named) for rest, named in calls))

    @property
    def wanted(self) -> States:
        """Per tap the twins' states at `matched`, `[n, hidden]`; empty without pairs."""
        states: States = self._wanted()
        return states

    @property
    def base(self) -> torch.Tensor:
        """The frozen base's output of the segment at every real token `[m, hidden]`."""
        states: torch.Tensor = self._base()
        return states


@dataclass(frozen=True)
class Seen:
    """What a piece's rows look like to the discriminators.

    Attributes:
        batch: the rows.
        idle: whether they are another process's.
        early: row and position of the states that are read.
        states: per tap the outputs `[rows, tokens, hidden]`.
    """

    batch: Batch
    idle: bool
    early: At
    states: States


@dataclass
class Place:
    """One batch on the board: the rows of a step.

    Attributes:
        batch: its rows, those of other processes among them.
        pieces: those of this process, as many as every other one has.
        sizes: what its losses are divided by.
    """

    batch: Batch
    pieces: list[Piece]
    sizes: Sizes


class Cutter:
    """Cuts rows into batches, and batches into pieces, as the base model runs them."""

    def __init__(
        self,
        segment: Segment,
        taps: tuple[int, ...],
        config: EditConfig,
        store: StateStore,
        device: torch.device,
        pad: int,
    ) -> None:
        self._segment, self._taps, self._config = segment, taps, config
        self._store, self._device, self._pad = store, device, pad

    def lay(
        self,
        rows: Sequence[Rendered],
        at_once: int,
        twins: Sequence[Rendered] = (),
        hold: bool = False,
    ) -> list[Place]:
        """The rows in batches, in pieces of at most `at_once` rows, kept for the whole edit.

        Args:
            rows: tokenized, with replies.
            at_once: how many run at a time.
            twins: the wanted run of each row; none without pairs.
            hold: whether the base's states are kept, to hold the rows there.
        """
        places = list(self._places(rows, at_once, twins, hold))
        # One message for all batches: what the losses of a whole batch are divided by.
        ranks.add_up([size for place in places for size in place.sizes.tensors()])
        return places

    def pass_by(self, rows: Sequence[Rendered], at_once: int) -> Iterator[Seen]:
        """The base's states of rows in pieces as `lay` cuts them; nothing is kept."""
        positions = self._config.reply_positions
        for batch in make_batches(rows, self._config.batch, self._pad):
            for chosen, idle in _cut(len(batch.index), at_once):
                part = batch.part(chosen)
                states = self._segment.read(part.ids, self._taps)
                yield Seen(part, idle, _on(self._device, part.reply(positions)), states)

    def look_at(self, places: Iterable[Place]) -> Iterator[Seen]:
        """The states of laid rows as the adapter now makes them."""
        for piece in (piece for place in places for piece in place.pieces):
            yield Seen(piece.batch, piece.idle, piece.early, self.run(piece.caught))

    def _places(
        self,
        rows: Sequence[Rendered],
        at_once: int,
        twins: Sequence[Rendered],
        hold: bool,
    ) -> Iterator[Place]:
        for batch in make_batches(rows, self._config.batch, self._pad):
            twin = batch.twin(twins, self._pad) if twins else None
            sizes = Sizes(early=len(batch.reply(self._config.reply_positions)[0]))
            place = Place(batch, [], sizes)
            for chosen, idle in _cut(len(batch.index), at_once):
                other = twin.part(chosen) if twin is not None else None
                piece = self._piece(batch.part(chosen), other, idle, hold, sizes)
                place.pieces.append(piece)
            yield place

    @torch.no_grad()
    def run(self, caught: Caught) -> States:
        """The states that are read of the segment, by block."""
        return self._segment.run(caught, (*self._taps, self._segment.last))

    @torch.no_grad()
    def _piece(
        self,
        batch: Batch,
        twin: Batch | None,
        idle: bool,
        hold: bool,
        sizes: Sizes,
    ) -> Piece:
        config, device, keep = self._config, self._device, self._store.keep
        caught = self._segment.catch(batch.ids)
        matched, wanted, base, real_weights = batch.reply(), {}, None, None
        if twin is not None:
            states = self._segment.read(twin.ids, self._taps)
            shared = batch.shared(twin) if config.match_prompt else ()
            matched, at = batch.reply(before=shared), twin.reply(before=shared)
            wanted = {tap: states[tap][at] for tap in self._taps}
        weights = batch.weights(matched, config.first_weight).to(device)
        real = batch.real()
        if hold:
            base = self.run(caught)[self._segment.last][real]
            every = torch.ones(real.shape)
            every[batch.reply()] = config.retain_reply_weight
            real_weights = every[real].to(device)
        sizes.add(
            {tap: matching_size(states, weights) for tap, states in wanted.items()},
            None if base is None else matching_size(base, real_weights),
            0.0 if idle else 1.0,  # another process counts the rows of an idle piece
        )
        return Piece(
            batch,
            twin,
            idle,
            early=_on(device, batch.reply(config.reply_positions)),
            matched=_on(device, matched),
            matched_weights=weights,
            real=real.to(device),
            real_weights=real_weights,
            _caught=keep((caught.hidden, [(call.rest, call.named) for call in caught.calls])),
            _wanted=keep(wanted),
            _base=keep(base),
        )


def _cut(rows: int, at_once: int) -> Iterator[tuple[list[int], bool]]:
    """The pieces of a batch for this process: numbers of rows, and whether the piece is idle.

    Every process gets as many pieces as any other, since those that share a model out between them
    must run it together.
    """
    mine = list(ranks.mine(range(rows)))
    most = -(-rows // ranks.count())
    for begin in range(0, most, at_once):
        chosen = mine[begin : begin + at_once]
        yield (chosen, False) if chosen else ([0], True)


def _on(device: torch.device, at: At) -> At:
    rows, positions = at
    return rows.to(device), positions.to(device)
