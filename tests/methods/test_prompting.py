from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from helpers.steering_task import apply, logits, steering_task
from helpers.tiny_edit import tiny_concept
from helpers.tiny_models import tiny_editable
from retouch.concepts.chat import prompt_text
from retouch.concepts.registry import builtin_names, load_concept
from retouch.core.errors import ConfigError
from retouch.core.types import DIRECTIONS, Message
from retouch.methods.prompting import reminders
from retouch.models.adapters import detach
from retouch.models.interventions import Prompting


def test_no_edit_changes_nothing() -> None:
    editable = tiny_editable()
    base = logits(editable)
    apply(editable, steering_task(True), "none")
    assert not editable.edited
    assert torch.equal(logits(editable), base)


@pytest.mark.parametrize("position", ["system", "around", "both"])
def test_the_reminder_is_in_the_prompt(position: str) -> None:
    editable = tiny_editable()
    base = logits(editable)
    task = steering_task(True)
    apply(editable, task, "self-reminder", phrasing=4, position=position)
    texts = reminders(task.concept, "raise")[4 % 3]  # of three phrasings
    chat = (Message("user", "w1"), Message("assistant", "w2"), Message("user", "w3"))
    turns = editable.rewrite_prompt(chat)
    assert turns[-3:-1] == chat[:2]
    first, last = turns[0], turns[-1].content
    assert (first == Message("system", texts["system"])) == (position != "around")
    around = "{prompt}" if position == "system" else texts["around"]
    assert last == around.replace("{prompt}", "w3")
    with editable.base_model():
        assert editable.rewrite_prompt(chat) == chat
    assert torch.equal(logits(editable), base)  # the weights are unchanged
    detach(editable)
    assert editable.rewrite_prompt(chat) == chat


def test_every_concept_has_reminders() -> None:
    custom = replace(tiny_concept(), name="plain-words", description="No jargon.")
    builtin = [load_concept(name) for name in builtin_names()]
    for concept in [*(one for one in builtin if one.directions), custom]:
        for direction in DIRECTIONS:
            phrasings = reminders(concept, direction)
            assert 3 <= len(phrasings) <= 4
            assert all(texts["around"].count("{prompt}") == 1 for texts in phrasings)
            assert all("{" not in texts["system"] for texts in phrasings)
            assert ("plain words" in phrasings[0]["system"]) == (concept is custom)
    assert "No jargon." in reminders(custom, "raise")[0]["system"]


@pytest.mark.parametrize("prompts", ["source", "target"])
def test_demonstrations_with_the_target_response_come_before_the_chat(prompts: str) -> None:
    editable = tiny_editable()
    task = steering_task(True)
    apply(editable, task, "in-context-defense", count=2, prompts=prompts)
    turns = editable.rewrite_prompt((Message("user", "w3"),))
    assert [turn.role for turn in turns] == [*["user", "assistant"] * 2, "user"]
    assert turns[-1] == Message("user", "w3")
    source = [example.prompt for example in task.train.source_examples]
    target = [prompt for prompt, _ in task.train.demonstrations]
    expected = source if prompts == "source" else target
    assert [turn.content for turn in turns[:-1:2]] == [one[-1].content for one in expected[:2]]
    # The target response to a source prompt is that of its counterpart.
    assert [turn.content for turn in turns[1:-1:2]] == ["w7 w8"] * 2
    assert "w7 w8" in prompt_text(editable.tokenizer, turns)


def test_demonstrations_without_pairs_have_target_prompts() -> None:
    editable = tiny_editable()
    task = steering_task(False)
    apply(editable, task, "in-context-defense", count=1, prompts="source")
    turns = editable.rewrite_prompt((Message("user", "w3"),))
    assert turns[0] == task.train.demonstrations[0][0][-1]


def test_demonstrations_that_exceed_the_context_are_an_error() -> None:
    editable = tiny_editable(max_position_embeddings=16)
    with pytest.raises(ConfigError, match="16") as error:
        apply(editable, steering_task(True), "in-context-defense", count=6)
    assert error.value.code == "prompt-too-long"
    assert not editable.edited


def test_running_text_is_left_as_it_is() -> None:
    editable = tiny_editable()
    editable.intervene(Prompting([Message("system", "Be brief.")]))
    assert editable.rewrite_prompt(()) == ()
