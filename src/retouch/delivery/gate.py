"""The gate: weakening a model's safety needs a reason in writing."""

from __future__ import annotations

from retouch.core.config import EditConfig
from retouch.core.errors import RefusedError
from retouch.core.types import Concept


def weakens(config: EditConfig, concept: Concept) -> bool:
    """Whether the edit weakens the model's safety."""
    return concept.weakens is not None and config.direction == concept.weakens


def check_weakening(config: EditConfig, concept: Concept) -> None:
    """Let an edit pass, unless it weakens safety and nobody has said why.

    Raises:
        RefusedError: the concept declares the direction to be weakening, and `allow_weakening`
            holds no reason.
    """
    if weakens(config, concept) and not (config.allow_weakening or "").strip():
        other = "lower" if config.direction == "raise" else "raise"
        raise RefusedError(
            f"To {config.direction} `{concept.name}` makes the model less safe: "
            "it would do what it now declines.",
            'If there is a good reason, such as testing a defence, give it: --allow-weakening "THE '
            f'REASON". It is written on the model card. Otherwise: --direction {other}.',
        )
