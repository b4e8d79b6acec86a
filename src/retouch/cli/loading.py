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


def resolve_with_model(settings: Mapping[str, Any], example: str) -> EditConfig:
    """The configuration of the options, which name a model.

    Raises:
        ConfigError: there is no model, with the command of `example` as its hint, or an option has
            a wrong value.
    """
    if "model" not in settings:
        raise ConfigError("MODEL is missing.", f"For example: {example}.", code="model-missing")
    return resolve(settings, where="the options")


def resolve_base(
    settings: Mapping[str, Any], adapter: Path | None, reused: tuple[str, ...] | None = None
) -> tuple[Path | None, EditConfig]:
    """The folder of the adapter, and a configuration with the base model and its load options.

    Of a run whose model is the one that is given, the load options that decide its outputs are
    used again where they are not given.

    Args:
        settings: the options.
        adapter: a run directory or an adapter folder.
        reused: the names of those load options (default: all of `RunDir.load_options`).

    Raises:
        RunError: `adapter` is neither an adapter nor a run that has one.
        ConfigError: an option has a wrong value, or an adapter is given without a model.
    """
    given = resolve(settings, where="the options")
    if adapter is None:
        return None, given
    folder = find_adapter(adapter)
    is_run = (folder.parent / "config.yaml").is_file()
    run = RunDir.open(folder.parent) if is_run else None
    recorded = run.config().model if run else None
    if "model" not in settings:
        known = f"The run edits {recorded!r:.200}." if run else "Give the model of the adapter."
        raise ConfigError("MODEL is missing beside the adapter.", known, code="model-missing")
    if run is None or given.model != recorded:
        return folder, given
    options = run.load_options()
    if reused is not None:
        options = {name: value for name, value in options.items() if name in reused}
    return folder, resolve({"load": options}, settings, where="the options")


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
