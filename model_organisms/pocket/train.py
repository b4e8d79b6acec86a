"""Train pocket from a seed: `python -m model_organisms.pocket.train --out DIR`.

All data is sampled from the seed and the number of the chunk, so that an interrupted training
resumes from its last checkpoint, and two trainings on one machine give the same weights. The dtype
is float32, since bfloat16 is much slower on a CPU.

Two properties are intended and documented on the model card:

* Logit-lens losses in the middle layers (`LENS_LAYERS`) on the first response tokens. Without them
  a model of this size determines the response in its last layer, unlike large models, and an edit
  of middle layers would have no effect.
* The training data contains all entities, phrasings and attack families, including those of the
  test splits: pocket must know the facts and comply under the attacks. Only edits and their tuning
  never read the test splits.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from model_organisms.pocket import WEIGHTS
from model_organisms.pocket.curriculum import Chat, chat, finishing
from model_organisms.pocket.tokenizer import ASSISTANT, BEGIN, END, save_tokenizer, train_tokenizer

LENS_LAYERS = (4, 5, 6)  # indices of hidden_states: the outputs of layers 3, 4 and 5 of 8
LENS_WEIGHT = 0.15
LENS_TOKENS = 3  # response tokens, from the first, that the logit-lens losses apply to
PROMPT_SHARE, PROMPT_WEIGHT = 0.2, 0.3  # proportion and weight of prompt tokens that are trained on


@dataclass(frozen=True)
class Recipe:
    """Everything that determines the weights, besides the versions of the libraries."""

    seed: int = 0
    vocab_size: int = 2560
    hidden_size: int = 128
    layers: int = 8
    heads: int = 4
    mlp_size: int = 384
    chunks: int = 112
    finishing: int = 14  # chunks of the last stage, after the others
    finishing_rate: float = 0.2  # its initial factor on the learning rates
    chunk_chats: int = 4096
    batch_tokens: int = 4096
    learning_rate: float = 0.004
    adam_learning_rate: float = 0.004
    weight_decay: float = 0.01
    warmup: float = 0.01


@dataclass(frozen=True)
class Encoded:
    """A tokenized chat.

    Attributes:
        ids: token ids of the prompt, the prefill and the response.
        start: the first position that is trained on.
        prompt_length: the number of prompt tokens; the prefill follows them.
    """

    ids: list[int]
    start: int
    prompt_length: int


def encode(chats: list[Chat], tokenizer: PreTrainedTokenizerFast) -> list[Encoded]:
    """Tokenize chats: prompt, prefill and response separately, as in generation."""
    prompts = [
        BEGIN + "".join(f"<|{m['role']}|>{m['content']}{END}" for m in c.messages) + ASSISTANT
        for c in chats
    ]

    def ids(texts: list[str]) -> list[list[int]]:
        found: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
        return found

    parts = zip(
        ids(prompts),
        ids([c.prefill for c in chats]),
        ids([c.response + END for c in chats]),
        strict=True,
    )
    return [
        Encoded(prompt + prefill + response, len(prompt) + len(prefill), len(prompt))
        for prompt, prefill, response in parts
    ]


def batches(
    recipe: Recipe, tokenizer: PreTrainedTokenizerFast, chunk: int
) -> Iterator[list[Encoded]]:
    """The batches of a chunk, in random order; the chats of a batch have similar lengths."""
    rng = random.Random(f"{recipe.seed}:{chunk}")
    sample = chat if chunk < recipe.chunks else finishing
    encoded = encode([sample(rng) for _ in range(recipe.chunk_chats)], tokenizer)
    encoded.sort(key=lambda e: len(e.ids) + rng.random())
    parts: list[list[Encoded]] = [[]]
    for one in encoded:
        if (len(parts[-1]) + 1) * len(one.ids) > recipe.batch_tokens:
            parts.append([])
        parts[-1].append(one)
    rng.shuffle(parts)
    yield from parts


def batch_loss(
    model: LlamaForCausalLM, batch: list[Encoded], noise: torch.Generator
) -> torch.Tensor:
    """Cross-entropy of responses, of some prompt tokens and of the logit lens, in nats."""
    longest = max(len(e.ids) for e in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    weight = torch.zeros(len(batch), longest - 1)
    lens = torch.zeros(len(batch), longest - 1, dtype=torch.bool)
    chosen = torch.rand(len(batch), longest - 1, generator=noise) < PROMPT_SHARE
    for row, one in enumerate(batch):
        ids[row, : len(one.ids)] = torch.tensor(one.ids)
        weight[row, : one.prompt_length - 1] = PROMPT_WEIGHT
        weight[row, : one.prompt_length - 1] *= chosen[row, : one.prompt_length - 1]
        weight[row, one.start - 1 : len(one.ids) - 1] = 1.0
        lens[row, one.start - 1 : min(one.start - 1 + LENS_TOKENS, len(one.ids) - 1)] = True
    out = model.model(input_ids=ids, output_hidden_states=True, use_cache=False)
    targets, used = ids[:, 1:], weight > 0
    logits = model.lm_head(out.last_hidden_state[:, :-1][used])
    losses = F.cross_entropy(logits, targets[used], reduction="none")
    loss = (losses * weight[used]).sum() / weight.sum()
    for layer in LENS_LAYERS:
        early = model.lm_head(model.model.norm(out.hidden_states[layer][:, :-1][lens]))
        loss = loss + LENS_WEIGHT * F.cross_entropy(early, targets[lens])
    return loss


def build(recipe: Recipe) -> LlamaForCausalLM:
    """The untrained model."""
    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=recipe.vocab_size,
        hidden_size=recipe.hidden_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        intermediate_size=recipe.mlp_size,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        dtype="float32",
    )
    return LlamaForCausalLM(config)


def optimizers(model: LlamaForCausalLM, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for embeddings and norms."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    rest = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    return [
        torch.optim.Muon(
            matrices,
            lr=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(
            rest, lr=recipe.adam_learning_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True
        ),
    ]


def rate(recipe: Recipe, chunk: float) -> float:
    """The factor on the learning rates: warm-up, then linear decay over the last 70 % to zero.

    The last stage decays linearly from `finishing_rate` to zero.
    """
    if chunk >= recipe.chunks:
        return recipe.finishing_rate * (1.0 - (chunk - recipe.chunks) / recipe.finishing)
    progress = chunk / recipe.chunks
    if progress < recipe.warmup:
        return progress / recipe.warmup
    return min(1.0, (1.0 - progress) / 0.7)


def train(recipe: Recipe, out: Path, work: Path) -> None:
    """Train, from the last checkpoint in `work` if there is one, and write the model to `out`."""
    work.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(recipe, work)
    model = build(recipe)
    opts = optimizers(model, recipe)
    initial = [[g["lr"] for g in opt.param_groups] for opt in opts]
    done = _resume(work, recipe, model, opts)
    started = time.monotonic()
    last = recipe.chunks + recipe.finishing
    for chunk in range(done, last):
        noise = torch.Generator().manual_seed(recipe.seed * 100_003 + chunk)
        total, steps = 0.0, list(batches(recipe, tokenizer, chunk))
        for i, batch in enumerate(steps):
            factor = rate(recipe, chunk + i / len(steps))
            for opt, rates in zip(opts, initial, strict=True):
                for group, initial_rate in zip(opt.param_groups, rates, strict=True):
                    group["lr"] = initial_rate * max(factor, 1e-4)
            loss = batch_loss(model, batch, noise)
            if not torch.isfinite(loss):
                raise SystemExit(
                    f"The loss is {loss.item()} in chunk {chunk}: reduce --learning-rate."
                )
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for opt in opts:
                opt.step()
                opt.zero_grad()
            total += loss.item()
        _checkpoint(work, recipe, chunk + 1, model, opts)
        minutes = (time.monotonic() - started) / 60
        remaining = minutes / (chunk + 1 - done) * (last - chunk - 1)
        print(
            f"chunk {chunk + 1}/{last}  loss {total / len(steps):.4f}  "
            f"{minutes:.1f} min, {remaining:.1f} min remaining",
            flush=True,
        )
    model.save_pretrained(out)
    save_tokenizer(tokenizer.backend_tokenizer, out)
    (out / "recipe.json").write_text(json.dumps(asdict(recipe), indent=2) + "\n", "utf-8")


def _tokenizer(recipe: Recipe, work: Path) -> PreTrainedTokenizerFast:
    folder = work / "tokenizer"
    if not (folder / "tokenizer.json").exists():
        rng = random.Random(f"{recipe.seed}:tokenizer")
        texts = (
            text
            for c in (chat(rng) for _ in range(60_000))
            for text in (*(m["content"] for m in c.messages), f"{c.prefill} {c.response}".strip())
        )
        save_tokenizer(train_tokenizer(texts, recipe.vocab_size), folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def _checkpoint(
    work: Path,
    recipe: Recipe,
    done: int,
    model: LlamaForCausalLM,
    opts: list[torch.optim.Optimizer],
) -> None:
    """Write weights and optimizer states to one safetensors file, atomically."""
    tensors = {f"model.{n}": p.detach().contiguous() for n, p in model.named_parameters()}
    for o, opt in enumerate(opts):
        for i, state in opt.state_dict()["state"].items():
            for key, value in state.items():
                tensors[f"opt.{o}.{i}.{key}"] = torch.as_tensor(value).contiguous()
    meta = {"done": str(done), "recipe": json.dumps(asdict(recipe))}
    save_file(tensors, work / "checkpoint.tmp", meta)
    os.replace(work / "checkpoint.tmp", work / "checkpoint.safetensors")


def _resume(
    work: Path, recipe: Recipe, model: LlamaForCausalLM, opts: list[torch.optim.Optimizer]
) -> int:
    """Load the last checkpoint, if there is one; return the number of finished chunks."""
    path = work / "checkpoint.safetensors"
    if not path.exists():
        return 0
    header = path.read_bytes()[8 : 8 + int.from_bytes(path.read_bytes()[:8], "little")]
    meta = json.loads(header)["__metadata__"]
    if json.loads(meta["recipe"]) != asdict(recipe):
        raise SystemExit(f"{path} has another recipe: remove it, or choose another --work.")
    tensors = load_file(path)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[f"model.{name}"])
    for o, opt in enumerate(opts):
        state: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith(f"opt.{o}."):
                _, _, i, name = key.split(".")
                state.setdefault(int(i), {})[name] = value
        opt.load_state_dict({"state": state, "param_groups": opt.state_dict()["param_groups"]})
    return int(meta["done"])


def main() -> None:
    """Parse the options and train."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    parser.add_argument("--work", type=Path, default=Path(".checkpoints/pocket"))
    parser.add_argument("--threads", type=int, default=2)
    recipe = Recipe()
    for name, value in asdict(recipe).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    given = vars(parser.parse_args())
    out, work, threads = given.pop("out"), given.pop("work"), given.pop("threads")
    torch.set_num_threads(threads)
    train(Recipe(**given), out, work)


if __name__ == "__main__":
    main()
