"""Tiny models and a tiny tokenizer, built in memory and seeded: shared by the tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedTokenizerFast,
)

from retouch.models.editable_model import EditableModel
from retouch.models.layout import find_layout

SPECIAL = ["<|pad|>", "<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
WORDS = [f"w{i}" for i in range(93)]
VOCABULARY = len(SPECIAL) + len(WORDS)  # 99

TEMPLATE = (
    "<|begin|>{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

WINDOW = {"sliding_window": 4}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}

# Family -> what its configuration needs beyond the common sizes. Where blocks of one model differ
# in life (windows, dense and sparse, attention and recurrence), they differ here.
EXTRA: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": WINDOW,
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, **WINDOW},
    "qwen2": {"use_sliding_window": True, "max_window_layers": 2, **WINDOW},
    "qwen3": {"head_dim": 8},
    "qwen3_moe": {"head_dim": 8, "decoder_sparse_step": 2, **EXPERTS},
    "gemma2": {"head_dim": 8, **WINDOW},
    "gemma3_text": {
        "head_dim": 8,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        **WINDOW,
    },
    # Its last two blocks attend to keys and values of the first two.
    "gemma4_text": {
        "head_dim": 8,
        "global_head_dim": 8,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2,
        "vocab_size_per_layer_input": VOCABULARY,
        "hidden_size_per_layer_input": 8,
        **WINDOW,
    },
    "phi3": WINDOW,
    "gpt2": {"n_inner": 64},
    "gpt_neox": {},
    "gpt_oss": {
        "head_dim": 8,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        **WINDOW,
    },
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "falcon": {"new_decoder_architecture": True, "num_kv_heads": 2},
    "olmo2": {},
    "bloom": {"n_head": 4},
    "stablelm": {},
    "cohere": {},
    "granite": {},
    "deepseek_v3": {
        "kv_lora_rank": 8,
        "q_lora_rank": 12,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 2,
        "topk_group": 1,
        "n_shared_experts": 1,
        "moe_intermediate_size": 16,
        "first_k_dense_replace": 2,
        "num_key_value_heads": 4,
    },
    "llama4_text": {
        "head_dim": 8,
        "num_local_experts": 4,
        "intermediate_size_mlp": 64,
        "moe_layers": [1, 3],
        "attention_chunk_size": 4,
    },
    "smollm3": {"no_rope_layers": [1, 0, 1, 0], "use_sliding_window": False},
    # Attention in turns with linear attention, with Mamba 1, with Mamba 2, beside it in one block,
    # and with convolutions.
    "qwen3_next": {
        "head_dim": 8,
        "shared_expert_intermediate_size": 16,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "layer_types": ["linear_attention", "full_attention"] * 2,
        **EXPERTS,
    },
    "jamba": {
        "use_mamba_kernels": False,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "mamba_d_state": 4,
        "mamba_dt_rank": 4,
    },
    "bamba": {
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
        "mamba_d_state": 8,
        "mamba_n_groups": 1,
        "mamba_expand": 2,
        "attn_layer_indices": [1, 3],
        "mamba_chunk_size": 8,
    },
    "falcon_h1": {
        "head_dim": 8,
        "mamba_d_ssm": 32,
        "mamba_n_heads": 4,
        "mamba_d_head": 8,
        "mamba_d_state": 8,
        "mamba_n_groups": 1,
        "mamba_chunk_size": 8,
    },
    "lfm2": {
        "layer_types": ["conv", "full_attention"] * 2,
        "conv_L_cache": 3,
        "block_ff_dim": 64,
        "block_auto_adjust_ff_dim": False,
    },
}
_EYE = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
# Family -> how its text side is called, what that needs, and its vision side, whose blocks are as
# many as the text side's, so that one could be taken for the other.
VISION: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llava": (
        "llama",
        {},
        {
            "vision_config": {"model_type": "clip_vision_model", "projection_dim": 16, **_EYE},
            "image_token_index": 98,
        },
    ),
    "qwen2_vl": (
        "qwen2_vl_text",
        {
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [1, 1, 2],
            }
        },
        {
            "vision_config": {
                "depth": 4,
                "embed_dim": 16,
                "hidden_size": 32,
                "num_heads": 2,
                "patch_size": 8,
            },
            "image_token_id": 98,
            "video_token_id": 97,
        },
    ),
    "gemma3": (
        "gemma3_text",
        EXTRA["gemma3_text"],
        {
            "vision_config": {"model_type": "siglip_vision_model", **_EYE},
            "mm_tokens_per_image": 4,
            "image_token_index": 98,
        },
    ),
}


def tiny_tokenizer() -> Any:
    """Words `w0` to `w92`, after six special tokens; anything else is padding."""
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(SPECIAL)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=SPECIAL[0],
        bos_token=SPECIAL[1],
        eos_token=SPECIAL[2],
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def tiny_model(model_type: str = "llama", **more: Any) -> Any:
    """A random decoder of the family: hidden size 32, vocabulary 99, four blocks, seeded."""
    options: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    kind: Any = AutoModelForCausalLM
    if model_type in VISION:
        text, own, sight = VISION[model_type]
        kind = AutoModelForImageTextToText
        options = {"text_config": {"model_type": text, **options, **own}, **sight, **more}
    else:
        options |= EXTRA.get(model_type, {}) | more
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind.from_config(AutoConfig.for_model(model_type, **options))
    return model.float().requires_grad_(False).eval()


def tiny_editable(model_type: str = "llama", **more: Any) -> EditableModel:
    """The tiny model as `models.load` hands it out."""
    model = tiny_model(model_type, **more)
    where = torch.device("cpu")
    return EditableModel(model, tiny_tokenizer(), "tiny", None, where, find_layout(model))


def save_tiny(folder: Path, **more: Any) -> Path:
    """Save the tiny model and its tokenizer in a folder."""
    tiny_model(**more).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
