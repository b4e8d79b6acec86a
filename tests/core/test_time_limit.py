"""What does not end is interrupted."""

from __future__ import annotations

import re
import signal
import sys
import threading
import time

import pytest

from retouch.core.time_limit import TimeLimitError, time_limit


def test_python_code_is_interrupted() -> None:
    began = time.monotonic()
    with pytest.raises(TimeLimitError, match=r"longer than 0\.2 seconds"), time_limit(0.2):
        all(True for _ in iter(int, 1))
    assert time.monotonic() - began < 5


def test_a_regular_expression_is_interrupted() -> None:
    with pytest.raises(TimeLimitError), time_limit(0.2):
        re.search(r"(a+)+$", "a" * 60 + "b")


def test_an_interrupt_that_a_destructor_loses_is_repeated_without_a_message(
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Slow:
        def __del__(self) -> None:
            all(True for _ in iter(lambda: time.monotonic() > end, True))

    end = time.monotonic() + 0.3
    with pytest.raises(TimeLimitError), time_limit(0.1):
        work_after(Slow())
    assert capsys.readouterr().err == ""


def work_after(slow: object) -> None:
    del slow
    all(True for _ in iter(int, 1))


def test_nothing_is_left_of_it() -> None:
    before, hook = signal.getsignal(signal.SIGALRM), sys.unraisablehook
    with time_limit(0.2):
        pass
    assert signal.getsignal(signal.SIGALRM) is before
    assert sys.unraisablehook is hook
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    time.sleep(0.3)  # no late signal


def test_in_another_thread_there_is_no_limit() -> None:
    done = []

    def work() -> None:
        with time_limit(0.001):
            time.sleep(0.05)
        done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]
