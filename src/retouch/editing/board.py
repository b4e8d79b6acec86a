"""The board of the game: the rows of an edit, run once through what never changes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import torch

from retouch.concepts.render import Rendered
from retouch.core.config import EditConfig
from retouch.core.errors import ModelError
from retouch.editing.pieces import Cutter, Place, States
from retouch.editing.rows import EditRows
from retouch.models import ranks
from retouch.models.load import LoadedModel
from retouch.models.memory import give_back, ran_out
from retouch.models.segment import Segment
from retouch.models.store import StateStore
from retouch.representations.batch import Batch


@dataclass(frozen=True)
class Pool:
    """States `[n, hidden]` by tap that discriminators are to tell apart."""

    wanted: States
    unwanted: States


class Board:
    """All batches of an edit, prepared with the base model.

    Attributes:
        at_once: the rows that run at once; halved when memory runs out.
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
        self.at_once = min(config.at_once or config.batch, config.batch)
        self.groups = _two_groups(rows)
        # The last fifth of the rows is what the discriminators are tested on, never taught.
        self._seen = set(range(_taught(len(rows.source))))
        self._unseen = set(range(len(self._seen), len(rows.source)))
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
        taught = _taught(len(rows.target))
        target = self._passing(rows.target)
        seen = _rows_of(rows.target, range(taught), self._positions)
        self.target_seen = {tap: states[:seen] for tap, states in target.items()}
        self.target_unseen = {tap: states[seen:] for tap, states in target.items()}
        shown = [row for row, bad in zip(rows.hold, rows.unwanted, strict=True) if bad]
        none = {tap: states[:0] for tap, states in self.target_seen.items()}
        self.hold_shown = self._passing(shown) if shown else none

    @property
    def _positions(self) -> int:
        return self._config.reply_positions

    def _passing(self, rows: Sequence[Rendered]) -> States:
        """The early states of rows that are read once and not kept."""
        places = self._cutter.pass_by(rows, self.at_once)
        return self._early(rows, places, range(len(rows)))

    def _early(
        self, rows: Sequence[Rendered], places: Iterable[Place], only: Collection[int]
    ) -> States:
        """Per tap the states `[n, hidden]` that the discriminators read, in the rows' order.

        Every process runs its own rows, and has those of the others afterwards.
        """
        begins = _begins(rows, only, self._positions)
        total = _rows_of(rows, only, self._positions)
        found: States = {}
        for piece in (piece for place in places for piece in place.pieces):
            states = self._cutter.run(piece.caught)
            to, of = _slots(piece.batch, begins, self._positions)
            for tap in self._taps:
                read = states[tap][piece.early]
                if tap not in found:
                    found[tap] = read.new_zeros(total, read.shape[-1])
                if not piece.idle:
                    found[tap][to.to(read.device)] = read[of.to(read.device)]
        ranks.add_up(found.values())
        return found

    def pools(self) -> tuple[Pool, Pool]:
        """What the discriminators tell apart as the present adapters make it: to learn, to test.

        The states of the target against those of the source rows and of what else is unwanted; or,
        where a gap between two groups is to close, the source rows of one group against the other.
        """
        rows = self._rows.source
        if self.groups is not None:
            learn, test = (
                Pool(*(self._early(rows, self.source, part & group) for group in self.groups))
                for part in (self._seen, self._unseen)
            )
            return learn, test
        seen = self._early(rows, self.source, self._seen)
        unwanted = {t: torch.cat([seen[t], self.hold_shown[t]]) for t in self._taps}
        unseen = self._early(rows, self.source, self._unseen)
        return Pool(self.target_seen, unwanted), Pool(self.target_unseen, unseen)


def _begins(rows: Sequence[Rendered], only: Collection[int], positions: int) -> dict[int, int]:
    """Where each row's early states begin among those of the rows in `only`, by its number."""
    begins, total = {}, 0
    for index in sorted(only):
        begins[index], total = total, total + _rows_of(rows, [index], positions)
    return begins


def _rows_of(rows: Sequence[Rendered], only: Collection[int], positions: int) -> int:
    """How many early states the rows in `only` have."""
    return sum(min(positions, len(rows[i].ids) - rows[i].start) for i in only)


def _slots(
    batch: Batch, begins: dict[int, int], positions: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the early states of a batch's rows go `[n]`, and which of them these are `[n]`."""
    to, of, seen = [], [], dict.fromkeys(batch.index, 0)
    for number, row in enumerate(batch.reply(positions)[0].tolist()):
        index = batch.index[row]
        if index in begins:
            to.append(begins[index] + seen[index])
            of.append(number)
            seen[index] += 1
    return torch.tensor(to, dtype=torch.long), torch.tensor(of, dtype=torch.long)


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
