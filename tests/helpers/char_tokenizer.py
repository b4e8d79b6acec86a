"""The tiny model with a tokenizer of one token a character, so that it can be asked any text."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from helpers.tiny_models import tiny_editable
from retouch.core.config import LoraConfig
from retouch.models.adapters import attach
from retouch.models.editable_model import EditableModel

SPECIAL = ["<pad>", "<begin>", "<end>", "<unk>"]
CHARACTERS = [chr(code) for code in range(32, 127)]  # 99 tokens in all

TEMPLATE = (
    "<begin>{% for m in messages %}{{ m['role'][0] + ':' + m['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}{{ 'a:' }}{% endif %}"
)


def char_tokenizer() -> Any:
    """One token a printable character: any text comes back as it was."""
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(SPECIAL)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<begin>",
        eos_token="<end>",
        unk_token="<unk>",
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def char_editable() -> EditableModel:
    """The tiny Llama, asked and answering in characters."""
    editable = tiny_editable()
    editable.tokenizer = char_tokenizer()
    with torch.no_grad():  # random logits are too flat to tell models apart
        editable.model.get_output_embeddings().weight.mul_(20.0)
    return editable


def add_random_adapter(editable: EditableModel, scale: float) -> EditableModel:
    """Put an adapter with random weights on, in place; at scale 0 it changes nothing."""
    config = LoraConfig(r=2, lora_alpha=4.0, target_modules=("q_proj", "v_proj", "down_proj"))
    attach(editable, range(4), config, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in editable.model.named_parameters():
            if "lora_B" in name:
                weight.copy_(scale * torch.randn(weight.shape, generator=generator))
    return editable
