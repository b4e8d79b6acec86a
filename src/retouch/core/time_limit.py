"""A time limit for what comes from elsewhere: chat templates and patterns."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_REPEATED = 0.1  # seconds; an exception that is raised in a destructor is lost


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

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, _REPEATED)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
