"""The progress of an edit: its stages, and the state of the training after every round."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from retouch.core.types import Event, RoundEvent, StageEvent

HEADER = f"{'round':>7} {'discriminator':>14} {'validation':>10} {'drift':>9}"


class EditProgress:
    """Shows events; a context manager, and the `on_event` of an edit.

    On a terminal a bar shows the progress of the current stage with the time that remains;
    elsewhere there are only plain lines.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bar: Progress | None = None
        if console.is_terminal:
            self._bar = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeRemainingColumn(compact=True),
                console=console,
                transient=True,
            )
            self._task = self._bar.add_task("", total=None, visible=False)
        self._printed = ("", "")
        self._measured = ("", "")
        self._has_header = False
        self._started = time.monotonic()

    def __enter__(self) -> EditProgress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()

    def __call__(self, event: Event) -> None:
        """Show an event."""
        if isinstance(event, RoundEvent):
            self._show_round(event)
        else:
            self._show_stage(event)

    def _show_stage(self, event: StageEvent) -> None:
        # A stage that counts repeats its detail at every step: it is one line, then a bar.
        if event.detail and (event.stage, event.detail) != self._printed:
            self._printed = (event.stage, event.detail)
            self._has_header = False
            line = Text(f"{event.stage:>9}  ", style="cyan")
            line.append(event.detail, style="default")
            line.append(f"  {time.monotonic() - self._started:.0f} s", style="dim")
            self.console.print(line, soft_wrap=not self.console.is_terminal)
        self._update_bar((event.stage, event.detail), event.done, event.total)

    def _show_round(self, event: RoundEvent) -> None:
        if not self._has_header:
            self._has_header = True
            self.console.print(Text(f"{'':11}{HEADER}", style="dim"))
        accuracy = 100 * event.discriminator_accuracy
        line = Text(
            f"{'':11}{event.round:>3}/{event.rounds:<3} {accuracy:>12.1f} %"
            f" {event.validation_score:>10.3f} {event.drift:>9.4f}"
        )
        if event.best:
            line.append("  best", style="green")
        self.console.print(line)
        self._update_bar(("train", "rounds"), event.round, event.rounds)

    def _update_bar(self, key: tuple[str, str], done: int, total: int) -> None:
        if self._bar is None:
            return
        if key != self._measured:
            # The remaining time is estimated from the speed of this stage alone.
            self._measured = key
            self._bar.reset(self._task, total=total or None)
        self._bar.update(
            self._task,
            description=escape(key[0]),
            completed=done,
            total=total or None,
            visible=done < total,
        )
