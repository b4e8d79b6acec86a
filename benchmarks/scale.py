"""Compute the memory and the traffic of an edit of a large model from its shape.

    python -m benchmarks.scale [--shape NAME=LAYERS,HIDDEN,MLP,VOCABULARY,HEADS,KV]...
        [--layers 4] [--micro-batch-size 24] [--processes 8]

Prints the table of docs/scale.md in seconds on any machine: the models are Llamas on the meta
device, in bfloat16, without weights. The examples are those of the safety concept with its own
settings, their tokens counted by the built-in model's tokenizer, with responses of maximum length.
The trained layers are the last ones below the middle, with adapters on all of their linear layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.common import SEED, argument_parser, llama
from retouch.concepts.registry import load_concept
from retouch.core.config import EditConfig
from retouch.core.config_file import resolve
from retouch.core.errors import ModelError
from retouch.core.units import size_text
from retouch.models.generate import BATCH_SIZE
from retouch.models.layout import ModelLayout, find_layout
from retouch.models.load import POCKET
from retouch.models.memory_estimate import (
    FLOAT32_BYTES,
    TRAINED_BYTES,
    activation_bytes,
    count_parameters,
    kv_cache_bytes,
    lora_parameters,
    quantised_bytes,
)
from retouch.models.offload import OffloadPlan
from retouch.preflight.workload import SplitLengths, measure_split
from retouch.task.layers import NUM_READ
from retouch.task.sampling import example_rng, sample_examples

ITEMSIZE = torch.bfloat16.itemsize
PROMPTS, TESTS, PROMPT_TOKENS = 256, 100, 30  # of the log in ARE's repository
RESPONSE_TOKENS = EditConfig().data.max_new_tokens
RANK = EditConfig().lora.r
SHAPES = {
    "Llama-2-7B": (32, 4096, 11008, 32000, 32, 32),
    "Llama-3-70B": (80, 8192, 28672, 128256, 64, 8),
}


def build_model(
    layers: int, hidden: int, mlp: int, vocabulary: int, heads: int, kv_heads: int
) -> Any:
    """A Llama of a shape, without weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    options = {**llama(layers, hidden, mlp, vocabulary, heads), "num_key_value_heads": kv_heads}
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(
            AutoConfig.for_model("llama", **options), dtype=torch.bfloat16
        ).requires_grad_(False)


def safety_lengths() -> SplitLengths:
    """The lengths of the safety concept's training examples, with its own settings."""
    from transformers import AutoTokenizer

    concept = load_concept("pocket-safety")
    data = resolve(concept.settings.get("raise", {})).data
    rng = example_rng(SEED, "train")
    sampled = sample_examples(rng, concept, "raise", "train", data, SEED)
    return measure_split(AutoTokenizer.from_pretrained(str(POCKET)), sampled, data)


def least_device_memory(model: Any, layout: ModelLayout, trained: Sequence[int]) -> int:
    """The lowest `max_device_memory` that the trained layers fit into, by bisection."""
    low, high = 0, 2 * ITEMSIZE * count_parameters(model, layout).total
    while high - low > 1:
        limit = (low + high) // 2
        try:
            plan = OffloadPlan(model, layout, torch.device("cpu"), limit, ITEMSIZE)
            plan.keep_on_device(model, trained)
            high = limit
        except ModelError:
            low = limit
    return high


def estimate_bytes(
    model: Any, num_layers: int, micro_batch_size: int, processes: int, lengths: SplitLengths
) -> dict[str, int]:
    """Bytes of everything that docs/scale.md cites, by its name in the table.

    Args:
        model: the model, possibly on the meta device.
        num_layers: how many layers are trained.
        micro_batch_size: rows that run at once.
        processes: processes that share the weights.
        lengths: the lengths of the training examples.
    """
    counts = count_parameters(model, layout := find_layout(model))
    first = max(0, layout.depth // 2 - num_layers)
    trained = list(range(first, min(first + num_layers, layout.depth)))
    names = layout.linears(model, trained)
    adapter_parameters = lora_parameters(model, names, RANK)
    total, outside, layer = (ITEMSIZE * n for n in (counts.total, counts.outside, counts.blocks[0]))
    segment = ITEMSIZE * sum(counts.blocks[i] for i in trained)
    quantised = quantised_bytes(model, "4bit", ITEMSIZE)
    # Inputs of source and retain examples, the base's outputs of the latter, and the states of the
    # target counterparts along the response, at the layers that are read.
    source, retain = lengths.source, lengths.retain
    positions = source.total + 2 * retain.total + NUM_READ * sum(source.responses)
    position = ITEMSIZE * model.config.hidden_size
    longest = max(source.longest, retain.longest)

    def activations(rows: int) -> int:
        return activation_bytes(model, layout, trained, set(names), rows, longest, ITEMSIZE)

    cached, adapter = position * positions, TRAINED_BYTES * adapter_parameters
    beside_weights = cached + adapter + activations(micro_batch_size)
    # A process has its share of each layer and one whole layer, and its share of the examples.
    sharded = outside + (total - outside) // processes + layer
    sharded += cached // processes + adapter + activations(-(-micro_batch_size // processes))
    # Source and retain batches pass the segment forward and backward; a process has its own share.
    received = 4 * segment * (processes - 1) // processes
    return {
        "weights": total,
        "weights, --quantize 4bit": quantised,
        "embeddings, final norm and head": outside,
        "one layer": layer,
        f"segment of {len(trained)} layers": segment,
        f"cached: {PROMPTS}+{TESTS} prompts of {PROMPT_TOKENS} tokens": position
        * (PROMPTS + TESTS)
        * PROMPT_TOKENS,
        "cached: examples of safety": cached,
        f"adapter with Adam, EMA and best checkpoint, rank {RANK}": adapter,
        f"activations, micro-batch of {micro_batch_size}": activations(micro_batch_size),
        "activations, micro-batch of 1": activations(1),
        "training: whole model": total + beside_weights,
        "training: --quantize 4bit": quantised + beside_weights,
        "training: --max-device-memory": outside + segment + layer + beside_weights,
        f"training: --fsdp, {processes} processes": sharded,
        f"generation: keys and values of {BATCH_SIZE} prompts": kv_cache_bytes(
            model.config, BATCH_SIZE, longest, ITEMSIZE
        ),
        "lowest --max-device-memory": least_device_memory(model, layout, trained),
        "streamed: one pass of all layers": total - outside,
        "streamed: one pass, segment resident": total - outside - segment,
        f"streamed: {RESPONSE_TOKENS} response tokens, one batch": RESPONSE_TOKENS
        * (total - outside),
        "streamed: causal patching": (layout.depth + 2) * (total - outside),
        "per step: reduced gradients": FLOAT32_BYTES * adapter_parameters,
        f"per step: gathered layers, {processes} processes": received,
    }


def main(words: Sequence[str] | None = None) -> None:
    """Print one table with a column for each shape."""
    parser = argument_parser(__doc__)
    parser.add_argument("--shape", action="append", default=[], help="may be repeated")
    parser.add_argument("--layers", type=int, default=4, help="trained layers")
    parser.add_argument("--micro-batch-size", type=int, default=24)
    parser.add_argument("--processes", type=int, default=8)
    options = parser.parse_args(words)
    parts = [text.partition("=") for text in options.shape]
    shapes = {name: tuple(map(int, sizes.split(","))) for name, _, sizes in parts} or SHAPES
    lengths = safety_lengths()
    settings = (options.layers, options.micro_batch_size, options.processes, lengths)
    columns = {
        name: estimate_bytes(build_model(*shape), *settings) for name, shape in shapes.items()
    }
    print(f"| bfloat16 | {' | '.join(columns)} |\n|---{'|---:' * len(columns)}|")
    for name in next(iter(columns.values())):
        sizes = [size_text(column[name]) for column in columns.values()]
        print(f"| {name} | {' | '.join(sizes)} |")


if __name__ == "__main__":
    main()
