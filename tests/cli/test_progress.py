"""The display of progress on a terminal and in a file."""

from __future__ import annotations

import io

from rich.console import Console

from retouch.cli.progress import EditProgress
from retouch.core.types import RoundEvent, StageEvent

EVENTS = [
    StageEvent("load", "loading [bold]pocket[/]"),
    StageEvent("measure", "safety", 0, 3),
    StageEvent("measure", "safety", 1, 3),
    StageEvent("train", "training"),
    RoundEvent(1, 2, {}, 0.875, -0.25, 0.0012, True, 1.0),
    RoundEvent(2, 2, {}, 0.5, -0.5, 0.0034, False, 2.0),
]


def display(*, terminal: bool) -> str:
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=100, highlight=False)
    with EditProgress(console) as progress:
        for event in EVENTS:
            progress(event)
            progress.refresh()
    return file.getvalue()


def test_a_file_gets_one_line_per_stage_and_round() -> None:
    lines = display(terminal=False).splitlines()
    assert len(lines) == 6
    assert "loading [bold]pocket[/]" in lines[0]
    assert "safety" in lines[1]
    assert lines[3].split() == ["round", "discriminator", "validation", "drift"]
    assert lines[4].split() == ["1/2", "87.5", "%", "-0.250", "0.0012", "best"]
    assert "best" not in lines[5]
    # The columns of the rounds are below their titles.
    for title, value in (
        ("discriminator", "87.5 %"),
        ("validation", "-0.250"),
        ("drift", "0.0012"),
    ):
        assert lines[3].index(title) + len(title) == lines[4].index(value) + len(value)


def test_a_terminal_shows_a_bar_with_the_remaining_time() -> None:
    output = display(terminal=True)
    assert "1/3" in output
    assert "--:--" in output or "0:00" in output
    assert "loading [bold]pocket[/]" in output
