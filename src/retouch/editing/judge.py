"""What a round is judged by: wanted behaviour and drift on validation rows."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F

from retouch.core.config import EditConfig
from retouch.editing.board import Board, EditRows
from retouch.editing.discriminator import Jury
from retouch.editing.trainer import Verdict
from retouch.models.load import LoadedModel
from retouch.models.segment import Segment
from retouch.representations.batch import make_batches
from retouch.representations.divergence import token_kl
from retouch.representations.likelihood import reply_log_probability


def judge(loaded: LoadedModel, rows: EditRows, read: Callable[[], float]) -> Verdict:
    """Behaviour and drift of the present weights.

    Behaviour is the mean log-probability of the wanted replies to the source prompts (nats a
    token), or without pairs what `read` says; drift is KL(base || edited) in nats a token on the
    retain set.
    """
    told = reply_log_probability(loaded, rows.source) if rows.twins else None
    behaviour = read() if told is None else float(told.mean())
    kl = token_kl(loaded, rows.hold)
    tokens = sum(row.count for row in kl)
    return Verdict(behaviour, sum(row.total for row in kl) / tokens if tokens else 0.0)


def fixed_jury(board: Board, config: EditConfig, taps: tuple[int, ...]) -> Jury:
    """Discriminators trained once on the base model's states: no adapter may have moved yet."""
    width, lr = config.discriminator_width, config.discriminator_lr
    hidden = board.target_seen[taps[0]].shape[-1]
    jury = Jury(taps, hidden, width, lr, config.seed + 1).to(board.target_seen[taps[0]].device)
    seen, _ = board.source_states()
    unwanted = {t: torch.cat([seen[t], board.hold_shown[t]]) for t in taps}
    jury.standardise({t: torch.cat([board.target_seen[t], seen[t]]) for t in taps})
    jury.learn(board.target_seen, unwanted, config.discriminator_first, config.smoothing)
    return jury


@torch.no_grad()
def fixed_reading(
    jury: Jury, segment: Segment, rows: EditRows, taps: tuple[int, ...], positions: int, pad: int
) -> float:
    """How wanted the source rows look to discriminators that take no part in the game.

    Mean log-probability of the wanted class over rows and taps: the behaviour of a concept without
    pairs, for which no wanted reply is known.
    """
    parts = []
    for batch in make_batches(rows.source, 32, pad):
        states = segment.run(segment.catch(batch.ids), taps)
        at = batch.reply(positions)
        parts += [F.logsigmoid(jury.members[tap](states[tap][at])) for tap in taps]
    return float(torch.cat(parts).mean())
