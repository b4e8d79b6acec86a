"""The command line as a whole: help, errors, start-up time and output streams."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import typer

import retouch
from helpers.command_line import call, error_of
from retouch.cli import demo
from retouch.cli.app import app
from retouch.core.errors import (
    ConfigError,
    DataError,
    DivergedError,
    ModelError,
    RefusedError,
    RetouchError,
    RunError,
)

BANNED = re.compile(
    r"\b(rows?|twins?|opponents?|guard|repl(y|ies)|wanted|unwanted|blocks?|stress|own|hold"
    r"|held|anew|foresee\w*|compose|taps?|tamper\w*)\b",
    re.IGNORECASE,
)
ALLOWED = ("tokenizer's own", "check your own")


def commands(
    group: Any = None, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any]]:
    group = group or typer.main.get_command(app)
    yield path, group
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, (*path, name))


COMMANDS = dict(commands())


def test_the_commands_are_found() -> None:
    assert len(COMMANDS) > 12
    assert {("edit",), ("robustness",), ("merge",), ("tune",), ("concept", "check")} <= set(
        COMMANDS
    )


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_and_option_has_help_in_plain_words(path: tuple[str, ...]) -> None:
    result = call(*path, "--help")
    assert result.exit_code == 0, result.output
    assert "Usage:" in result.output
    text = result.output
    for metavar in ("[ARGS]...", "{RUN}...", "N,...", "X,...", "NAME,...", "OLD=NEW,..."):
        text = text.replace(metavar, "")
    assert "..." not in text  # nothing is cut short
    for word in ALLOWED:
        text = text.replace(word, "")
    assert not BANNED.search(text), BANNED.search(text)
    for parameter in COMMANDS[path].params:
        assert getattr(parameter, "help", None), f"{parameter.name} has no help"


def test_every_path_option_has_both_names() -> None:
    for path, command in COMMANDS.items():
        for parameter in command.params:
            if "--out" in parameter.opts:
                assert {"--output-dir", "--output-file"} & set(parameter.opts), path


def test_version() -> None:
    assert call("--version").output == f"retouch {retouch.__version__}\n"


def test_help_imports_nothing_heavy_and_is_fast() -> None:
    code = (
        "import sys, time\n"
        "sys.argv = ['retouch', '--help']\n"
        "from retouch.cli.app import main\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "heavy = {'torch', 'transformers', 'peft', 'numpy', 'matplotlib', 'jinja2', 'rich'}\n"
        "print('heavy:', sorted(heavy & set(sys.modules)))\n"
        "print(time.process_time())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "heavy: []" in done.stdout
    # CPU seconds, since a busy machine is not a slow program. The limit of the product is half a
    # second, and it takes about a quarter here.
    assert float(done.stdout.split()[-1]) < 1


def test_libraries_that_warn_on_import_are_imported_after_warnings_are_off() -> None:
    # PEFT imports bitsandbytes, which warns that an optional package is missing.
    code = (
        "import sys\n"
        "import retouch.pipeline, retouch.preflight.check, retouch.comparison.compare\n"
        "import retouch.comparison.parallel, retouch.evaluation.robustness, retouch.merging\n"
        "print('imported:', sorted({'peft', 'bitsandbytes'} & set(sys.modules)))\n"
        "from retouch.cli.loading import quiet_libraries\n"
        "quiet_libraries()\n"
        "import peft\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "imported: []\n"
    assert done.stderr == ""


@pytest.mark.parametrize(
    "kind",
    [ConfigError, DataError, ModelError, RunError, DivergedError, RefusedError],
)
def test_an_error_has_the_exit_code_of_its_kind(
    kind: type[RetouchError], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Any) -> None:
        raise kind("It failed.", "Try again.")

    monkeypatch.setattr(demo, "move_aside", fail)
    message = error_of(call("demo"), kind.exit_code)
    assert message == "Error: It failed. Try again.\n"


def test_an_unknown_option_suggests_a_known_one() -> None:
    result = call("edit", "pocket", "--leaning-rate", "1")
    assert result.exit_code == 2
    assert "--learning-rate" in result.stderr


def test_an_unknown_command_suggests_a_known_one() -> None:
    result = call("evalute")
    assert result.exit_code == 2
    assert "evaluate" in result.stderr


def test_a_closed_pipe_causes_no_error_message() -> None:
    code = "from retouch.cli.app import main; main()"
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-c", code, "concept", "list"], stdout=writing, stderr=subprocess.PIPE
    )
    os.close(writing)
    assert done.stderr == b""


def test_the_public_names_are_imported_on_first_use() -> None:
    code = (
        "import sys, retouch\n"
        "assert 'torch' not in sys.modules\n"
        "assert retouch.Concept.__name__ == 'Concept'\n"
        "assert set(retouch.__all__) <= set(dir(retouch))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="nothing"):
        _ = retouch.nothing
