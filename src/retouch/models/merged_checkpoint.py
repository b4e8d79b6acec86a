"""Write a model with its adapter merged in the form of the checkpoint that it was loaded from."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open

from retouch.core.hub import cached_folder
from retouch.models.adapters import merged
from retouch.models.editable_model import IN_MEMORY, EditableModel
from retouch.models.load import find_source

GENERATION = "generation_config.json"
MAX_SHARD = 50 << 30  # bytes; a checkpoint of one file stays one up to this size


@dataclass(frozen=True)
class CheckpointForm:
    """How a checkpoint's weights are written.

    Attributes:
        folder: the checkpoint; None where there is none: a model in memory, or a GGUF file.
        dtypes: the dtype of each tensor, by its name in the files.
        shard: the size of the largest file in bytes, where there are several.
    """

    folder: Path | None = None
    dtypes: dict[str, torch.dtype] = field(default_factory=dict)
    shard: int = MAX_SHARD

    @property
    def dtype(self) -> torch.dtype | None:
        """The dtype of most tensors."""
        most = Counter(self.dtypes.values()).most_common(1)
        return most[0][0] if most else None


def checkpoint_form(editable: EditableModel) -> CheckpointForm:
    """The form of the checkpoint that a model was loaded from."""
    if editable.name == IN_MEMORY:
        return CheckpointForm()
    source = find_source(editable.name, editable.revision)
    if isinstance(source, Path):
        folder = source if source.is_dir() else None
    else:
        folder = cached_folder(source, editable.revision)
    if folder is None:
        return CheckpointForm()
    files = sorted(folder.glob("*.safetensors"))
    dtypes: dict[str, torch.dtype] = {}
    for file in files:
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (it is no mapping)
                dtypes[name] = opened.get_slice(name)[:0].dtype
    sizes = [file.stat().st_size for file in files]
    return CheckpointForm(folder, dtypes, max(sizes) if len(sizes) > 1 else MAX_SHARD)


def write_merged_checkpoint(editable: EditableModel, folder: Path) -> None:
    """Write a model with its adapter merged, and its tokenizer, into a folder.

    The weights are merged in the dtype that they were loaded in, and written in that of the
    checkpoint, in files of its size; its `generation_config.json` is copied.

    Raises:
        ModelError: an intervention acts on the model too, or the weights are quantised.
    """
    model, form = merged(editable), checkpoint_form(editable)
    if form.dtype is not None:
        for name, weight in model.named_parameters():
            weight.data = weight.data.to(form.dtypes.get(name, form.dtype))
    model.save_pretrained(str(folder), max_shard_size=form.shard)
    editable.tokenizer.save_pretrained(str(folder))
    if form.folder is not None and (form.folder / GENERATION).is_file():
        shutil.copyfile(form.folder / GENERATION, folder / GENERATION)
    elif form.folder is not None:
        (folder / GENERATION).unlink(missing_ok=True)
