"""The objects that all parts of a training share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from retouch.concepts.chat import TokenizedChat
from retouch.core.config import MethodConfig
from retouch.models.editable_model import EditableModel
from retouch.models.segment import Segment
from retouch.representations.batch import ChatBatch, pack, pad_right


@dataclass(frozen=True)
class TrainingContext:
    """The model, the segment of it that is trained, and the method's settings.

    Attributes:
        editable: the model.
        segment: the blocks from the first adapted to the last read one, or to the logits.
        read_layers: the layers that the discriminators read.
        method: the settings.
        seed: of weights and batches.
        packed: whether several chats share a row.
    """

    editable: EditableModel
    segment: Segment
    read_layers: tuple[int, ...]
    method: MethodConfig
    seed: int
    packed: bool

    @property
    def pad(self) -> int:
        """The token id of padding."""
        return int(self.editable.tokenizer.pad_token_id)

    def make_batch(self, index: Sequence[int], chats: Sequence[TokenizedChat]) -> ChatBatch:
        """Some chats of a set as one batch."""
        return (pack if self.packed else pad_right)(index, chats, self.pad)

    def packing(self, batch: ChatBatch) -> dict[str, Any]:
        """The model's arguments for a batch besides the ids."""
        return batch.packing(self.editable.base.dtype, self.editable.device)
