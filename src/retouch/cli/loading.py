"""What comes before a model is editable: options, which model it is, a word to the libraries."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from logging import ERROR, getLogger
from pathlib import Path
from typing import Annotated, Literal

import typer

from retouch.core.errors import ConfigError
from retouch.core.run_dir import RunDir, find_adapter
from retouch.core.types import DIRECTIONS, Direction
from retouch.core.units import parse_size

BareModel = Annotated[
    str, typer.Argument(metavar="MODEL", help="`pocket`, a local folder, or a hub id.")
]
ModelOrRun = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL", help="`pocket`, a local folder, or a hub id (default: the run's model)."
    ),
]
Revision = Annotated[str | None, typer.Option(help="the hub revision")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")]
Dtype = Annotated[
    str, typer.Option(metavar="auto|float32|bfloat16|float16", help="of the editable weights")
]
Quantized = Annotated[
    Literal["none", "8bit", "4bit"] | None,
    typer.Option(metavar="none|8bit|4bit", help="bits of the frozen weights (default: the run's)"),
]
DeviceMemory = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE", help="how much of the device the model may take (default: the run's)"
    ),
]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="run code that comes with the model")
]
AllowWeakening = Annotated[
    str | None, typer.Option(metavar="REASON", help="the reason for lowering safety")
]


@dataclass(frozen=True)
class Base:
    """The base model to load."""

    name: str = "pocket"
    revision: str | None = None
    trust_remote_code: bool = False
    chat_template: str | None = None
    quantize: Literal["none", "8bit", "4bit"] = "none"
    device_memory: str | None = None

    def device_bytes(self, given: str | None) -> int | None:
        """The limit on the command line, else the run's, in bytes."""
        text = given or self.device_memory
        return None if text is None else parse_size(text)


def resolve_base(
    model: str | None, adapter: Path | None, revision: str | None = None
) -> tuple[Path | None, Base]:
    """The adapter's folder and the base model: the named one, else the run's, else `pocket`.

    Raises:
        RunError: `adapter` is neither an adapter nor a run that has one.
    """
    folder = None if adapter is None else find_adapter(adapter)
    if model is not None:
        return folder, Base(model, revision)
    if folder is not None:
        for path in (folder, folder.parent):
            if (path / "config.yaml").is_file():
                config = RunDir.open(path).config()
                return folder, Base(
                    config.model,
                    revision or config.load.revision,
                    config.load.trust_remote_code,
                    config.load.chat_template,
                    config.load.quantize,
                    config.load.max_device_memory,
                )
    return folder, Base(revision=revision)


def direction_of(text: str) -> Direction:
    """The direction of `--direction`.

    Raises:
        ConfigError: it is neither raise nor lower.
    """
    if text not in DIRECTIONS:
        raise ConfigError(f"There is no --direction {text}.", "Take raise or lower.")
    return text


def quiet_libraries() -> None:
    """Keep what the libraries progress to programmers from between our lines; errors still come."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging

    # Loading from disk needs no bar of its own; a download of gigabytes does.
    shown = not are_progress_bars_disabled()
    logging.disable_progress_bar()
    if shown:
        enable_progress_bars()
    logging.set_verbosity_error()
    # It says at every call of every layer that it computes in 16 bits, and once, when PEFT imports
    # it, that it would know a faster way with one more package.
    getLogger("bitsandbytes").setLevel(ERROR)
    for library in ("transformers", "peft", "torch"):
        for category in (FutureWarning, UserWarning, DeprecationWarning):
            warnings.filterwarnings("ignore", category=category, module=rf"{library}\b")
