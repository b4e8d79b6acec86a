"""A time limit for what comes from elsewhere: chat templates and patterns."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_REPEATED = 0.1  # seconds; an exception that is raised in a destructor is lost, and not shown


class TimeLimitError(Exception):
    """The time limit is exceeded."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Interrupt what runs in the context after a time.

    A timer's signal interrupts Python code and regular expressions. Signals reach the main thread
    alone, and Windows has no such timer: elsewhere there is no limit.

    Raises:
        TimeLimitError: the time is over.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not (in_main_thread and hasattr(signal, "setitimer")):
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeLimitError(f"it takes longer than {seconds:g} seconds")

    def report(lost: sys.UnraisableHookArgs) -> None:
        if not isinstance(lost.exc_value, TimeLimitError):
            report_before(lost)

    stop_before = signal.signal(signal.SIGALRM, stop)
    report_before, sys.unraisablehook = sys.unraisablehook, report
    signal.setitimer(signal.ITIMER_REAL, seconds, _REPEATED)
    try:
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:  # also where the signal comes just before the timer is stopped
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, stop_before)
        sys.unraisablehook = report_before
