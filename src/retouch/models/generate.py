"""Batched greedy generation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from retouch.models.load import LoadedModel


@torch.inference_mode()
def generate(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 32,
    batch_size: int = 128,
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Greedy replies to tokenized prompts: what follows them, special tokens left out.

    Prompts of like length share a batch, padded on the left; the replies keep the prompts' order.
    """
    tokenizer = loaded.tokenizer
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    replies = [""] * len(prompts)
    for begin in range(0, len(order), batch_size):
        rows = order[begin : begin + batch_size]
        longest = max(len(prompts[i]) for i in rows)
        ids = torch.full((len(rows), longest), tokenizer.pad_token_id)
        mask = torch.zeros(len(rows), longest, dtype=torch.long)
        for row, i in enumerate(rows):
            ids[row, longest - len(prompts[i]) :] = torch.tensor(list(prompts[i]))
            mask[row, longest - len(prompts[i]) :] = 1
        out = loaded.model.generate(
            input_ids=ids.to(loaded.device),
            attention_mask=mask.to(loaded.device),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            temperature=None,
            top_p=None,
            top_k=None,
            pad_token_id=tokenizer.pad_token_id,
        )
        texts = tokenizer.batch_decode(out[:, longest:], skip_special_tokens=True)
        for i, text in zip(rows, texts, strict=True):
            replies[i] = text.strip()
        if progress:
            progress(min(begin + batch_size, len(order)), len(order))
    return replies
