"""What an edit of a large model holds and moves, from its shape: no weights, no device, no clock.

    python -m benchmarks.scale [--shape NAME=BLOCKS,HIDDEN,MLP,VOCABULARY,HEADS,KV]...
        [--blocks 4] [--rows 24] [--processes 8]

The models are Llamas on the meta device, in bfloat16. The safety concept's rows are those of its
own settings, their tokens counted by the built-in model's tokenizer, responses at the longest. The
trained blocks are the last ones below the middle, with an adapter on all of their linear layers.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.workload import llama
from retouch.concepts.registry import load_concept
from retouch.core.config import EditConfig
from retouch.core.errors import ModelError
from retouch.core.units import size_text
from retouch.models.layout import ModelLayout, find_layout
from retouch.models.load import POCKET
from retouch.models.memory_estimate import state_bytes
from retouch.models.offload import OffloadPlan
from retouch.pipeline import configure
from retouch.preflight.lengths import DirectionSpec, sides_of
from retouch.preflight.workload import TOGETHER
from retouch.task.examples import draw, example_rng

SIZE, FLOAT, NF4 = 2, 4, 0.5 + 4 / 64  # bytes a number: bfloat16, float32, four bits with scales
PROMPTS, TESTS, LENGTH, TAPS = (
    256,
    100,
    30,
    2,
)  # the published repository's log; read_layers by default
RESPONSE = int(EditConfig.model_fields["response_tokens"].default)
SHAPES = {
    "Llama-2-7B": (32, 4096, 11008, 32000, 32, 32),
    "Llama-3-70B": (80, 8192, 28672, 128256, 64, 8),
}


def built(blocks: int, hidden: int, mlp: int, vocabulary: int, heads: int, kept: int) -> Any:
    """A Llama of a shape, without weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    options = llama(blocks, hidden, mlp, vocabulary, heads) | {"num_key_value_heads": kept}
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(
            AutoConfig.for_model("llama", **options), dtype=torch.bfloat16
        ).requires_grad_(False)


def safety() -> DirectionSpec:
    """The lengths of the rows of the safety concept, at its own settings."""
    from transformers import AutoTokenizer

    config = configure({"concept": "safety"})
    drawn = draw(example_rng(config, "train"), load_concept("safety"), config, "train")
    return sides_of(AutoTokenizer.from_pretrained(str(POCKET)), drawn, config)


def least(model: Any, layout: ModelLayout, trained: Sequence[int]) -> int:
    """The smallest `--device-memory` that the trained blocks find room in, found by halving."""
    low, high = 0, 2 * SIZE * footprint.count(model, layout).total  # all of it is surely enough
    while high - low > 1:
        middle = (low + high) // 2
        try:
            OffloadPlan(model, layout, torch.device("cpu"), middle, SIZE).keep_on_device(
                model, trained
            )
            high = middle
        except ModelError:
            low = middle
    return high


def figures(
    model: Any, blocks: int, rows: int, processes: int, texts: DirectionSpec
) -> dict[str, int]:
    """Bytes of everything that the recipes of `docs/scale.md` speak of."""
    counts = footprint.count(model, layout := find_layout(model))
    first = max(0, layout.depth // 2 - blocks)
    trained = list(range(first, min(first + blocks, layout.depth)))
    numbers = footprint.adapter_numbers(model, names := layout.linears(model, trained), 8)
    whole, outside, block = (SIZE * n for n in (counts.total, counts.outside, counts.blocks[0]))
    segment = SIZE * sum(counts.blocks[i] for i in trained)
    modules = [module for one in layout.blocks(model) for module in one.modules()]
    linear = sum(module.weight.numel() for module in modules if footprint.is_linear(module))
    small = whole - round((SIZE - NF4) * linear)
    # The inputs of source and retain rows, the base's states of the latter, the counterparts' at the read_layers.
    positions = texts.source.tokens + 2 * texts.hold.tokens + TAPS * sum(texts.source.responses)
    hidden, longest = model.config.hidden_size, max(texts.source.longest, texts.hold.longest)

    def step(many: int) -> int:
        return footprint.activation_bytes(model, layout, trained, set(names), many, longest, SIZE)

    log = state_bytes(hidden, (PROMPTS + TESTS) * LENGTH, SIZE)
    responses = footprint.cache_bytes(model.config, TOGETHER, longest, SIZE)
    cached, adapter = state_bytes(hidden, positions, SIZE), footprint.training_bytes(numbers)
    beside = cached + adapter + step(rows)
    # Each process keeps a part of the blocks and one block whole, and has its share of the rows.
    part = outside + (whole - outside) // processes + block
    part += cached // processes + adapter + step(-(-rows // processes))
    # A batch of either set goes through the segment and back; its own part a process has already.
    gathered = 4 * segment * (processes - 1) // processes
    return {
        "weights": whole,
        "weights, --quantize 4bit": small,
        "embeddings, last norm and head": outside,
        "one block": block,
        f"segment of {len(trained)} blocks": segment,
        f"cached: {PROMPTS}+{TESTS} prompts of {LENGTH} tokens": log,
        "cached: safety's rows": cached,
        "adapter with Adam and averages, rank 8": adapter,
        f"activations, micro_batch of {rows} rows": step(rows),
        "activations, micro_batch of 1 row": step(1),
        "training: whole model": whole + beside,
        "training: --quantize 4bit": small + beside,
        "training: --device-memory": outside + segment + block + beside,
        f"training: --shard, {processes} processes": part,
        f"responses: keys and values of {TOGETHER} rows": responses,
        "least --device-memory": least(model, layout, trained),
        "streamed: one pass of all blocks": whole - outside,
        "streamed: one pass, segment in place": whole - outside - segment,
        f"streamed: {RESPONSE} tokens of response, one batch": RESPONSE * (whole - outside),
        "streamed: search for the blocks": (layout.depth + 2) * (whole - outside),
        "a step: gradients added up": FLOAT * numbers,
        f"a step: blocks received, {processes} processes": gathered,
    }


def main(words: Sequence[str] | None = None) -> None:
    """Print one table, a column a shape."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--shape", action="append", default=[])
    for name, default in (("blocks", 4), ("rows", 24), ("processes", 8)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args(words)
    parts = [text.partition("=") for text in options.shape]
    shapes = {name: tuple(map(int, sizes.split(","))) for name, _, sizes in parts} or SHAPES
    texts = safety()
    columns = {
        name: figures(built(*shape), options.blocks, options.rows, options.processes, texts)
        for name, shape in shapes.items()
    }
    print(f"| bfloat16 | {' | '.join(columns)} |\n|---{'|---:' * len(columns)}|")
    for row in next(iter(columns.values())):
        print(f"| {row} | {' | '.join(size_text(column[row]) for column in columns.values())} |")


if __name__ == "__main__":
    main()
