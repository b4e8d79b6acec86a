"""What a round is judged by: wanted behaviour and drift on validation rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from retouch.concepts.render import Rendered
from retouch.core.config import EditConfig
from retouch.editing.discriminator import Jury
from retouch.editing.rows import EditRows
from retouch.models.load import LoadedModel
from retouch.representations.batch import make_batches
from retouch.representations.capture import record
from retouch.representations.divergence import token_kl
from retouch.representations.likelihood import reply_log_probability
from retouch.representations.preference import first_shares


@dataclass(frozen=True)
class Verdict:
    """What a judge says of the present model: behaviour (higher is better) and drift, in nats."""

    behaviour: float
    drift: float


Judge = Callable[[], Verdict]


def make_judge(
    loaded: LoadedModel,
    train: EditRows,
    validation: EditRows,
    taps: Sequence[int],
    config: EditConfig,
) -> Judge:
    """A judge of the adapter or steering that acts on the model when it is called.

    It is made before anything acts. Its rows are tokenized once, so that it cannot see what a
    prompt that is added would do: that is for `evaluation`.

    Behaviour is, whichever is known of the concept first:

    * with pairs, the mean log-probability of the wanted replies to the source prompts, nats a
      token;
    * where the effect is a gap, that gap, with the sign of the direction;
    * else how wanted the source rows look to discriminators that take no part in the edit.

    Drift is KL(base || edited) in nats a token on the retain set.
    """
    behave = _behaviour(loaded, train, validation, tuple(taps), config)

    @torch.no_grad()
    def judge() -> Verdict:
        kl = token_kl(loaded, validation.hold)
        tokens = sum(row.count for row in kl)
        drift = sum(row.total for row in kl) / tokens if tokens else 0.0
        return Verdict(behave(), drift)

    return judge


def _behaviour(
    loaded: LoadedModel,
    train: EditRows,
    validation: EditRows,
    taps: tuple[int, ...],
    config: EditConfig,
) -> Callable[[], float]:
    if validation.twins:
        return lambda: float(reply_log_probability(loaded, validation.source).mean())
    if validation.gap is not None:
        return lambda: _gap(loaded, validation)
    jury = _fixed_jury(loaded, train, taps, config)
    return lambda: _reading(loaded, jury, validation.source, config)


def _gap(loaded: LoadedModel, rows: EditRows) -> float:
    """The gap between the groups' mean preferences, as the direction wants it: up to 0 or to 1."""
    spec = rows.gap
    assert spec is not None
    shares = torch.tensor(first_shares(loaded, rows.asked, spec.choices))
    first = torch.tensor([row.group == spec.groups[0] for row in rows.asked])
    second = torch.tensor([row.group == spec.groups[1] for row in rows.asked])
    gap = float((shares[first].mean() - shares[second].mean()).abs())
    return -gap if rows.closing else gap - 1.0


def _states(
    loaded: LoadedModel, rows: Sequence[Rendered], taps: tuple[int, ...], positions: int
) -> dict[int, torch.Tensor]:
    """The states `[n, hidden]` by tap at the first reply positions, as the model is now."""
    parts: dict[int, list[torch.Tensor]] = {tap: [] for tap in taps}
    for batch in make_batches(rows, 32, int(loaded.tokenizer.pad_token_id)):
        with record(loaded, taps) as states:
            loaded.model(input_ids=batch.ids.to(loaded.device), use_cache=False)
        at = batch.reply(positions)
        for tap in taps:
            parts[tap].append(states[tap][at])
    return {tap: torch.cat(found) for tap, found in parts.items()}


@torch.no_grad()
def _reading(
    loaded: LoadedModel, jury: Jury, rows: Sequence[Rendered], config: EditConfig
) -> float:
    """Mean log-probability of the wanted class over rows and taps."""
    states = _states(loaded, rows, tuple(jury.members), config.reply_positions)
    return float(torch.cat([F.logsigmoid(jury.members[t](s)) for t, s in states.items()]).mean())


def _fixed_jury(
    loaded: LoadedModel, rows: EditRows, taps: tuple[int, ...], config: EditConfig
) -> Jury:
    """Discriminators trained once, on the base model's states."""
    with torch.no_grad():
        wanted = _states(loaded, rows.target, taps, config.reply_positions)
        source = _states(loaded, rows.source, taps, config.reply_positions)
        bad = [row for row, unwanted in zip(rows.hold, rows.unwanted, strict=True) if unwanted]
        unwanted = source
        if bad:
            held = _states(loaded, bad, taps, config.reply_positions)
            unwanted = {tap: torch.cat([source[tap], held[tap]]) for tap in taps}
    hidden = wanted[taps[0]].shape[-1]
    width, lr = config.discriminator_width, config.discriminator_lr
    jury = Jury(taps, hidden, width, lr, config.seed + 1).to(loaded.device)
    jury.standardise({tap: torch.cat([wanted[tap], source[tap]]) for tap in taps})
    jury.learn(wanted, unwanted, config.discriminator_first, config.smoothing)
    return jury
