"""Ctrl-C that gets lost: some libraries catch every exception while they are imported."""

from __future__ import annotations

import signal
from types import FrameType

_received = False


def note_interrupts() -> None:
    """Note Ctrl-C from now on; it raises KeyboardInterrupt as before."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _note)


def raise_lost() -> None:
    """Raise the KeyboardInterrupt again that has not ended the command.

    Raises:
        KeyboardInterrupt: there was one.
    """
    if _received:
        raise KeyboardInterrupt


def _note(number: int, frame: FrameType | None) -> None:
    global _received
    _received = True
    signal.default_int_handler(number, frame)
