"""A base model that follows an instruction, without a model: for concepts from instructions."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from typing import Any

import pytest

from retouch.concepts.concept import Concept, Example
from retouch.core.types import Message
from retouch.instruction import candidates
from retouch.instruction.audit import InstructionAudit
from retouch.instruction.candidates import Candidate, Probe
from retouch.models.generate import Response

INSTRUCTION = "Answer in one short sentence."
PROMPTS = [f"What is topic {i}?" for i in range(60)]


def number(text: str) -> int:
    """The number of the topic that a text names; a text without one is a topic of its own."""
    found = re.search(r"[Tt]opic (\d+)", text)
    return int(found[1]) if found else zlib.crc32(text.encode())


class FakeBase:
    """The base model's responses and log-probabilities by rules.

    Under the instruction as a system turn it responds in one sentence, otherwise in two.

    Attributes:
        form: `system`, `user`, or `none` where it never follows.
        faults: responses by the number of a topic, in place of the instructed ones.
    """

    def __init__(self, form: str = "system") -> None:
        self.form = form
        self.faults: dict[int, Response] = {}

    def instructed(self, prompt: Sequence[Message]) -> bool:
        """Whether a prompt has the instruction in the form that is followed."""
        place = prompt[0] if self.form == "system" else prompt[-1]
        return self.form != "none" and INSTRUCTION in place.content

    def generate(self, _: Any, requests: Sequence[Any], **__: Any) -> list[Response]:
        """In place of `generate_base`."""
        responses = []
        for prompt, _prefill in requests:
            topic = number(prompt[-1].content)
            short = f"Topic {topic} is a thing with a name."
            if self.instructed(prompt):
                responses.append(self.faults.get(topic, Response(short)))
            else:
                responses.append(Response(f"{short} It is made of parts. Many people like it."))
        return responses

    def logprobs(self, _: Any, examples: Sequence[Example]) -> list[float]:
        """In place of `base_logprobs`: the topic and the instruction make a response likelier."""
        values = []
        for one in examples:
            text = one.response or ""
            on_topic = number(text) == number(one.prompt[-1].content)
            brief = text.count(".") == 1 and self.instructed(one.prompt)
            values.append(-3.0 + on_topic + brief)
        return values


@pytest.fixture
def fake_base(monkeypatch: pytest.MonkeyPatch) -> FakeBase:
    """Replace the base model by a `FakeBase`."""
    base = FakeBase()
    monkeypatch.setattr(candidates, "generate_base", base.generate)
    monkeypatch.setattr(candidates, "base_logprobs", base.logprobs)
    return base


def made_concept(instruction: str) -> tuple[Concept, InstructionAudit]:
    """A small concept with an audit, in place of those that a model makes."""
    concept = Concept.from_pairs([f"q {i}" for i in range(5)], responses=["a"] * 5, name="made")
    found = tuple(
        Candidate("train", one, "plain", "short", False, True, 0.1, False, 1.0, None)
        for one in concept.select("train", ["negative"])
    )
    probes = (Probe("system", 1.0, 0.5, 3), Probe("user", 0.5, 0.5, 3))
    return concept, InstructionAudit(instruction, "pocket", "0" * 64, "max_words:1", probes, found)
