"""The configuration of a command from its options, and the log levels of the libraries."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from logging import ERROR, getLogger
from pathlib import Path
from typing import Any

from retouch.core.config import EditConfig
from retouch.core.config_file import resolve
from retouch.core.errors import ConfigError
from retouch.core.run_dir import RunDir, find_adapter

# The load options of a run that other commands reuse; device and dtype may differ.
REUSED = ("revision", "trust_remote_code", "chat_template", "quantize", "max_device_memory")


def resolve_with_model(
    settings: Mapping[str, Any], example: str, config: Path | None = None
) -> EditConfig:
    """The configuration of the options, which name a model unless there is a configuration file.

    Raises:
        ConfigError: there is neither, with the command of `example` as its hint, or an option has
            a wrong value.
    """
    if "model" not in settings and config is None:
        raise ConfigError("MODEL is missing.", f"For example: {example}.", code="model-missing")
    return resolve(settings, where="the options")


def resolve_base(
    settings: Mapping[str, Any], adapter: Path | None, reused: tuple[str, ...] = REUSED
) -> tuple[Path | None, EditConfig]:
    """The folder of the adapter, and a configuration with the base model and its load options.

    Where no model is given, the model and the load options in `reused` are those of the run.

    Raises:
        RunError: `adapter` is neither an adapter nor a run that has one.
        ConfigError: an option has a wrong value.
    """
    given = resolve(settings, where="the options")
    folder = None if adapter is None else find_adapter(adapter)
    if folder is None or "model" in settings or not (folder.parent / "config.yaml").is_file():
        return folder, given
    run = RunDir.open(folder.parent)
    load = run.load_config()
    recorded = {"model": run.config().model, "load": {name: getattr(load, name) for name in reused}}
    return folder, resolve(recorded, settings, where="the options")


def quiet_libraries() -> None:
    """Hide the progress bars and warnings of the libraries; errors are still shown."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging

    # Loading from disk needs no progress bar; a download of gigabytes does.
    downloads_displayed = not are_progress_bars_disabled()
    logging.disable_progress_bar()
    if downloads_displayed:
        enable_progress_bars()
    logging.set_verbosity_error()
    # bitsandbytes warns at every call of every layer that it computes in 16 bits, and once, when
    # PEFT imports it, that an optional package is missing.
    getLogger("bitsandbytes").setLevel(ERROR)
    # It warns of a CUDA compiler on a machine without a GPU.
    getLogger("torch.utils.cpp_extension").setLevel(ERROR)
    for library in ("transformers", "peft", "torch"):
        for category in (FutureWarning, UserWarning, DeprecationWarning):
            warnings.filterwarnings("ignore", category=category, module=rf"{library}\b")
