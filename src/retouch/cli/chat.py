"""`retouch chat`: talk to a model, or to the base and the edited model side by side."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from retouch.cli.loading import (
    Device,
    DeviceMemory,
    Dtype,
    ModelOrRun,
    Quantized,
    Revision,
    TrustRemoteCode,
    quiet_libraries,
    resolve_base,
)
from retouch.core.types import Message

Who = Literal["base", "edited"]
HELP = "An empty line is skipped; /reset forgets the conversation, /quit (or Ctrl-D) ends it."


def chat(
    model: ModelOrRun = None,
    adapter: Annotated[
        Path | None,
        typer.Option(metavar="DIR|RUN", help="talk to the edited model beside the base model"),
    ] = None,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="a system message")] = None,
    once: Annotated[
        str | None, typer.Option(metavar="TEXT", help="answer this one prompt and stop")
    ] = None,
    tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="the longest response, in tokens")
    ] = 128,
    revision: Revision = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    quantize: Quantized = None,
    device_memory: DeviceMemory = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Chat with a model; with an adapter, base and edited answer side by side."""
    from rich.console import Console

    console = Console(highlight=False)
    folder, base = resolve_base(model, adapter, revision)
    quiet_libraries()

    from retouch.models.load import load

    editable = load(
        base.name,
        revision=base.revision,
        device=device,
        dtype=dtype,
        trust_remote_code=trust_remote_code or base.trust_remote_code,
        chat_template=base.chat_template,
        quantize=quantize or base.quantize,
        device_memory=base.device_bytes(device_memory),
        adapter=folder,
    )
    talk = Conversation(editable, system, tokens)
    if once is not None:
        _show(console, talk, once)
        return
    typed = sys.stdin.isatty() and console.is_terminal
    if typed:
        console.print(f"{base.name}{' and its edit' if folder else ''}. {HELP}", markup=False)
    while True:
        try:
            text = console.input("[bold cyan]you[/] > ") if typed else input()
        except EOFError:
            return
        command = text.strip()
        if command in ("/quit", "/exit"):
            return
        if command == "/reset":
            talk.reset()
        elif command.startswith("/"):
            typer.echo(f"There is no {command}. {HELP}", err=True)
        elif command:
            _show(console, talk, text)


@dataclass
class Conversation:
    """The turns so far, for each model its own, since each goes on from what it said itself."""

    editable: Any
    system: str | None
    tokens: int
    turns: dict[Who, list[Message]] = field(default_factory=dict)
    forgotten: bool = False

    def __post_init__(self) -> None:
        self.reset()

    @property
    def models(self) -> tuple[Who, ...]:
        """Who answers."""
        return ("base", "edited") if self.editable.edited else ("base",)

    def reset(self) -> None:
        """Forget all turns but the system message."""
        opening = [Message("system", self.system)] if self.system else []
        self.turns = {who: list(opening) for who in self.models}

    def ask(self, text: str) -> dict[Who, str]:
        """Every model's response to the next message."""
        from retouch.models.generate import generate

        responses: dict[Who, str] = {}
        self.forgotten = False
        for who in self.models:
            turns = self.turns[who]
            turns.append(Message("user", text))
            ids, room = self._fit(turns)
            if who == "edited":
                (response,) = generate(self.editable, [ids], max_new_tokens=room)
            else:
                with self.editable.base_model():
                    (response,) = generate(self.editable, [ids], max_new_tokens=room)
            turns.append(Message("assistant", response))
            responses[who] = response
        return responses

    def _fit(self, turns: list[Message]) -> tuple[list[int], int]:
        """The prompt's ids and the response's length; the oldest turns go when the model is full."""
        from retouch.concepts.chat import prompt_ids
        from retouch.core.errors import ModelError

        text_config = self.editable.model.config.get_text_config()
        context: int = getattr(text_config, "max_position_embeddings", None) or 1 << 30
        first = 1 if self.system else 0
        while True:
            ids = prompt_ids(self.editable.tokenizer, turns)
            # A response may be cut short, but not to less than a few words.
            if len(ids) + min(self.tokens, 16) <= context:
                return ids, min(self.tokens, context - len(ids))
            if len(turns) <= first + 1:
                turns.pop()
                raise ModelError(
                    f"The message is {len(ids)} tokens long, and the model reads {context}.",
                    "Write a shorter one.",
                )
            del turns[first : first + 2]
            self.forgotten = True


def _show(console: Any, talk: Conversation, text: str) -> None:
    from retouch.cli import tables

    responses = talk.ask(text)
    if talk.forgotten:
        typer.echo("(The oldest turns no longer fit and are forgotten.)", err=True)
    if not console.is_terminal:
        for who, response in responses.items():
            typer.echo(f"{who}: {response}" if len(responses) > 1 else response)
    elif len(responses) > 1:
        console.print(tables.side_by_side(responses["base"], responses["edited"]))
    else:
        console.print(responses["base"], markup=False)
