"""The generator's third opponent: somebody who goes on training the edited model."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from retouch.concepts.render import Rendered
from retouch.core.config import EditConfig
from retouch.core.errors import DataError
from retouch.editing.losses import supervised_loss
from retouch.editing.rows import EditRows
from retouch.models.footprint import widths
from retouch.models.load import LoadedModel
from retouch.representations.batch import make_batches

# By the name of a linear layer: A `[rank, in]` and B `[out, rank]`.
Change = Mapping[str, tuple[torch.Tensor, torch.Tensor]]

EXAMPLES = 16  # that the adversary has
RANK = 8  # of its change of every linear layer
SCALE = 2.0  # alpha / rank, as people fine-tune
KEPT = 6  # moments of its training that the adapter has to stand
BEGIN = 0.4  # of its training, from which on they are taken: before, little has changed


class Tamperer:
    r"""An adversary that learns, afresh every round, to have the source rows' old replies back.

    $$\phi_{k+1} = \phi_k - \eta \, \mathrm{Adam}(\nabla_\phi CE(y^- | x^*; \theta, \phi_k))$$

    with a low-rank change $\phi$ of every linear layer beside the edit's $\theta$, on the target's
    prompts $x^*$ and the replies $y^-$ that the base gives to the source's: a model that refuses is
    taught to go along. The adapter then has to bring the wanted replies $y$ with it on,

    $$L_{tamper}(\theta) = CE(y | x; \theta, \phi_k),$$

    for source and target prompts $x$ and moments $k$ of that training. No gradient flows through
    the training itself. After the tampering attacks of Tamirisa et al. 2024 (TAR, arXiv
    2408.00761), whose gradients are first-order too.
    """

    def __init__(self, loaded: LoadedModel, rows: EditRows, config: EditConfig) -> None:
        """Note the linear layers; no adapter may be attached yet.

        Raises:
            DataError: the rows have no pairs, so that there is nothing to teach.
        """
        if not rows.twins:
            raise DataError(
                "`--tamper` needs rows with pairs: an adversary teaches the target's prompts the "
                "replies of the source's.",
                "Leave it out for this concept.",
            )
        self._loaded, self._config = loaded, config
        self._shapes = {
            name: widths(loaded.model.get_submodule(name))
            for name in loaded.layout.linears(loaded.model, range(loaded.layout.depth))
        }
        asked = len(rows.asked) or len(rows.source)  # forced beginnings are nothing to teach
        self._demands = [
            Rendered((*twin.ids[: twin.start], *bad.ids[bad.start :]), twin.start)
            for twin, bad in zip(rows.twins[:asked], rows.rejected[:asked], strict=True)
        ]

    def train(self, number: int) -> list[Change]:
        """What the adversary of a round makes of the model as it is now, at several moments."""
        config, loaded = self._config, self._loaded
        rng = random.Random(f"{config.seed}:{number}:tamper")
        rows = rng.sample(self._demands, min(EXAMPLES, len(self._demands)))
        (batch,) = make_batches(rows, len(rows), int(loaded.tokenizer.pad_token_id))
        at, told = batch.reply(), batch.told().to(loaded.device)
        change = self._fresh(rng.getrandbits(32))
        leaves = [one.requires_grad_() for pair in change.values() for one in pair]
        optimizer = torch.optim.Adam(leaves, lr=config.tamper_lr)
        moments, kept = _moments(config.tamper), []
        with tampered(loaded, change):
            for step in range(1, config.tamper + 1):
                logits = loaded.model(input_ids=batch.ids.to(loaded.device), use_cache=False).logits
                loss = supervised_loss(logits[at], told, torch.ones_like(told, dtype=torch.float))
                # Of its own weights alone: those of the adapter get no gradient from here.
                for leaf, slope in zip(leaves, torch.autograd.grad(loss, leaves), strict=True):
                    leaf.grad = slope
                optimizer.step()
                if step in moments:
                    kept.append(_still(change))
        return kept

    def _fresh(self, seed: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """As PEFT begins: A is random and B is zero, so that nothing has changed yet."""
        generator = torch.Generator().manual_seed(seed)
        found = {}
        for name, (into, out) in self._shapes.items():
            most = 1 / math.sqrt(into)
            a = torch.empty(RANK, into).uniform_(-most, most, generator=generator)
            found[name] = (
                a.to(self._loaded.device),
                torch.zeros(out, RANK, device=self._loaded.device),
            )
        return found


@contextmanager
def tampered(loaded: LoadedModel, change: Change) -> Iterator[None]:
    r"""Inside, linear layers put out $y + s\,B A x$; an adapter on them acts as well."""
    base = loaded.model.get_base_model() if loaded.adapted else loaded.model

    def adding(a: torch.Tensor, b: torch.Tensor) -> Any:
        def hook(_: Any, args: tuple[Any, ...], out: torch.Tensor) -> torch.Tensor:
            moved: torch.Tensor = SCALE * (args[0].to(a.dtype) @ a.T) @ b.T
            return out + moved.to(out.dtype)

        return hook

    with ExitStack() as hooks:
        for name, (a, b) in change.items():
            hooks.callback(base.get_submodule(name).register_forward_hook(adding(a, b)).remove)
        yield


def _still(change: Change) -> Change:
    return {name: (a.detach().clone(), b.detach().clone()) for name, (a, b) in change.items()}


def _moments(steps: int) -> set[int]:
    """The steps after which the adversary is looked at, the last one among them."""
    first = max(1, round(BEGIN * steps))
    return {round(first + (steps - first) * i / (KEPT - 1)) for i in range(KEPT)}
