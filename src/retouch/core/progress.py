"""The default display of progress: bars by tqdm, and messages to the logger `retouch`."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from retouch.core.formatting import visible
from retouch.core.types import Event, OnEvent, RoundEvent

logger = logging.getLogger("retouch")


class TqdmProgress:
    """An `OnEvent` that shows bars of the stages and logs what they report.

    Details are logged at level INFO, one line for each. Bars appear in notebooks and terminals
    (`tqdm.auto`); set `TQDM_DISABLE=1` for none.
    """

    def __init__(self) -> None:
        self._bar: Any = None
        self._name = self._logged = ""

    def __call__(self, event: Event) -> None:
        """Show an event."""
        if isinstance(event, RoundEvent):
            status = f"drift {event.drift:.4f}, validation {event.validation_score:.3f}"
            logger.info("round %d of %d: %s", event.round, event.rounds, status)
            self._show("train: rounds", event.round, event.rounds, status)
            return
        name = visible(": ".join(filter(None, (event.stage, event.detail))))
        if event.detail and event.detail != self._logged:
            self._logged = event.detail
            logger.info(name)
        self._show(name, event.done, event.total, "")

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _show(self, name: str, done: int, total: int, status: str) -> None:
        if name != self._name or not total:
            self.close()
        self._name = name
        if not total:
            return
        if self._bar is None:
            from tqdm.auto import tqdm

            self._bar = tqdm(total=total, desc=name, leave=False)
        self._bar.total = total
        self._bar.set_postfix_str(status, refresh=False)
        self._bar.update(done - self._bar.n)
        if done >= total:
            self.close()


@contextmanager
def displayed(on_event: OnEvent | None, resume_hint: str = "") -> Iterator[OnEvent]:
    """Provide the caller's `on_event`, or the default display, which is removed at the end.

    After Ctrl-C the default display logs `resume_hint`.
    """
    if on_event is not None:
        yield on_event
        return
    display = TqdmProgress()
    try:
        yield display
    except KeyboardInterrupt:
        logger.warning("Interrupted. %s", resume_hint)
        raise
    finally:
        display.close()
