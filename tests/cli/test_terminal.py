"""What a terminal would obey is shown instead: texts of models, concepts and files."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from retouch.cli import output
from retouch.cli.progress import EditProgress
from retouch.core.formatting import visible
from retouch.core.serialization import to_json
from retouch.core.types import StageEvent

HOSTILE = (
    "\x1b[2J\x1b[1;31mred",  # clears the screen, and colours
    "\x1b]52;c;ZXZpbA==\x07",  # writes to the clipboard
    "\x1b]0;title\x07",
    "\x9b31mred",  # the same in one character
    "over\rwritten\x08",
    "\u202egnp.exe",  # shown from right to left
)


def is_safe(text: str) -> bool:
    return not any(ord(one) < 32 and one not in "\n\t" for one in text) and not any(
        one in text for one in "\x7f\x9b\u202e"
    )


@pytest.mark.parametrize("text", HOSTILE)
def test_control_characters_become_visible(text: str) -> None:
    assert not is_safe(text)
    assert is_safe(visible(text))
    assert len(visible(text)) == len(text)


def test_ordinary_text_stays_as_it_is() -> None:
    text = "Ünïcode 漢字 👍🏽\n\tand a tab"
    assert visible(text) == text


@pytest.mark.parametrize("text", HOSTILE)
def test_every_way_of_printing_is_safe(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    console = output.console()
    console.print(text)
    console.print(output.plain(("head",), [(text,)]))
    console.print(output.side_by_side(text, text))
    console.print(output.styled(text, (text, "bold")))
    output.echo(text)
    output.echo(text, err=True)
    output.write_json({"text": text}, as_json=True)
    captured = capsys.readouterr()
    assert is_safe(captured.out)
    assert is_safe(captured.err)
    assert json.loads(to_json(text)) == text


def test_the_progress_is_safe() -> None:
    stream = io.StringIO()
    with EditProgress(Console(file=stream)) as progress:
        for text in HOSTILE:
            progress(StageEvent("load", text))
    assert is_safe(stream.getvalue())
