"""The progress of an edit: its stages, and the state of the training after every round."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from retouch.core.formatting import visible
from retouch.core.interrupts import raise_lost
from retouch.core.types import Event, RoundEvent, StageEvent

HEADER = f"{'':11}{'round':>7} {'discriminator':>14} {'validation':>10} {'drift':>9}"


class EditProgress(Progress):
    """Shows events; a context manager, and the `on_event` of an edit.

    On a terminal a bar shows the progress of the current stage with the time that remains;
    elsewhere there are only plain lines.
    """

    def __init__(self, console: Console) -> None:
        super().__init__(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._bar = self.add_task("", total=None, visible=False)
        self._printed = self._measured = ("", "")
        self._has_header = False
        self._start_time = time.monotonic()

    def __call__(self, event: Event) -> None:
        """Show an event.

        Raises:
            KeyboardInterrupt: a library has caught an earlier one.
        """
        raise_lost()
        if isinstance(event, RoundEvent):
            self._print_round(event)
            self._update_bar(("train", "rounds"), event.round, event.rounds)
        else:
            self._print_stage(event)
            self._update_bar((event.stage, event.detail), event.done, event.total)

    def _print_stage(self, event: StageEvent) -> None:
        # A stage that counts repeats its detail at every step: it is one line, then a bar.
        if not event.detail or (event.stage, event.detail) == self._printed:
            return
        self._printed = (event.stage, event.detail)
        self._has_header = False
        seconds = f"  {time.monotonic() - self._start_time:.0f} s"
        detail = visible(event.detail)
        line = Text.assemble((f"{event.stage:>9}  ", "cyan"), detail, (seconds, "dim"))
        self.console.print(line, soft_wrap=not self.console.is_terminal)

    def _print_round(self, event: RoundEvent) -> None:
        if not self._has_header:
            self._has_header = True
            self.console.print(Text(HEADER, style="dim"))
        line = (
            f"{'':11}{event.round:>3}/{event.rounds:<3} {100 * event.discriminator_accuracy:>12.1f}"
            f" % {event.validation_score:>10.3f} {event.drift:>9.4f}"
        )
        self.console.print(Text.assemble(line, ("  best" if event.best else "", "green")))

    def _update_bar(self, key: tuple[str, str], done: int, total: int) -> None:
        if key != self._measured:
            # The remaining time is estimated from the speed of this stage alone.
            self._measured = key
            self.reset(self._bar, total=total or None)
        self.update(
            self._bar,
            description=key[0],
            completed=done,
            total=total or None,
            visible=done < total,
        )
