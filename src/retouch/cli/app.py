"""The commands brought together; errors become one message and an exit code."""

from __future__ import annotations

import os
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
    robustness,
    tune,
)
from retouch.core.errors import RetouchError
from retouch.core.launch import launched_rank

INTERRUPTED = 130


class Commands(TyperGroup):
    """The command group: what goes wrong in a command ends here."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; an error that the user can hint is shown without a traceback."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except RetouchError as error:
            if launched_rank() == 0:  # the others ran into the same
                typer.echo(f"Error: {error}", err=True)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            typer.echo("Interrupted.", err=True)
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            # Whoever read us has had enough; let the interpreter's last flush not complain.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None
        return result


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
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo", short_help="Edit the built-in model: begin here.")(demo.demo)
app.command(
    "edit",
    cls=edit.EditCommand,
    no_args_is_help=True,
    short_help="Raise or lower one concept inside a model.",
    epilog=edit.EPILOG,
)(edit.edit)
app.command(
    "doctor",
    no_args_is_help=True,
    short_help="Progress what an edit would take here, and what would stop it.",
)(doctor.doctor)
app.command("evaluate", short_help="Measure a model, or what an edit changed.")(evaluate.evaluate)
app.command(
    "robustness",
    short_help="Ask an edit the robustness_records attacks: attacks, training, strength.",
)(robustness.robustness)
app.command("merge", no_args_is_help=True, short_help="Add up several edits in one adapter.")(
    merge.merge
)
app.command(
    "compare", no_args_is_help=True, short_help="Hold methods against each other on the same rows."
)(compare.compare)
app.command(
    "tune", no_args_is_help=True, short_help="Find a method's settings on the validation split."
)(tune.tune)
app.command("chat", short_help="Talk to a model and its edit, side by side.")(chat.chat)
app.add_typer(concept.app, name="concept", short_help="List, show or check concepts.")
app.command(
    "export", no_args_is_help=True, short_help="Write an adapter or a merged model, with its card."
)(export.export)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"retouch {__version__}")
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
    app()
