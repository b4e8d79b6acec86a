"""Datasets of the library `datasets`: of the hub, or of a local folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from retouch.core.errors import DataError
from retouch.core.hub import list_hub_files
from retouch.core.plugins import import_library

EXTRA = "'retouch[datasets]'"
# What `Dataset.save_to_disk` and `DatasetDict.save_to_disk` write.
_SAVED = ("state.json", "dataset_dict.json")


def is_saved_dataset(folder: Path) -> bool:
    """Whether a folder was written by `save_to_disk`."""
    return any((folder / name).is_file() for name in _SAVED)


def load_dataset(
    name: str,
    config_name: str | None = None,
    split: str | None = None,
    revision: str | None = None,
    *,
    user: str = "A dataset",
    hint: str = "",
    code: str = "dataset-not-loaded",
) -> Any:
    """Load a dataset of the hub, or of a local folder, with the library `datasets`.

    Args:
        name: its id, or the path of a folder: one of data files, or one that `save_to_disk` wrote.
        config_name: its configuration, of those that have several.
        split: its split (default: all, as a `DatasetDict`).
        revision: a branch, tag or commit of the hub.
        user: what needs it, for errors.
        hint: what else to do where it cannot be loaded.
        code: the code of that error.

    Raises:
        DataError: it cannot be loaded.
        ConfigError: the library is not installed.
    """
    from huggingface_hub import constants

    library = import_library("datasets", user, EXTRA)
    try:
        if is_saved_dataset(Path(name)):
            return library.load_from_disk(name)
        if not (Path(name).exists() or constants.HF_HUB_OFFLINE):
            list_hub_files(name, revision, raises=DataError, kind="dataset")
        return library.load_dataset(name, config_name, split=split, revision=revision)
    except Exception as error:  # the hub, the network and the files can fail in any way
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        source = "/".join(filter(None, (name, config_name, split)))
        message = f"{user}: the dataset {source} cannot be loaded: {reason}."
        hint = f"Check its name and the network. {hint}".strip()
        raise DataError(message, hint, code=code) from None
