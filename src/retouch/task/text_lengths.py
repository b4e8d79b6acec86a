"""Check, before an edit runs, that no text exceeds the model's context or the memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from retouch.concepts.chat import prompt_ids
from retouch.concepts.concept import Concept, Example
from retouch.core.config import DataConfig
from retouch.core.errors import DataError
from retouch.core.types import Direction
from retouch.core.units import size_text
from retouch.models.layout import ModelLayout
from retouch.models.memory_estimate import text_bytes
from retouch.task.sampling import example_rng, sample_examples

# More than the tokens that a chat template adds to a text and to each of its turns.
TEMPLATE_TOKENS, TURN_TOKENS = 256, 16


def sampled_examples(
    concept: Concept, direction: Direction, data: DataConfig, seed: int
) -> Iterator[Example]:
    """The examples that an edit trains and validates on, targets under their context.

    Raises:
        DataError: a set has no examples.
    """
    for split in ("train", "validation"):
        sampled = sample_examples(example_rng(seed, split), concept, direction, split, data, seed)
        yield from (*sampled.source, *sampled.target, *sampled.retain)


def check_text_lengths(
    examples: Iterable[Example],
    tokenizer: Any,
    model: Any,
    layout: ModelLayout,
    free_bytes: int | None,
) -> None:
    """Check that the texts, each a prompt with its given response, fit the context and the memory.

    Args:
        examples: those that the edit uses.
        tokenizer: the model's.
        model: the transformers model; it may be on the meta device.
        layout: where its blocks are.
        free_bytes: the free memory of its device; None if it is unknown.

    Raises:
        DataError: a text does not fit; names the first ones by file and line.
        ModelError: the chat template refuses the turns.
    """
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    itemsize = int(model.dtype.itemsize)

    def fits(tokens: int) -> bool:
        needed = text_bytes(model, layout, tokens, itemsize)
        return free_bytes is None or needed <= free_bytes

    too_long: dict[str, int] = {}
    too_large: dict[str, int] = {}
    fitting = 0
    for one in dict.fromkeys(examples):
        # A token has a byte or more, so that most texts need not be tokenized.
        bound = _max_tokens(one)
        if bound <= fitting:
            continue
        if bound <= (limit or bound) and fits(bound):
            fitting = bound
            continue
        tokens = _count_tokens(tokenizer, one)
        if limit and tokens > limit:
            too_long[one.description] = tokens
        elif not fits(tokens):
            too_large[one.description] = tokens
    hint = "Shorten these texts, or remove their rows."
    if too_long:
        message = f"The model supports {limit:,} tokens, and texts have more: {_listed(too_long)}."
        raise DataError(message, hint, code="text-too-long")
    if too_large:
        needed = text_bytes(model, layout, max(too_large.values()), itemsize)
        message = (
            f"Texts need up to {size_text(needed)} of memory, {size_text(free_bytes or 0)} "
            f"available: {_listed(too_large)}."
        )
        raise DataError(message, hint, code="text-exceeds-memory")


def _max_tokens(example: Example) -> int:
    texts = [turn.content for turn in example.prompt] + [example.prefill, example.response or ""]
    size = sum(len(text.encode()) for text in texts)
    return size + TEMPLATE_TOKENS + TURN_TOKENS * len(example.prompt)


def _count_tokens(tokenizer: Any, example: Example) -> int:
    count = len(prompt_ids(tokenizer, example.prompt, example.prefill))
    if example.response is not None:
        count += 1 + len(tokenizer(example.response, add_special_tokens=False)["input_ids"])
    return count


def _listed(tokens: Mapping[str, int]) -> str:
    """The first texts with their lengths, and the number of the others."""
    listed = "; ".join(f"{name} ({count:,} tokens)" for name, count in [*tokens.items()][:3])
    return f"{listed}; and {len(tokens) - 3} more" if len(tokens) > 3 else listed
