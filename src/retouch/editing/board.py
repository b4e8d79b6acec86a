"""The board of the game: the rows of an edit, run once through what never changes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch

from retouch.concepts.render import Rendered
from retouch.core.config import EditConfig
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
        twin: the wanted runs of its rows; None without pairs.
        caught: the segment's input.
        reply: row and position of every state that predicts a reply token.
        early: the same for the first few, which the discriminators read.
        matched: the same for every state that has one in the twin's run.
        wanted: per tap the twins' states at `matched`, `[n, hidden]`; empty without pairs.
        base: the frozen base's output of the segment at every real token `[m, hidden]`; only for
            the retain set.
    """

    batch: Batch
    twin: Batch | None
    caught: Caught
    reply: tuple[torch.Tensor, torch.Tensor]
    early: tuple[torch.Tensor, torch.Tensor]
    matched: tuple[torch.Tensor, torch.Tensor]
    wanted: States
    base: torch.Tensor | None


@dataclass(frozen=True)
class Pool:
    """States `[n, hidden]` by tap that discriminators are to tell apart."""

    wanted: States
    unwanted: States


class Board:
    """All batches of an edit, prepared with the base model (no adapter may be attached yet)."""

    def __init__(
        self,
        loaded: LoadedModel,
        rows: EditRows,
        segment: Segment,
        taps: tuple[int, ...],
        config: EditConfig,
    ) -> None:
        self._segment, self._taps = segment, taps
        self._size, self._positions = config.batch, config.reply_positions
        self._match_prompt = config.match_prompt
        self._pad = int(loaded.tokenizer.pad_token_id)
        self.source = self._lay(rows.source, twins=rows.twins)
        self.hold = self._lay(rows.hold, hold=True)
        # Where there are pairs the source rows themselves have the wanted replies.
        learns = config.supervised_weight > 0
        self.taught = self.source if rows.twins else self._lay(rows.wanted) if learns else []
        # The last fifth of the rows is what the discriminators are tested on, never taught.
        self._seen = set(range(_taught(len(rows.source))))
        self._unseen = set(range(len(self._seen), len(rows.source)))
        self.groups = _two_groups(rows)
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
            wanted, base, matched, twin = {}, None, batch.reply(), None
            if twins:
                twin = batch.twin(twins, self._pad)
                states = self._run(self._segment.catch(twin.ids))
                shared = batch.shared(twin) if self._match_prompt else ()
                matched, at = batch.reply(before=shared), twin.reply(before=shared)
                wanted = {tap: states[tap][at] for tap in self._taps}
            if hold:
                base = self._run(caught)[self._segment.last][batch.real()]
            places.append(
                Place(
                    batch,
                    twin,
                    caught,
                    reply=batch.reply(),
                    early=batch.reply(self._positions),
                    matched=matched,
                    wanted=wanted,
                    base=base,
                )
            )
        return places

    @torch.no_grad()
    def _run(self, caught: Caught) -> States:
        return self._segment.run(caught, (*self._taps, self._segment.last))

    def _early(self, places: list[Place], only: Collection[int]) -> States:
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

    def pools(self) -> tuple[Pool, Pool]:
        """What the discriminators tell apart as the present adapters make it: to learn, to test.

        The states of the target against those of the source rows and of what else is unwanted; or,
        where a gap between two groups is to close, the source rows of one group against the other.
        """
        if self.groups is not None:
            learn, test = (
                Pool(*(self._early(self.source, part & group) for group in self.groups))
                for part in (self._seen, self._unseen)
            )
            return learn, test
        seen = self._early(self.source, self._seen)
        unwanted = {t: torch.cat([seen[t], self.hold_shown[t]]) for t in self._taps}
        unseen = self._early(self.source, self._unseen)
        return Pool(self.target_seen, unwanted), Pool(self.target_unseen, unseen)


def _two_groups(rows: EditRows) -> tuple[set[int], set[int]] | None:
    """The numbers of the source rows of the two groups between which a gap is to close."""
    if rows.gap is None or not rows.closing:
        return None
    first, second = rows.gap.groups
    numbered = list(enumerate(rows.groups))
    return {i for i, name in numbered if name == first}, {
        i for i, name in numbered if name == second
    }


def _taught(rows: int) -> int:
    return max(1, rows * 4 // 5) if rows > 1 else rows
