"""Tiny models and a tiny tokenizer, built in memory and seeded: shared by the tests."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from retouch.models.layout import find_layout
from retouch.models.load import LoadedModel

SPECIAL = ["<|pad|>", "<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
WORDS = [f"w{i}" for i in range(93)]
VOCABULARY = len(SPECIAL) + len(WORDS)  # 99

TEMPLATE = (
    "<|begin|>{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

# Family -> what its configuration needs beyond the common sizes.
EXTRA: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "gemma2": {"head_dim": 8},
    "phi3": {},
    "gpt2": {"n_inner": 64},
    "gpt_neox": {},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
}
FAMILIES = list(EXTRA)


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
    options |= EXTRA.get(model_type, {}) | more
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **options))
    return model.float().requires_grad_(False).eval()


def tiny_loaded(model_type: str = "llama", **more: Any) -> LoadedModel:
    """The tiny model as `models.load` hands it out."""
    model = tiny_model(model_type, **more)
    where = torch.device("cpu")
    return LoadedModel(model, tiny_tokenizer(), "tiny", None, where, find_layout(model))
