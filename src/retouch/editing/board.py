"""The board of the game: the rows of an edit, run once through what never changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from retouch.concepts.render import Rendered
from retouch.editing.rows import EditRows
from retouch.models.load import LoadedModel
from retouch.models.segment import Caught, Segment
from retouch.representations.batch import Batch, make_batches

States = dict[int, torch.Tensor]


@dataclass(frozen=True)
class Place:
    """One batch on the board.

    Attributes:
        batch: its rows.
        caught: the segment's input.
        reply: row and position of every state that predicts a reply token.
        early: the same for the first few, which the discriminators read.
        wanted: per tap the twins' states at `reply`, `[n, hidden]`; empty without pairs.
        base: the frozen base's output of the segment at every real token `[m, hidden]`; only for
            the retain set.
    """

    batch: Batch
    caught: Caught
    reply: tuple[torch.Tensor, torch.Tensor]
    early: tuple[torch.Tensor, torch.Tensor]
    wanted: States
    base: torch.Tensor | None


class Board:
    """All batches of an edit, prepared with the base model (no adapter may be attached yet)."""

    def __init__(
        self,
        loaded: LoadedModel,
        rows: EditRows,
        segment: Segment,
        taps: tuple[int, ...],
        size: int,
        positions: int,
    ) -> None:
        self._segment, self._taps = segment, taps
        self._size, self._positions = size, positions
        self._pad = int(loaded.tokenizer.pad_token_id)
        self.source = self._lay(rows.source, twins=rows.twins)
        self.hold = self._lay(rows.hold, hold=True)
        # The last fifth of the rows is what the discriminators are tested on, never taught.
        self._seen = range(_taught(len(rows.source)))
        self._unseen = range(len(self._seen), len(rows.source))
        target, taught = self._lay(rows.target), _taught(len(rows.target))
        self.target_seen = self._early(target, range(taught))
        self.target_unseen = self._early(target, range(taught, len(rows.target)))
        shown = [row for row, bad in zip(rows.hold, rows.unwanted, strict=True) if bad]
        some = self._early(self._lay(shown), range(len(shown)))
        self.hold_shown = some if shown else {t: s[:0] for t, s in self.target_seen.items()}

    def _lay(
        self, rows: Sequence[Rendered], twins: Sequence[Rendered] = (), hold: bool = False
    ) -> list[Place]:
        places = []
        for batch in make_batches(rows, self._size, self._pad):
            caught = self._segment.catch(batch.ids)
            wanted, base = {}, None
            if twins:
                twin = batch.twin(twins, self._pad)
                states = self._run(self._segment.catch(twin.ids))
                at = twin.reply()
                wanted = {tap: states[tap][at] for tap in self._taps}
            if hold:
                base = self._run(caught)[self._segment.last][batch.real()]
            places.append(
                Place(batch, caught, batch.reply(), batch.reply(self._positions), wanted, base)
            )
        return places

    @torch.no_grad()
    def _run(self, caught: Caught) -> States:
        return self._segment.run(caught, (*self._taps, self._segment.last))

    def _early(self, places: list[Place], only: range) -> States:
        """Per tap the states `[n, hidden]` that the discriminators read, in the rows' order."""
        found: dict[int, list[tuple[int, torch.Tensor]]] = {tap: [] for tap in self._taps}
        for place in places:
            states, (rows, at) = self._run(place.caught), place.early
            for tap in self._taps:
                read = states[tap][rows, at]
                for row, index in enumerate(place.batch.index):
                    if index in only:
                        found[tap].append((index, read[rows == row]))
        return {
            tap: torch.cat([part for _, part in sorted(parts, key=lambda p: p[0])])
            if parts
            else torch.empty(0, 0)
            for tap, parts in found.items()
        }

    def source_states(self) -> tuple[States, States]:
        """The source rows' states as the present adapters make them: taught rows, unseen rows."""
        return self._early(self.source, self._seen), self._early(self.source, self._unseen)


def _taught(rows: int) -> int:
    return max(1, rows * 4 // 5) if rows > 1 else rows
