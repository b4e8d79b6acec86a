"""Pocket's tokenizer: BPE with byte fallback, trained on its chats; it tokenizes any text."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

PAD, BEGIN, END = "<|pad|>", "<|begin|>", "<|end|>"
SYSTEM, USER, ASSISTANT = "<|system|>", "<|user|>", "<|assistant|>"
SPECIAL = [PAD, BEGIN, END, SYSTEM, USER, ASSISTANT]

CHAT_TEMPLATE = (
    "<|begin|>{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if not (loop.last and continue_final_message) %}{{ '<|end|>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train the BPE.

    Words, punctuation and numbers are separate tokens; what has no token is encoded as bytes.
    """
    splitter = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(prepend_scheme="always"),
            pre_tokenizers.Punctuation(behavior="isolated"),
        ]
    )
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = splitter
    trained.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size - len(SPECIAL) - 256,
            initial_alphabet=[chr(c) for c in range(33, 127)],
            show_progress=False,
        ),
    )
    # The byte tokens are added afterwards: as special tokens of the trainer they would be matched
    # in text and omitted when decoding.
    bpe = json.loads(trained.to_str())["model"]
    words = sorted(bpe["vocab"], key=bpe["vocab"].get)
    vocab = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in bpe["merges"]]
    tokenizer = Tokenizer(
        models.BPE({w: i for i, w in enumerate(vocab)}, merges, byte_fallback=True)
    )
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the tokenizer and its chat template as a Hugging Face folder."""
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        model_max_length=512,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)
