"""What an edit shows while it runs: its stages, and the state of the game after every round."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
from rich.text import Text

from retouch.core.types import Event, RoundEvent, StageEvent

HEADER = f"{'round':>7} {'discriminator':>14} {'validation_score':>10} {'drift':>9}"


class EditProgress:
    """Shows events as they come. Use it as a context manager, and as the `on_event` of an edit.

    On a terminal a bar shows how far the current stage is; elsewhere there are plain lines alone.
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
                console=console,
                transient=True,
            )
            self._task = self._bar.add_task("", total=None, visible=False)
        self._last = ("", "")
        self._header_shown = False
        self._began = time.monotonic()

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
            self._round(event)
        else:
            self._stage(event)

    def _stage(self, event: StageEvent) -> None:
        # A stage that counts says the same sentence at every step: it is a line once, then a bar.
        if event.detail and (event.stage, event.detail) != self._last:
            self._last = (event.stage, event.detail)
            self._header_shown = False
            line = Text(f"{event.stage:>8}  ", style="cyan")
            line.append(event.detail, style="default")
            line.append(f"  {time.monotonic() - self._began:.0f} s", style="dim")
            self.console.print(line, soft_wrap=not self.console.is_terminal)
        if self._bar:
            self._bar.update(
                self._task,
                description=escape(event.stage),
                completed=event.done,
                total=event.total or None,
                visible=event.total > 0 and event.done < event.total,
            )

    def _round(self, event: RoundEvent) -> None:
        if not self._header_shown:
            self._header_shown = True
            self.console.print(Text(f"{'':10}{HEADER}", style="dim"))
        accuracy = 100 * event.discriminator_accuracy
        line = Text(
            f"{'':10}{event.round:>3}/{event.rounds:<3} {accuracy:>12.1f} %"
            f" {event.validation_score:>10.3f} {event.drift:>9.4f}"
        )
        if event.best:
            line.append("  best", style="green")
        self.console.print(line)
        if self._bar:
            self._bar.update(
                self._task,
                description="train",
                completed=event.round,
                total=event.rounds,
                visible=event.round < event.rounds,
            )
