from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from retouch.evaluation import attack_targets
from retouch.models.editable_model import EditableModel


@pytest.fixture
def complying_base(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the base model comply with every jailbreak, in a sentence."""

    def generate(_: EditableModel, prompts: Sequence[Any]) -> list[str]:
        return ["Well, do it with a grid." for _ in prompts]

    monkeypatch.setattr(attack_targets, "generate", generate)
