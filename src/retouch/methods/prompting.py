"""What is done without touching the model: nothing, a reminder, demonstrations."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from typing import Any, Literal

import yaml

from retouch.concepts.chat import prompt_ids
from retouch.concepts.concept import Concept
from retouch.core.errors import ConfigError
from retouch.core.types import Direction, Message
from retouch.methods.method import Method, Progress, Settings, tunable
from retouch.models.editable_model import EditableModel
from retouch.models.interventions import Prompting
from retouch.task.task import EditTask

Demonstration = tuple[tuple[Message, ...], str]  # the turns of a prompt, and the response to them


class NoEdit(Method):
    """The base model: what every method is compared with."""

    id = "none"
    title = "No edit"
    source = ""

    def apply(
        self, editable: EditableModel, task: EditTask, settings: Any, progress: Progress
    ) -> None:
        """Leave everything as it is."""


class ReminderSettings(Settings):
    """Which words, and where they stand."""

    phrasing: int = tunable(
        0, choices=(0, 1, 2, 3), description="which of the reminders; counted on from the first"
    )
    place: Literal["system", "around", "both"] = tunable(
        "system",
        choices=("system", "around", "both"),
        description="as a system turn, as words around the last user turn, or both",
    )


class SelfReminder(Method):
    """Remind the model of what is wanted, in words.

    Xie et al. put a reminder before the user's words and another one after them, in the user's turn
    or with the first as the system turn. The texts are in `reminders.yaml`.
    """

    id = "self-reminder"
    title = "Self-reminder"
    source = "Xie et al. 2023, Nature Machine Intelligence 5"
    settings = ReminderSettings

    def apply(
        self, editable: EditableModel, task: EditTask, settings: Any, progress: Progress
    ) -> None:
        """Put the reminder into every prompt."""
        known = reminders(task.concept, task.config.direction)
        words = known[settings.phrasing % len(known)]
        before = [] if settings.place == "around" else [Message("system", words["system"])]
        around = "{prompt}" if settings.place == "system" else words["around"]
        editable.intervene(Prompting(before, around))


def reminders(concept: Concept, direction: Direction) -> list[dict[str, str]]:
    """The phrasings for a concept and direction, each with its `system` text and words `around`.

    A concept that has none of its own gets the general ones, with its name and description.
    """
    file = resources.files("retouch.methods").joinpath("reminders.yaml")
    texts: dict[str, dict[str, list[dict[str, str]]]] = yaml.safe_load(file.read_text("utf-8"))
    if concept.name in texts:
        return texts[concept.name][direction]
    name, about = concept.name.replace("-", " "), concept.description or concept.title
    return [
        {k: v.replace("{name}", name).replace("{about}", about).strip() for k, v in one.items()}
        for one in texts["other"][direction]
    ]


class DemonstrationSettings(Settings):
    """How many demonstrations, and of what."""

    count: int = tunable(1, low=1, high=6, description="demonstrations put before the chat")
    shown: Literal["asked", "direct"] = tunable(
        "direct",
        choices=("asked", "direct"),
        description="prompts that are to change (attacked ones), or those that show how (direct)",
    )


class InContextDefense(Method):
    """Show the model a few prompts with the response that is wanted, as turns before the chat.

    Wei et al. show harmful requests that are declined; here it is whatever the direction wants.
    """

    id = "in-context-defense"
    title = "In-context defense"
    source = "Wei et al. 2023, arXiv 2310.06387"
    settings = DemonstrationSettings

    def apply(
        self, editable: EditableModel, task: EditTask, settings: Any, progress: Progress
    ) -> None:
        """Put the demonstrations before every chat.

        Raises:
            ConfigError: with them the longest row does not fit into the model's context.
        """
        known = asked_demonstrations(editable, task) if settings.shown == "asked" else []
        # Without pairs no wanted response is known to what is asked.
        chosen = (known or list(task.train.demonstrations))[: settings.count]
        prompting = Prompting(as_turns(chosen))
        _check_room(editable, task, prompting)
        editable.intervene(prompting)


def asked_demonstrations(editable: EditableModel, task: EditTask) -> list[Demonstration]:
    """The prompts that are to change with the responses that are wanted, where these are known."""
    tokenizer = editable.tokenizer
    asked = {
        tuple(prompt_ids(tokenizer, row.prompt, row.prefill)): row
        for row in task.train.source_examples
    }
    found = []
    for wanted in task.train.chosen:
        row = asked.get(wanted.ids[: wanted.start])
        if row is not None:
            response = tokenizer.decode(wanted.ids[wanted.start :], skip_special_tokens=True)
            found.append((row.prompt, f"{row.prefill} {response.strip()}".strip()))
    return found


def as_turns(demonstrations: Sequence[Demonstration]) -> list[Message]:
    """User and assistant turns; system prompts are left out, since a chat has one at most."""
    turns = []
    for prompt, response in demonstrations:
        turns += [turn for turn in prompt if turn.role != "system"]
        turns.append(Message("assistant", response))
    return turns


def _check_room(editable: EditableModel, task: EditTask, prompting: Prompting) -> None:
    """Refuse what would not fit: a model reads nonsense beyond its last position."""
    room = getattr(editable.model.config.get_text_config(), "max_position_embeddings", None)
    if room is None or not task.train.source_examples:
        return
    prompt = task.train.source_examples[0].prompt
    plain = prompt_ids(editable.tokenizer, prompt)
    added = len(prompt_ids(editable.tokenizer, prompting.rewrite(prompt))) - len(plain)
    rows = [row for part in (task.train, task.validation) for row in (*part.source, *part.hold)]
    longest = max(len(row.ids) for row in rows) + added
    if longest > room:
        raise ConfigError(
            f"With the demonstrations a chat has {longest} tokens, and the model reads {room}.",
            "Show fewer: lower `count`.",
        )
