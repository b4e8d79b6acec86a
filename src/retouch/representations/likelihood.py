"""How likely the model finds a reply."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from retouch.concepts.render import Rendered
from retouch.models.load import LoadedModel
from retouch.models.memory import in_parts
from retouch.representations.batch import Batch, make_batches

_LOGITS = 2**28  # logits held at a time: 1 GiB in float32
NUMBER = 4  # bytes of a number in float32


def logit_room(loaded: LoadedModel) -> int:
    """How many tokens' logits may be held at a time."""
    return logit_tokens(loaded.room, int(loaded.model.config.get_text_config().vocab_size))


def logit_tokens(room: int | None, vocabulary: int) -> int:
    """The same for so many bytes of room, and for as many as one likes.

    Where the device has a limit, a quarter of what the weights leave: two models' are compared, and
    each is there as it is and as probabilities.
    """
    most = _LOGITS if room is None else min(_LOGITS, room // (4 * NUMBER))
    return max(1, most // vocabulary)


@torch.no_grad()
def reply_log_probability(
    loaded: LoadedModel, rows: Sequence[Rendered], size: int = 64
) -> torch.Tensor:
    """Mean log-probability of each row's reply `[rows]`, nats a token."""
    out = torch.zeros(len(rows))
    pad = int(loaded.tokenizer.pad_token_id)
    for batch in make_batches(rows, size, pad, logit_room(loaded)):

        def run(part: Sequence[int], batch: Batch = batch) -> list[float]:
            return batch_log_probability(loaded, batch.part(part)).tolist()

        out[list(batch.index)] = torch.tensor(in_parts(run, range(len(batch.index))))
    return out


@torch.no_grad()
def batch_log_probability(loaded: LoadedModel, batch: Batch) -> torch.Tensor:
    """The same for the rows of one batch, in its order."""
    ids = batch.ids.to(loaded.device)
    logits = loaded.model(input_ids=ids, use_cache=False).logits
    rows, at = batch.reply()
    told = batch.told().to(logits.device)
    chosen = logits[rows, at].float().log_softmax(-1).gather(1, told[:, None])[:, 0].cpu()
    total = torch.zeros(len(batch.index)).index_add(0, rows, chosen)
    return total / torch.bincount(rows, minlength=len(batch.index))
