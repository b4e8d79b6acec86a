"""`retouch chat`: a chat with a model, or with the base and the edited model side by side."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from typing import Annotated, Any

from retouch.cli import output
from retouch.cli.loading import quiet_libraries, resolve_base
from retouch.cli.options import LOAD, Adapter, MaxNewTokens, configured, option
from retouch.core.errors import ModelError
from retouch.core.types import Event, Message, StageEvent

HELP = "/reset starts a new conversation; /quit or Ctrl-D ends the chat."
MIN_RESPONSE = 16  # tokens that a response must have room for, unless `max_new_tokens` is less


@configured(*LOAD)
def chat(
    settings: dict[str, Any],
    adapter: Adapter = None,
    system: Annotated[str | None, option("TEXT", "the system message")] = None,
    prompt: Annotated[str | None, option("TEXT", "respond to this prompt and exit")] = None,
    max_new_tokens: MaxNewTokens = 128,
) -> None:
    """Chat with a model; with an adapter, the base and the edited model respond side by side."""
    folder, config = resolve_base(settings, adapter)
    quiet_libraries()

    from retouch.models.load import load

    def report(event: Event) -> None:
        if isinstance(event, StageEvent):
            output.echo(event.detail, err=True)

    editable = load(config.model, config.load, adapter=folder, on_event=report)
    conversation = Conversation(editable, system, max_new_tokens)
    if prompt is not None:
        _respond(conversation, prompt)
        return
    console = output.console()
    interactive = sys.stdin.isatty() and console.is_terminal
    if interactive:
        console.print(f"{config.model}{' and its edit' if folder else ''}. {HELP}")
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
            output.echo(f"Unknown command {command}. {HELP}", err=True)
        elif command:
            _respond(conversation, text)


class Conversation:
    """The turns of each model: both see the same user turns and their own responses.

    Attributes:
        turns: the turns so far, by model.
        truncated: whether the last prompt did not fit and lost its oldest turns.
    """

    def __init__(self, editable: Any, system: str | None, max_new_tokens: int) -> None:
        self.editable, self.max_new_tokens, self.truncated = editable, max_new_tokens, False
        self._opening = [Message("system", system)] if system else []
        self.reset()

    def reset(self) -> None:
        """Remove all turns except the system message."""
        models = ("base", "edited") if self.editable.edited else ("base",)
        self.turns = {name: list(self._opening) for name in models}

    def respond(self, text: str) -> dict[str, str]:
        """Add a user turn and return the response of every model.

        Raises:
            ModelError: the message alone is longer than the model's context.
        """
        from retouch.models.generate import generate

        responses = {}
        self.truncated = False
        for name, turns in self.turns.items():
            turns.append(Message("user", text))
            ids, max_new_tokens = self._fit(turns)
            with self.editable.base_model() if name == "base" else nullcontext():
                (response,) = generate(self.editable, [ids], max_new_tokens=max_new_tokens)
            turns.append(Message("assistant", response))
            responses[name] = response
        return responses

    def _fit(self, turns: list[Message]) -> tuple[list[int], int]:
        """The prompt's ids, without the oldest turns if they do not fit; the response's limit."""
        from retouch.concepts.chat import prompt_ids

        context: int = self.editable.max_length or 1 << 30
        first, needed = len(self._opening), min(self.max_new_tokens, MIN_RESPONSE)
        while len(ids := prompt_ids(self.editable.tokenizer, turns)) + needed > context:
            if len(turns) <= first + 1:
                turns.pop()
                raise ModelError(
                    f"The message has {len(ids)} tokens; the model's context has {context}.",
                    "Write a shorter one.",
                    code="message-too-long",
                )
            del turns[first : first + 2]
            self.truncated = True
        return ids, min(self.max_new_tokens, context - len(ids))


def _respond(conversation: Conversation, text: str) -> None:
    responses = conversation.respond(text)
    if conversation.truncated:
        output.echo("(The oldest turns exceeded the model's context and were removed.)", err=True)
    console = output.console()
    if not console.is_terminal:
        for name, response in responses.items():
            output.echo(f"{name}: {response}" if len(responses) > 1 else response)
    elif len(responses) > 1:
        console.print(output.side_by_side(responses["base"], responses["edited"]))
    else:
        console.print(responses["base"])
