"""`retouch chat`: separate conversations of both models, within the model's context."""

from __future__ import annotations

import pytest

from helpers.char_tokenizer import add_random_adapter, char_editable
from helpers.command_line import call
from retouch.cli.chat import Conversation
from retouch.core.errors import ModelError


def test_one_prompt_gets_one_response() -> None:
    result = call("chat", "pocket", "--prompt", "Name things that float.", "--max-new-tokens", "4")
    assert result.exit_code == 0, result.output
    assert len(result.stdout.splitlines()) == 1
    assert "base:" not in result.stdout


def test_prompts_are_read_from_stdin_up_to_quit() -> None:
    lines = "Name things that float.\n\n/reset\n/unknown\n/quit\nnever read\n"
    result = call("chat", "pocket", "--max-new-tokens", "4", stdin=lines)
    assert result.exit_code == 0, result.output
    assert len(result.stdout.splitlines()) == 1
    assert "/unknown" in result.stderr


def test_both_models_continue_their_own_conversation() -> None:
    editable = char_editable()
    add_random_adapter(editable, 0.3)
    conversation = Conversation(editable, "Be brief.", max_new_tokens=4)
    responses = conversation.respond("hi")
    assert set(responses) == {"base", "edited"}
    for name in conversation.turns:
        roles = [turn.role for turn in conversation.turns[name]]
        assert roles == ["system", "user", "assistant"]
        assert conversation.turns[name][-1].content == responses[name]
    conversation.reset()
    assert [turn.role for turn in conversation.turns["edited"]] == ["system"]


def test_the_oldest_turns_are_removed_when_the_context_is_full() -> None:
    conversation = Conversation(char_editable(), "Be brief.", max_new_tokens=4)
    assert conversation.editable.max_length == 256
    for _ in range(3):
        conversation.respond("x" * 60)
        assert not conversation.truncated
    conversation.respond("y" * 90)
    assert conversation.truncated
    turns = conversation.turns["base"]
    assert turns[0].role == "system"
    assert turns[1].role == "user"
    assert turns[-2].content == "y" * 90


def test_a_message_that_is_longer_than_the_context_is_refused_and_forgotten() -> None:
    conversation = Conversation(char_editable(), None, max_new_tokens=4)
    with pytest.raises(ModelError) as raised:
        conversation.respond("x" * 300)
    assert raised.value.code == "message-too-long"
    assert conversation.turns["base"] == []
    assert set(conversation.respond("hi")) == {"base"}
