"""The parts of `run.json` that are read again: the file may come from elsewhere."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

LayerName = Annotated[str, Field(pattern=r"^\d{1,6}$")]


class Part(BaseModel):
    """A part with some known entries; others are kept as they are."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)


class Layers(Part):
    """The chosen layers, 0-based, and the recovery of each by causal patching."""

    adapted: tuple[int, ...] = ()
    read: tuple[int, ...] = ()
    reason: str = ""
    recovery: dict[LayerName, float] = Field({})


class ContrastCheck(Part):
    """The check of the contrast."""

    level: str


class Outcome(Part):
    """The outcome as the card and the report show it."""

    status: str
    text: str


class Model(Part):
    """The base model."""

    fingerprint: str | None = None
    auto_class: str | None = None


class Concept(Part):
    """The concept as the card describes it."""

    name: str = ""
    title: str = ""
    description: str = ""
    weakens: Literal["raise", "lower", None] = None
    source: str = ""
    hash: str = ""


class Provenance(Part):
    """The content of `run.json`; every part is written by a stage of its own."""

    concept: Concept | None = None
    contrast: ContrastCheck | None = None
    data: dict[str, str] = Field({})
    done: bool = False
    layers: Layers | None = None
    model: Model | None = None
    notes: tuple[str, ...] = ()
    outcome: Outcome | None = None
    safety: dict[str, Any] | None = None
    versions: dict[str, str] = Field({})
