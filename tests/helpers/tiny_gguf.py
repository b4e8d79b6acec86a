"""A tiny llama in a GGUF file, with a byte-level tokenizer and a chat template."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from transformers.convert_slow_tokenizer import bytes_to_unicode

from helpers.tiny_models import SPECIAL, TEMPLATE, tiny_model

TOKENS = [*SPECIAL, *bytes_to_unicode().values()]  # the end token is number 2
MERGES = ["h e", "l l", "he ll"]
VOCABULARY = [*TOKENS, "he", "ll", "hell"]

# The names in a llama GGUF file, by the modules' names in transformers.
_IN_BLOCK = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def llama() -> Any:
    """The model that `write_gguf` writes."""
    return tiny_model(vocab_size=len(VOCABULARY), tie_word_embeddings=True)


def write_gguf(
    path: Path,
    *,
    architecture: str = "llama",
    template: Any = TEMPLATE,
    without: Collection[str] = (),
    quantised: Collection[str] = (),
    values: dict[str, int] | None = None,
) -> Any:
    """Write `llama()` to a GGUF file, and return it.

    Args:
        path: the file.
        architecture: the architecture that the file names.
        template: the chat template; a list of several is written as an array.
        without: names of tensors that are left out.
        quantised: names of tensors that are written as Q8_0; their values in the returned model are
            the dequantised ones.
        values: more integers of the metadata.
    """
    model = llama()
    config, weights = model.config, model.state_dict()
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(VOCABULARY)
    normal, control = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL
    writer.add_token_types([control if token in SPECIAL else normal for token in VOCABULARY])
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    if isinstance(template, str):
        writer.add_chat_template(template)
    else:
        writer.add_array("tokenizer.chat_template", template)
    for key, value in (values or {}).items():
        writer.add_uint32(key, value)
    names = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
    for layer in range(config.num_hidden_layers):
        names |= {f"blk.{layer}.{key}": f"model.layers.{layer}.{v}" for key, v in _IN_BLOCK.items()}
    for short, long in names.items():
        if short in without:
            continue
        weight = weights[f"{long}.weight"]
        array, kind = weight.numpy(), None
        heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
        if (count := heads.get(short.rpartition(".")[2])) is not None:
            array = _rotary(array, count)
        if short in quantised:
            kind = gguf.GGMLQuantizationType.Q8_0
            array = gguf.quantize(array, kind)
            weight.copy_(weight.new_tensor(gguf.dequantize(array, kind)))
        writer.add_tensor(f"{short}.weight", array, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def _rotary(weight: np.ndarray, heads: int) -> np.ndarray:
    """The order of a head's rows in llama.cpp: neighbours rotate together, not the two halves."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, weight.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))
