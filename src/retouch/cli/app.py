"""The command line: all commands, and errors as one message and an exit code."""

from __future__ import annotations

import errno
import os
import re
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from retouch import __version__
from retouch.cli import (
    chat,
    compare,
    concept,
    demo,
    doctor,
    edit,
    evaluate,
    export,
    merge,
    output,
    robustness,
    tune,
)
from retouch.cli.options import FLAGS, Command, flags_of
from retouch.core.errors import ModelError, RetouchError, RunError, reports_no_memory, shorten
from retouch.core.options import RENAMED
from retouch.core.process import launched_rank

_RENAMED_FLAGS = {
    **{f"--{old.replace('_', '-')}": FLAGS[path] for old, path in RENAMED.items()},
    "--questions": "--attacks",
    "--keep": "--save",
    "--once": "--prompt",
}


NO_MEMORY = (
    "Error: The memory is exhausted. Set a smaller `--micro-batch-size` or `--activation-cache`, "
    "or take a smaller model. What was written is valid: an edit continues with `--resume`."
)
NOT_WRITTEN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
# What a path can be at fault for, wherever it is used first.
UNUSABLE = (
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR),
    *(errno.EACCES, errno.EPERM, errno.EROFS),
)


class Commands(TyperGroup):
    """The group of all commands, which shows the errors of every command."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command; an error that the user can fix is shown without a traceback."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except BrokenPipeError:
            # The reader of our output has closed it.
            _discard_output()
            raise typer.Exit(1) from None
        except RetouchError as error:
            command = self.get_command(ctx, ctx.invoked_subcommand)
            text = _with_flags(error, getattr(command, "params", ()))
            message, exit_code = f"Error: {text}", error.exit_code
        except KeyboardInterrupt as error:
            message, exit_code = str(error) or "Interrupted.", 130
        except Exception as error:
            message, exit_code = _describe(error)
            if not message:
                raise
        if launched_rank() == 0:  # all processes raise the same error
            output.echo(message, err=True)
        raise typer.Exit(exit_code)


def _describe(error: Exception) -> tuple[str, int]:
    """The message and the exit code for an error of a library; no message for a fault of ours."""
    if reports_no_memory(error):
        return NO_MEMORY, ModelError.exit_code
    if isinstance(error, OSError) and error.errno in NOT_WRITTEN:
        _discard_output()
        return f"Error: The output cannot be written: {error.strerror}.", RunError.exit_code
    if isinstance(error, OSError) and error.errno in UNUSABLE and error.filename:
        return f"Error: {shorten(str(error.filename))} cannot be used: {error.strerror}.", 2
    return _renamed(error), 2


def _discard_output() -> None:
    """Write to nowhere from now on, so that the interpreter's last flush does not fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _with_flags(error: RetouchError, parameters: Any) -> str:
    """The error's text with flags in place of the fields; a configuration file's keeps its keys."""
    text = str(error)
    if text.startswith("In ") and not text.startswith("In the options"):
        return text
    flags = flags_of(parameters)
    return re.sub(r"`([\w.]+)`", lambda match: f"`{flags.get(match[1], match[1])}`", text)


def _renamed(error: Any) -> str:
    """The message for an option of an earlier version; empty for any other error."""
    old = getattr(error, "option_name", "").replace("_", "-")
    new = _RENAMED_FLAGS.get(old)
    known = new and any(new in parameter.opts for parameter in error.ctx.command.params)
    return f"Error: `{old}` was renamed: use `{new}`." if known else ""


app = typer.Typer(
    name="retouch",
    cls=Commands,
    help="Edit one concept inside an open language model and leave the rest as it was.",
    epilog="To begin: retouch demo",
    no_args_is_help=True,
    add_completion=False,
    # Plain help: no long option is cut short, and rich need not be imported for it.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={
        "help_option_names": ["-h", "--help"],
        # `--batch_size` is `--batch-size`.
        "token_normalize_func": lambda token: token.replace("_", "-"),
    },
)


def _add(function: Any, short_help: str, *, bare_help: bool = True, **options: Any) -> None:
    options |= {"cls": Command, "short_help": short_help, "no_args_is_help": bare_help}
    app.command(**options)(function)


EPILOG = "Options override --config, which overrides the concept's tuned settings."
_add(demo.demo, "Edit the built-in model, or smollm2, from end to end.", bare_help=False)
_add(edit.edit, "Raise or lower one concept inside a model.", epilog=EPILOG)
_add(doctor.doctor, "Check an edit and estimate its memory and time before it runs.")
_add(evaluate.evaluate, "Measure a model, or an edit against its base.", bare_help=False)
_add(robustness.robustness, "Run robustness attacks against an edited model.", bare_help=False)
_add(merge.merge, "Merge the edits of several runs into one adapter.")
_add(compare.compare, "Compare methods on the same examples.")
_add(tune.tune, "Tune a method's settings on the validation split.")
_add(chat.chat, "Chat with a model and its edit, side by side.", bare_help=False)
app.add_typer(concept.app, name="concept", short_help="List, show, check or make concepts.")
_add(export.export, "Export an adapter or a merged model with its model card.")


def _version(given: bool) -> None:
    if given:
        output.echo(f"retouch {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Edit one concept inside an open language model and leave the rest as it was."""


def main() -> None:
    """Run the command line."""
    _prepare_streams()
    try:
        app()
    except MemoryError:  # before a command was found
        output.echo(NO_MEMORY, err=True)
        sys.exit(ModelError.exit_code)


def _prepare_streams() -> None:
    """Let every text be printed: `?` for characters that an encoding lacks, and closed streams."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif getattr(stream, "errors", "") == "strict":
            stream.reconfigure(errors="replace")
