"""A generated response does not depend on the batch."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch

from helpers.char_tokenizer import TEMPLATE, char_tokenizer
from retouch.concepts.chat import prompt_ids, tokenize_chat
from retouch.core.types import Message
from retouch.models import generate as generating
from retouch.models.generate import Decoding, Response, generate, generate_responses
from retouch.models.load import load
from retouch.models.shared_beginning import MIN_SHARED, shared_beginning

QUESTIONS = [
    "What is 3 + 4?",
    "Hi!",
    "Sort these numbers: 7, 2, 9.",
    "What is the capital of Peru?",
]


def test_responses_do_not_depend_on_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    editable = load("pocket")
    prompts = [
        tokenize_chat(editable.tokenizer, [Message("user", text)], "").ids[:-1]
        for text in QUESTIONS
    ]
    together = generate(editable, prompts)
    assert together == [generate(editable, [prompt])[0] for prompt in prompts]
    assert together == generate(editable, prompts, batch_size=2)
    assert together == generate(editable, prompts, share_beginning=False)
    calls: list[tuple[int, int]] = []
    generate(editable, prompts, batch_size=3, progress=lambda _, *done: calls.append(done))
    assert calls == [(3, 4), (4, 4)]

    run = generating._generate_batch

    def fail_above_two(
        model: object, rows: list[list[int]], limit: int, share: bool, decoding: Decoding
    ) -> list[Response]:
        if len(rows) > 2:
            raise MemoryError
        return run(editable, rows, limit, share, decoding)

    monkeypatch.setattr(generating, "_generate_batch", fail_above_two)
    assert generate(editable, prompts) == together


def test_sampled_responses_depend_on_the_seed_alone_and_may_be_made_longer() -> None:
    editable = load("pocket")
    prompts = [
        tokenize_chat(editable.tokenizer, [Message("user", text)], "").ids[:-1]
        for text in QUESTIONS
    ]
    state = torch.random.get_rng_state()
    first, again, other = (
        generate(editable, prompts, decoding=Decoding(top_k=20, branch=True, seed=seed))
        for seed in (1, 1, 2)
    )
    assert torch.equal(torch.random.get_rng_state(), state)
    assert first == again != other
    longest = generate_responses(
        editable, prompts, max_new_tokens=40, decoding=Decoding(min_new_tokens=40)
    )
    for response, short in zip(longest, generate(editable, prompts), strict=True):
        assert response.truncated
        assert len(response.text) > len(short)
        assert response.text.startswith(short)


def test_a_response_without_an_end_token_is_truncated() -> None:
    editable = load("pocket")
    prompts = [
        tokenize_chat(editable.tokenizer, [Message("user", text)], "").ids[:-1]
        for text in QUESTIONS
    ]
    whole = generate_responses(editable, prompts, max_new_tokens=64)
    assert not any(response.truncated for response in whole)
    lengths = [len(editable.tokenizer(one.text)["input_ids"]) for one in whole]
    assert len(set(lengths)) > 1
    for limit in (min(lengths), max(lengths)):
        cut = generate_responses(editable, prompts, max_new_tokens=limit)
        # A response as long as the limit has no end token yet.
        assert [one.truncated for one in cut] == [length >= limit for length in lengths]
    assert generate(editable, prompts, max_new_tokens=limit) == [one.text for one in cut]


def test_only_many_prompts_with_one_beginning_get_batches_of_their_own() -> None:
    alike = [[*range(MIN_SHARED), 20 + i] for i in range(generating.MIN_GROUP)]
    few = [[90 + i, *range(MIN_SHARED)] for i in range(3)]
    prompts = [*alike, *few]
    order = range(len(prompts))
    batches = list(generating._batches(order, prompts, 128, True))
    assert list(map(len, batches)) == [len(alike), len(few)]
    assert list(map(len, generating._batches(order, prompts, 128, False))) == [len(prompts)]
    assert shared_beginning([prompts[i] for i in batches[0]]) == MIN_SHARED
    assert shared_beginning([prompts[i] for i in batches[1]]) == 0


UNUSUAL = {
    "repetition_penalty": 5.0,
    "no_repeat_ngram_size": 1,
    "encoder_repetition_penalty": 5.0,
    "min_new_tokens": 30,
    "min_length": 60,
    "max_length": 3,
    "forced_bos_token_id": 7,
    "forced_eos_token_id": 7,
    "suppress_tokens": list(range(300, 2000)),
    "begin_suppress_tokens": list(range(300, 2000)),
    "bad_words_ids": [[one] for one in range(300, 2000)],
    "sequence_bias": [[[300], 50.0]],
    "exponential_decay_length_penalty": (1, 5.0),
    "guidance_scale": 3.0,
    "do_sample": True,
    "temperature": 5.0,
    "num_beams": 3,
    "num_return_sequences": 2,
    "return_dict_in_generate": True,
    "output_scores": True,
    "output_hidden_states": True,
    "use_cache": False,
    "renormalize_logits": True,
    "stop_strings": ["e"],
    "max_time": 0.0,
    "cache_implementation": "static",
    "prompt_lookup_num_tokens": 2,
    "watermarking_config": {"greenlist_ratio": 0.5, "bias": 20.0},
    "pad_token_id": 5,
}


def test_the_generation_config_of_a_model_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    editable = load("pocket")
    prompts = [
        tokenize_chat(editable.tokenizer, [Message("user", text)], "").ids[:-1]
        for text in QUESTIONS[:2]
    ]
    plain = generate(editable, prompts)
    config = editable.base.generation_config
    for name, value in UNUSUAL.items():
        editable.base.generation_config = copy.deepcopy(config)
        setattr(editable.base.generation_config, name, value)
        assert generate(editable, prompts) == plain, name
        assert getattr(editable.base.generation_config, name) == value  # the model keeps its own
    # Without the replacement the test would fail.
    monkeypatch.setattr(generating, "_plain_generation_config", lambda _: nullcontext())
    editable.base.generation_config = copy.deepcopy(config)
    editable.base.generation_config.repetition_penalty = 5.0
    assert generate(editable, prompts) != plain


def thinking_tokenizer(*special: str) -> Any:
    tokenizer = char_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    return tokenizer


def test_decoding_keeps_the_markers_of_a_thought() -> None:
    tokenizer = thinking_tokenizer("[THINK]", "[/THINK]", "[TOOL]")
    text = "[TOOL][THINK]Hm[/THINK]Yes<end><pad>"
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
    assert generating._decode(tokenizer, ids) == ["[THINK]Hm[/THINK]Yes"]
    plain = char_tokenizer()
    ids = torch.tensor([plain("Yes<end><pad>", add_special_tokens=False)["input_ids"]])
    assert generating._decode(plain, ids) == ["Yes"]


def test_a_response_begins_with_the_marker_that_the_template_opens() -> None:
    tokenizer = char_tokenizer()
    user = [Message("user", "What is <think>?")]
    assert generating._openings(tokenizer, [prompt_ids(tokenizer, user)]) == [""]
    tokenizer.chat_template = TEMPLATE.replace("'a:'", "'a:<think>'")
    plain, prefilled = prompt_ids(tokenizer, user), prompt_ids(tokenizer, user, "Sure")
    closed = prompt_ids(tokenizer, user, "</think>Sure")
    found = generating._openings(tokenizer, [plain, prefilled, closed])
    assert found == ["<think>\n", "<think>\n", ""]
    # Tokenized again, it is what was generated.
    assert (
        tokenize_chat(tokenizer, user, "<think>\nHm").ids
        == tokenize_chat(tokenizer, user, "Hm").ids
    )
