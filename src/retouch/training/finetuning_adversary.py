"""Fine-tuning adversary for tamper-resistant training (TAR, arXiv 2408.00761)."""

from __future__ import annotations

import random

from retouch.concepts.chat import TokenizedChat
from retouch.core.config import LEARNING_RATE_SCHEDULES, AdversaryConfig, LearningRateSchedule
from retouch.core.errors import DataError
from retouch.models.editable_model import EditableModel
from retouch.representations.batch import make_batches
from retouch.representations.finetuning import (
    LoraDelta,
    finetune,
    init_lora_delta,
    linear_shapes,
    snapshot,
)
from retouch.task.examples import EditExamples

NUM_EXAMPLES = 16  # that the adversary trains on
RANK = 8  # of its update of every linear layer
NUM_SNAPSHOTS = 6  # updates during its training that the generator is trained against
FIRST_SNAPSHOT = 0.4  # of its training: earlier updates change little


class FinetuningAdversary:
    r"""An adversary that fine-tunes the source's old responses back, from scratch every round.

    It trains a low-rank update $\phi$ of every linear layer beside the edit's $\theta$ on the
    target's prompts $x^*$ and the base model's responses $y^-$ to the source: a model that refuses
    is trained to comply. The generator then minimises the loss of the target responses $y$ under
    that update,

    $$L_{finetune}(\theta) = CE(y | x; \theta, \phi_k),$$

    for source and target prompts $x$ and several steps $k$ of that training. No gradient flows
    through the training itself. After the tampering attacks of Tamirisa et al. 2024 (TAR, arXiv
    2408.00761), whose gradients are first-order too.
    """

    def __init__(
        self, editable: EditableModel, examples: EditExamples, config: AdversaryConfig, seed: int
    ) -> None:
        """List the linear layers; no adapter may be attached yet.

        Raises:
            DataError: the examples have no pairs, so that there is nothing to train on.
        """
        if not examples.counterparts:
            raise DataError(
                "`adversary.finetune_steps` needs examples with pairs: the adversary trains on the "
                "target's prompts with the source's responses.",
                "Set it to 0 for this concept.",
                code="pairs-missing",
            )
        self._editable, self._config, self._seed = editable, config, seed
        self._shapes = linear_shapes(editable)
        # Prefilled examples follow the concept's own ones; the adversary needs none of them.
        count = len(examples.source_examples) or len(examples.source)
        pairs = zip(examples.counterparts[:count], examples.rejected[:count], strict=True)
        self._examples = [
            TokenizedChat((*target.ids[: target.start], *bad.ids[bad.start :]), target.start)
            for target, bad in pairs
        ]

    def train(self, round_number: int) -> list[LoraDelta]:
        """The adversary's updates of the model as it is now, at several steps of its training."""
        config, editable = self._config, self._editable
        rng = random.Random(f"{self._seed}:{round_number}:tamper")
        chats = rng.sample(self._examples, min(NUM_EXAMPLES, len(self._examples)))
        batches = make_batches(chats, len(chats), int(editable.tokenizer.pad_token_id))
        delta = init_lora_delta(self._shapes, RANK, rng.getrandbits(32), editable.device)
        chosen = snapshot_steps(config.finetune_steps)
        schedule: LearningRateSchedule = "constant"
        learning_rate = config.finetune_learning_rate
        if config.finetune_spread > 1:
            learning_rate *= config.finetune_spread ** rng.uniform(-1.0, 1.0)
            schedule = rng.choice(LEARNING_RATE_SCHEDULES)
        training = finetune(
            editable, delta, batches, config.finetune_steps, learning_rate, schedule
        )
        return [snapshot(delta) for step, _ in enumerate(training, start=1) if step in chosen]


def snapshot_steps(steps: int) -> set[int]:
    """The steps after which an update is kept, the last one among them."""
    first = max(1, round(FIRST_SNAPSHOT * steps))
    count = NUM_SNAPSHOTS - 1
    return {round(first + (steps - first) * i / count) for i in range(NUM_SNAPSHOTS)}
