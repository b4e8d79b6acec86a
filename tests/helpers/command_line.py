"""Calls of the command line inside a test."""

from __future__ import annotations

from typer.testing import CliRunner, Result

from retouch.cli.app import app


def call(*arguments: str, stdin: str | None = None) -> Result:
    """The result of `retouch ARGUMENTS`."""
    return CliRunner().invoke(app, list(arguments), input=stdin)


def error_of(result: Result, exit_code: int) -> str:
    """The message of a command that failed as a user is meant to see it: one line, no traceback."""
    assert result.exit_code == exit_code, result.output
    assert "Traceback" not in result.output
    assert result.stderr.startswith("Error: ")
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.stderr
