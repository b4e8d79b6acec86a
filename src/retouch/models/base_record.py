"""What an adapter's folder records of the base model, so that it is loaded on no other one.

The file lies beside the adapter's, and other tools ignore it. It has the shapes and a few values of
some weights: those of the model that was trained on, whatever its dtype was.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from retouch.core.atomic import atomic_write
from retouch.core.errors import ModelError
from retouch.core.files import MAX_CONFIG, read_text
from retouch.core.serialization import from_plain, parse_json, to_json, to_plain
from retouch.models.editable_model import EditableModel

FILE = "base_model.json"
MAX_TENSORS, MAX_VALUES = 32, 16
# Of the same weights in two dtypes: bfloat16 keeps eight bits.
RELATIVE, ABSOLUTE = 2.0**-7, 1e-6


@dataclass(frozen=True)
class TensorRecord:
    """A weight of the base model: its shape, and evenly spaced values of it."""

    shape: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class BaseRecord:
    """The base model of an adapter.

    Attributes:
        architecture: the name of the model's class.
        tensors: some weights by name, evenly spaced over the model.
    """

    architecture: str
    tensors: Mapping[str, TensorRecord]


def save_base_record(editable: EditableModel, folder: Path) -> None:
    """Record the base model beside an adapter; not one whose weights are not as its checkpoint's.

    Quantised and sharded weights, and those that are offloaded, cannot be compared.
    """
    if not _is_comparable(editable):
        return
    record = BaseRecord(type(editable.base).__name__, dict(_tensors(editable)))
    atomic_write(folder / FILE, to_json(to_plain(record), indent=1) + "\n")


def check_base_record(editable: EditableModel, folder: Path) -> None:
    """Check that a model is the one that an adapter was made on, where its folder records that.

    Raises:
        ModelError: a weight has another shape or other values; or the record is broken.
    """
    file = folder / FILE
    if not file.exists() or not _is_comparable(editable):
        return
    try:
        recorded = from_plain(BaseRecord, parse_json(read_text(file, MAX_CONFIG)))
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(
            f"{file} cannot be read: {reason}", "Restore it.", code="base-record-broken"
        ) from None
    found = dict(_tensors(editable))
    for name, expected in recorded.tensors.items():
        if name not in found:
            problem = f"it has no weight {name!r:.200} of those"
        elif found[name].shape != expected.shape:
            problem = f"{name!r:.200} has another shape"
        elif not _close(found[name].values, expected.values):
            problem = f"{name!r:.200} has other values"
        else:
            continue
        raise ModelError(
            f"{editable.name} is not the base model that the adapter {folder} was made on: "
            f"{problem}.",
            "Load it on that model, in the same revision.",
            code="base-differs",
        )


def _is_comparable(editable: EditableModel) -> bool:
    weights = editable.base.parameters()
    return not (editable.quantised or editable.sharded or any(one.is_meta for one in weights))


def _tensors(editable: EditableModel) -> Iterator[tuple[str, TensorRecord]]:
    """Evenly spaced weights of the base model, without an adapter's."""
    weights = [
        (name.replace(".base_layer", ""), weight)
        for name, weight in editable.base.named_parameters()
        if "lora_" not in name
    ]
    for name, weight in weights[:: -(-len(weights) // MAX_TENSORS)]:
        flat = weight.detach().reshape(-1)
        step = max(1, -(-flat.numel() // MAX_VALUES))
        yield name, TensorRecord(tuple(weight.shape), tuple(flat[::step].float().cpu().tolist()))


def _close(found: tuple[float, ...], expected: tuple[float, ...]) -> bool:
    return len(found) == len(expected) and torch.allclose(
        torch.tensor(found), torch.tensor(expected), rtol=RELATIVE, atol=ABSOLUTE
    )
