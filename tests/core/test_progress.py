"""The default display of progress."""

from __future__ import annotations

import logging

import pytest

from retouch.core.progress import TqdmProgress, displayed
from retouch.core.types import Event, StageEvent, ignore_event


def test_the_callers_function_replaces_the_default_display() -> None:
    with displayed(ignore_event) as on_event:
        assert on_event is ignore_event
    with displayed(None) as default:
        assert isinstance(default, TqdmProgress)


def test_details_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    event: Event = StageEvent("load", "loading pocket", 1, 2)
    with caplog.at_level(logging.INFO, "retouch"), displayed(None) as on_event:
        on_event(event)
        on_event(event)
    assert [record.message for record in caplog.records] == ["load: loading pocket"]


def test_an_interrupt_logs_how_to_continue(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(KeyboardInterrupt), displayed(None, "Call again."):
        raise KeyboardInterrupt
    assert "Call again." in caplog.text
