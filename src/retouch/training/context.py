"""The objects that all parts of a training share."""

from __future__ import annotations

from dataclasses import dataclass

from retouch.core.config import MethodConfig
from retouch.models.editable_model import EditableModel
from retouch.models.segment import Segment
from retouch.representations.packing import Packer


@dataclass(frozen=True)
class TrainingContext:
    """The model, the segment of it that is trained, and the method's settings.

    Attributes:
        editable: the model.
        segment: the blocks from the first adapted to the last read one, or to the logits.
        read_layers: the layers that the discriminators read.
        method: the settings.
        seed: of weights and batches.
        packer: makes the batches.
    """

    editable: EditableModel
    segment: Segment
    read_layers: tuple[int, ...]
    method: MethodConfig
    seed: int
    packer: Packer

    @property
    def pad(self) -> int:
        """The token id of padding."""
        return int(self.editable.tokenizer.pad_token_id)
