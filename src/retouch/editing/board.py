"""The board of the game: the rows of an edit, run once through what never changes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch

from retouch.concepts.render import Rendered
from retouch.core.config import EditConfig
from retouch.core.errors import ModelError
from retouch.editing.pieces import Cutter, Seen, States
from retouch.editing.rows import EditRows
from retouch.models import ranks
from retouch.models.footprint import activation_bytes
from retouch.models.load import LoadedModel
from retouch.models.memory import give_back, ran_out
from retouch.models.segment import Segment
from retouch.models.store import StateStore


@dataclass(frozen=True)
class Pool:
    """States `[n, hidden]` by tap that discriminators are to tell apart."""

    wanted: States
    unwanted: States


class Board:
    """All batches of an edit, prepared with the base model.

    Attributes:
        at_once: the rows that run at once: as many as a limit of the device lets, or the batch;
            halved when memory runs out.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        rows: EditRows,
        segment: Segment,
        taps: tuple[int, ...],
        config: EditConfig,
    ) -> None:
        """Run everything once.

        Raises:
            ModelError: not even one row at a time fits into memory.
        """
        self._loaded, self._rows, self._config = loaded, rows, config
        self._taps = taps
        # Where the device has a limit, half of what the weights leave is for the steps.
        limit = None if loaded.room is None else loaded.room // 2
        self._store = StateStore(loaded.device, config.cache_bytes or limit)
        pad = int(loaded.tokenizer.pad_token_id)
        self._cutter = Cutter(segment, taps, config, self._store, loaded.device, pad)
        fit = _rows_that_fit(loaded, rows, segment)
        self.at_once = min(config.at_once or config.batch, config.batch, fit or config.batch)
        self.groups = _two_groups(rows)
        # The last fifth of the rows is what the discriminators are tested on, never taught.
        self._seen = set(range(_taught(len(rows.source))))
        while not self._laid():
            self._halve()

    @property
    def kept(self) -> dict[str, int]:
        """Bytes of states that are kept, by where they are."""
        store = self._store
        return {"device": store.on_device, "memory": store.in_memory, "disk": store.on_disk}

    def lay_again(self) -> None:
        """Cut the batches in smaller pieces, since memory ran out.

        Raises:
            ModelError: not even one row at a time fits.
        """
        self._halve()
        while not self._laid():
            self._halve()

    def _halve(self) -> None:
        if self.at_once == 1 or ranks.count() > 1:  # the others would wait for this process
            raise ModelError(
                f"Memory runs out with {self.at_once} rows at once.",
                "Give a smaller --at-once, adapt fewer blocks (--layers, --taps), or load the "
                "model in fewer bits (--dtype, --quantize).",
            )
        self.at_once = (self.at_once + 1) // 2

    def _laid(self) -> bool:
        """Lay all rows; whether memory sufficed."""
        self._store.clear()
        try:
            with self._loaded.reference():
                self._lay()
        except (RuntimeError, MemoryError) as error:
            if not ran_out(error):
                raise
        else:
            return True
        # Outside of the handler, whose traceback would hold on to what was allocated.
        give_back()
        return False

    def _lay(self) -> None:
        rows, lay = self._rows, self._cutter.lay
        self.source = lay(rows.source, self.at_once, twins=rows.twins)
        self.hold = lay(rows.hold, self.at_once, hold=True)
        # Where there are pairs the source rows themselves have the wanted replies.
        learns = self._config.supervised_weight > 0 and not rows.twins
        self.taught = self.source if rows.twins else []
        if learns:
            self.taught = lay(rows.wanted, self.at_once)
        target = self._passing(rows.target)
        taught = set(range(_taught(len(rows.target))))
        self.target_seen, self.target_unseen = _parted(target, rows.target, taught, self._positions)
        shown = [row for row, bad in zip(rows.hold, rows.unwanted, strict=True) if bad]
        none = {tap: states[:0] for tap, states in self.target_seen.items()}
        self.hold_shown = self._passing(shown) if shown else none

    @property
    def _positions(self) -> int:
        return self._config.reply_positions

    def _passing(self, rows: Sequence[Rendered]) -> States:
        """The early states of rows that are read once and not kept."""
        return self._early(rows, self._cutter.pass_by(rows, self.at_once))

    def _early(self, rows: Sequence[Rendered], pieces: Iterable[Seen]) -> States:
        """Per tap the states `[n, hidden]` that the discriminators read, in the rows' order.

        Every process runs its own rows, and has those of the others afterwards.
        """
        counts = _counts(rows, self._positions)
        begins = [0, *accumulate(counts)]
        found: States = {}
        for piece in pieces:
            to = torch.tensor(
                [begins[i] + k for i in piece.batch.index for k in range(counts[i])],
                device=self._loaded.device,
            )
            for tap in self._taps:
                read = piece.states[tap][piece.early]
                if tap not in found:
                    found[tap] = read.new_zeros(begins[-1], read.shape[-1])
                if not piece.idle:
                    found[tap][to] = read
        ranks.add_up(found.values())
        return found

    def pools(self) -> tuple[Pool, Pool]:
        """What the discriminators tell apart as the present adapters make it: to learn, to test.

        The states of the target against those of the source rows and of what else is unwanted; or,
        where a gap between two groups is to close, the source rows of one group against the other.
        """
        rows, positions = self._rows.source, self._positions
        states = self._early(rows, self._cutter.look_at(self.source))
        if self.groups is not None:
            learn, test = (
                Pool(*(_parted(states, rows, part & group, positions)[0] for group in self.groups))
                for part in (self._seen, set(range(len(rows))) - self._seen)
            )
            return learn, test
        seen, unseen = _parted(states, rows, self._seen, positions)
        unwanted = {t: torch.cat([seen[t], self.hold_shown[t]]) for t in self._taps}
        return Pool(self.target_seen, unwanted), Pool(self.target_unseen, unseen)


def _rows_that_fit(loaded: LoadedModel, rows: EditRows, segment: Segment) -> int | None:
    """How many rows may run at once where the device has a limit; None where it has none.

    Half of what the weights leave is for the steps, and what autograd keeps is known within a
    factor of two. A CPU would not say that the limit is passed, and a GPU would waste a try.
    """
    if loaded.room is None:
        return None
    longest = max(len(row.ids) for row in (*rows.source, *rows.hold))
    layers = range(segment.first, segment.last + 1)
    names = loaded.layout.linears(loaded.model, layers)
    size = loaded.model.dtype.itemsize
    row = activation_bytes(loaded.model, loaded.layout, layers, names, 1, longest, size)
    return max(1, loaded.room // 4 // row)


def _counts(rows: Sequence[Rendered], positions: int) -> list[int]:
    """How many early states each row has."""
    return [min(positions, len(row.ids) - row.start) for row in rows]


def _parted(
    states: States, rows: Sequence[Rendered], chosen: Collection[int], positions: int
) -> tuple[States, States]:
    """The early states of the rows whose numbers are chosen, and those of the others."""
    inside = torch.tensor([i in chosen for i in range(len(rows))])
    inside = inside.repeat_interleave(torch.tensor(_counts(rows, positions)))
    parts = tuple(
        {tap: found[which.to(found.device)] for tap, found in states.items()}
        for which in (inside, ~inside)
    )
    return parts[0], parts[1]


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
