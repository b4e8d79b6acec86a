"""Methods that leave the weights unchanged: no edit, a reminder, demonstrations."""

from __future__ import annotations

from importlib import resources
from typing import Any, Literal

import yaml

from retouch.concepts.chat import prompt_ids
from retouch.concepts.concept import Concept
from retouch.core.config import option
from retouch.core.errors import ConfigError
from retouch.core.types import Direction, Message, Progress
from retouch.methods.method import Method, MethodSettings
from retouch.models.editable_model import EditableModel
from retouch.models.interventions import Prompting
from retouch.task.task import EditTask


class NoEdit(Method):
    """The base model, which every method is compared with."""

    id = "none"
    title = "No edit"
    source = ""

    def apply(
        self, editable: EditableModel, task: EditTask, settings: Any, progress: Progress
    ) -> None:
        """Change nothing."""


class ReminderSettings(MethodSettings):
    """The phrasing of the reminder, and its position in the prompt."""

    phrasing: int = option(0, "number of the phrasing in `reminders.yaml`", choices=(0, 1, 2, 3))
    position: Literal["system", "around", "both"] = option(
        "system",
        "as a system prompt, as words around the last user turn, or both",
        choices=("system", "around", "both"),
    )


class SelfReminder(Method):
    """Add a reminder of the intended behaviour to every prompt.

    Xie et al. put a reminder before the user's words, in the user's turn or as the system prompt,
    and another one after them. The texts are in `reminders.yaml`.
    """

    id = "self-reminder"
    title = "Self-reminder"
    source = "Xie et al. 2023, Nature Machine Intelligence 5"
    settings = ReminderSettings

    def apply(
        self, editable: EditableModel, task: EditTask, settings: Any, progress: Progress
    ) -> None:
        """Add the reminder as an intervention."""
        phrasings = reminders(task.concept, task.direction)
        texts = phrasings[settings.phrasing % len(phrasings)]
        before = [] if settings.position == "around" else [Message("system", texts["system"])]
        around = "{prompt}" if settings.position == "system" else texts["around"]
        editable.intervene(Prompting(before, around))


def reminders(concept: Concept, direction: Direction) -> list[dict[str, str]]:
    """The phrasings for a direction of a concept, each with a `system` and an `around` text.

    A user's own concept gets the general ones, with its name and description inserted.
    """
    file = resources.files("retouch.methods").joinpath("reminders.yaml")
    texts: dict[str, dict[str, list[dict[str, str]]]] = yaml.safe_load(file.read_text("utf-8"))
    if concept.base_name in texts:
        return texts[concept.base_name][direction]
    name, about = concept.base_name.replace("-", " "), concept.description or concept.title
    return [
        {k: v.replace("{name}", name).replace("{about}", about).strip() for k, v in one.items()}
        for one in texts["other"][direction]
    ]


class DemonstrationSettings(MethodSettings):
    """The number of demonstrations, and their prompts."""

    count: int = option(1, "number of demonstrations before the chat", search=(1, 6), ge=1)
    prompts: Literal["source", "target"] = option(
        "target", "prompts of the demonstrations", choices=("source", "target")
    )


class InContextDefense(Method):
    """Put prompts with the target response before every chat, as earlier turns.

    Wei et al. demonstrate the refusal of harmful requests; here it is the target of the direction.
    """

    id = "in-context-defense"
    title = "In-context defense"
    source = "Wei et al. 2023, arXiv 2310.06387"
    settings = DemonstrationSettings

    def apply(
        self, editable: EditableModel, task: EditTask, settings: Any, progress: Progress
    ) -> None:
        """Add the demonstrations as an intervention.

        Raises:
            ConfigError: the longest chat with the demonstrations exceeds the model's context.
        """
        source = source_demonstrations(editable, task) if settings.prompts == "source" else []
        # Without pairs, the target response to a source prompt is not known.
        chosen = (source or list(task.train.demonstrations))[: settings.count]
        turns: list[Message] = []
        for prompt, response in chosen:
            # A chat has one system prompt at most, and it may have its own.
            turns += [turn for turn in prompt if turn.role != "system"]
            turns.append(Message("assistant", response))
        prompting = Prompting(turns)
        _check_length(editable, task, prompting)
        editable.intervene(prompting)


def source_demonstrations(
    editable: EditableModel, task: EditTask
) -> list[tuple[tuple[Message, ...], str]]:
    """The source prompts with the target responses, where these are known."""
    tokenizer = editable.tokenizer
    by_prompt = {
        tuple(prompt_ids(tokenizer, example.prompt, example.prefill)): example
        for example in task.train.source_examples
    }
    found = []
    for chat in task.train.chosen:
        example = by_prompt.get(chat.ids[: chat.start])
        if example is not None:
            response = tokenizer.decode(chat.ids[chat.start :], skip_special_tokens=True)
            found.append((example.prompt, f"{example.prefill} {response.strip()}".strip()))
    return found


def _check_length(editable: EditableModel, task: EditTask, prompting: Prompting) -> None:
    """Raise if a chat would exceed the context, beyond which a model's output is meaningless."""
    limit, examples = editable.max_length, task.train.source_examples
    if limit is None or not examples:
        return
    prompt, splits = examples[0].prompt, (task.train, task.validation)
    chats = [chat for one in splits for chat in (*one.source, *one.retain)]
    plain, extended = (
        len(prompt_ids(editable.tokenizer, one)) for one in (prompt, prompting.rewrite(prompt))
    )
    longest = max(len(chat.ids) for chat in chats) + extended - plain
    if longest > limit:
        raise ConfigError(
            f"With the demonstrations the longest chat has {longest} tokens; the model's maximum "
            f"is {limit}.",
            "Lower `count`.",
            code="prompt-too-long",
        )
