"""`retouch chat`: a chat with a model, or with the base and the edited model side by side."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import typer

from retouch.cli.loading import quiet_libraries, resolve_base
from retouch.cli.options import LOAD, Adapter, configured
from retouch.core.types import Message

ModelName = Literal["base", "edited"]
HELP = "/reset starts a new conversation; /quit or Ctrl-D ends the chat."
MIN_RESPONSE = 16  # tokens that a response must have room for, unless `max_new_tokens` is less


@configured(*LOAD)
def chat(
    settings: dict[str, Any],
    adapter: Adapter = None,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="the system message")] = None,
    prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="respond to this prompt and exit")
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="maximum length of a response, in tokens")
    ] = 128,
) -> None:
    """Chat with a model; with an adapter, the base and the edited model respond side by side."""
    from rich.console import Console

    console = Console(highlight=False)
    folder, config = resolve_base(settings, adapter)
    quiet_libraries()

    from retouch.models.load import load

    editable = load(config.model, config.load, adapter=folder)
    conversation = Conversation(editable, system, max_new_tokens)
    if prompt is not None:
        _show(console, conversation, prompt)
        return
    interactive = sys.stdin.isatty() and console.is_terminal
    if interactive:
        console.print(f"{config.model}{' and its edit' if folder else ''}. {HELP}", markup=False)
    while True:
        try:
            text = console.input("[bold cyan]you[/] > ") if interactive else input()
        except EOFError:
            return
        command = text.strip()
        if command in ("/quit", "/exit"):
            return
        if command == "/reset":
            conversation.reset()
        elif command.startswith("/"):
            typer.echo(f"Unknown command {command}. {HELP}", err=True)
        elif command:
            _show(console, conversation, text)


@dataclass
class Conversation:
    """The turns of each model: both see the same user turns and their own responses.

    Attributes:
        editable: the model.
        system: the system message, if any.
        max_new_tokens: maximum length of a response, in tokens.
        turns: the turns so far, by model.
        truncated: whether the last prompt did not fit and lost its oldest turns.
    """

    editable: Any
    system: str | None
    max_new_tokens: int
    turns: dict[ModelName, list[Message]] = field(default_factory=dict)
    truncated: bool = False

    def __post_init__(self) -> None:
        self.reset()

    @property
    def models(self) -> tuple[ModelName, ...]:
        """The models that respond."""
        return ("base", "edited") if self.editable.edited else ("base",)

    def reset(self) -> None:
        """Remove all turns except the system message."""
        opening = [Message("system", self.system)] if self.system else []
        self.turns = {name: list(opening) for name in self.models}

    def respond(self, text: str) -> dict[ModelName, str]:
        """Add a user turn and return the response of every model.

        Raises:
            ModelError: the message alone is longer than the model's context.
        """
        from retouch.models.generate import generate

        responses: dict[ModelName, str] = {}
        self.truncated = False
        for name in self.models:
            turns = self.turns[name]
            turns.append(Message("user", text))
            ids, max_new_tokens = self._fit(turns)
            if name == "edited":
                (response,) = generate(self.editable, [ids], max_new_tokens=max_new_tokens)
            else:
                with self.editable.base_model():
                    (response,) = generate(self.editable, [ids], max_new_tokens=max_new_tokens)
            turns.append(Message("assistant", response))
            responses[name] = response
        return responses

    def _fit(self, turns: list[Message]) -> tuple[list[int], int]:
        """The prompt's token ids and the response's maximum length.

        The oldest turns are removed where the prompt exceeds the model's context.
        """
        from retouch.concepts.chat import prompt_ids
        from retouch.core.errors import ModelError

        context: int = self.editable.max_length or 1 << 30
        first = 1 if self.system else 0
        while True:
            ids = prompt_ids(self.editable.tokenizer, turns)
            if len(ids) + min(self.max_new_tokens, MIN_RESPONSE) <= context:
                return ids, min(self.max_new_tokens, context - len(ids))
            if len(turns) <= first + 1:
                turns.pop()
                raise ModelError(
                    f"The message has {len(ids)} tokens; the model's context has {context}.",
                    "Write a shorter one.",
                    code="message-too-long",
                )
            del turns[first : first + 2]
            self.truncated = True


def _show(console: Any, conversation: Conversation, text: str) -> None:
    from retouch.cli import tables

    responses = conversation.respond(text)
    if conversation.truncated:
        typer.echo("(The oldest turns exceeded the model's context and were removed.)", err=True)
    if not console.is_terminal:
        for name, response in responses.items():
            typer.echo(f"{name}: {response}" if len(responses) > 1 else response)
    elif len(responses) > 1:
        console.print(tables.side_by_side(responses["base"], responses["edited"]))
    else:
        console.print(responses["base"], markup=False)
