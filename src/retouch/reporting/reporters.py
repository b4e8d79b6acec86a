"""The reporters: files that an edit writes for people, built in or from other packages.

A reporter is added by `register_reporter`, or by an entry point of the group `retouch.reporters`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from retouch.core.errors import ConfigError
from retouch.core.plugins import find_plugins, load_plugin
from retouch.reporting.model_card import render_card
from retouch.reporting.report import FinishedEdit, render_report

ENTRY_POINTS = "retouch.reporters"
Reporter = Callable[[FinishedEdit], Mapping[str, str]]
"""Returns the text of each file by its name."""


def _card(edit: FinishedEdit) -> Mapping[str, str]:
    card = render_card(edit.config, edit.concept, edit.records, edit.provenance)
    return {"README.md": card}


def _report(edit: FinishedEdit) -> Mapping[str, str]:
    return {"report.html": render_report(**vars(edit))}


_BUILTIN: dict[str, Reporter] = {"card": _card, "report": _report}
_REGISTERED: dict[str, Reporter] = {}


def register_reporter(name: str, reporter: Reporter) -> None:
    """Add a reporter to the edits of this process.

    Raises:
        ConfigError: a built-in reporter has the name.
    """
    if name in _BUILTIN:
        raise ConfigError(
            f"`{name}` is a built-in reporter.", "Use another name.", code="reporter-name-taken"
        )
    _REGISTERED[name] = reporter


def builtin_files(edit: FinishedEdit) -> dict[str, str]:
    """The model card and the report, by file name."""
    return {name: text for report in _BUILTIN.values() for name, text in report(edit).items()}


def added_files(edit: FinishedEdit, existing: Callable[[str], bool]) -> dict[str, str]:
    """The files of registered reporters and of other packages, by file name.

    Args:
        edit: the finished edit.
        existing: whether the run directory has a file of a name.

    Raises:
        ConfigError: a reporter cannot be imported, or a file name is a path or exists already.
    """
    reporters = dict(_REGISTERED)
    for name, point in find_plugins(ENTRY_POINTS, _BUILTIN).items():
        code = "reporter-not-loaded"
        reporters[name] = load_plugin(point, "reporter", _callable, ConfigError, code)
    files: dict[str, str] = {}
    for name, reporter in reporters.items():
        for file, text in reporter(edit).items():
            if not file.strip(".") or set(file) & set("/\\\0") or file in files or existing(file):
                raise ConfigError(
                    f"The reporter `{name}` writes {file!r}, which is a path or exists already.",
                    "Return plain file names of its own.",
                    code="reporter-file",
                )
            files[file] = text
    return files


def _callable(found: Any) -> Reporter:
    if not callable(found):
        raise TypeError(f"{found!r} is not a function")
    reporter: Reporter = found
    return reporter
