from __future__ import annotations

from typing import Any

import pytest
import torch

from helpers.char_tokenizer import char_editable
from helpers.edited import edited_in_every_way, has_weights, weights
from helpers.tiny_models import tiny_editable
from retouch.concepts.chat import TokenizedChat, prompt_ids
from retouch.core.config import LoadConfig
from retouch.core.errors import ModelError
from retouch.core.types import Message
from retouch.evaluation import gcg
from retouch.evaluation.gcg import SuffixContext, allowed_tokens, search_suffix, with_suffix
from retouch.models.interventions import Prompting
from retouch.models.load import load
from retouch.representations.logprobs import response_logprob

TARGET = (10, 11, 12)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_the_gradient_is_that_of_the_one_hot_tokens(family: str) -> None:
    """By the definition: the model runs on mixtures of embeddings, whose weights get gradients."""
    editable = tiny_editable(family)
    context = SuffixContext("", "", "", [1, 7], [3, 5])
    tokens, target = torch.arange(6, 99), torch.tensor(TARGET)
    ours = gcg._gradient(editable, context, [20, 30], target, tokens)
    table = editable.model.get_input_embeddings()(torch.arange(99))  # scaled, in some families
    ids = torch.tensor([1, 7, 20, 30, 3, 5, *TARGET])
    one_hot = torch.nn.functional.one_hot(ids, 99).float().requires_grad_()
    out = editable.model(inputs_embeds=(one_hot @ table)[None], use_cache=False).logits
    logprob = out[0, 5:8].float().log_softmax(-1).gather(1, target[:, None]).mean()
    (expected,) = torch.autograd.grad(logprob, [one_hot])
    assert torch.allclose(ours, expected[2:4, 6:], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("make", [tiny_editable, edited_in_every_way], ids=["base", "edited"])
def test_a_suffix_raises_the_target_and_is_reproduced_from_its_text(make: Any) -> None:
    editable = make()
    before = weights(editable)
    prompt = (Message("user", "w1 w2"),)
    found = search_suffix(editable, prompt, TARGET, steps=6, candidates=24, length=4)
    assert found.logprob > found.initial_logprob + 0.03
    # The same value is computed from the text, tokenized again.
    ids = prompt_ids(editable.tokenizer, editable.rewrite_prompt(with_suffix(prompt, found.text)))
    logprob = response_logprob(editable, [TokenizedChat((*ids, *TARGET), len(ids))])
    assert float(logprob) == pytest.approx(found.logprob, abs=1e-4)
    again = search_suffix(editable, prompt, TARGET, steps=6, candidates=24, length=4)
    assert again == found
    assert has_weights(editable, before)
    assert not editable.model.get_input_embeddings()._forward_hooks


def test_the_gradient_proposes_better_tokens_than_chance() -> None:
    editable = char_editable()
    prompt = (Message("user", "ab"),)

    def total_logprob(top_k: int) -> float:
        found = [
            search_suffix(editable, prompt, (target,), steps=4, top_k=top_k, seed=target)
            for target in (20, 40, 60, 80)
        ]
        return sum(one.logprob for one in found)

    assert total_logprob(8) > total_logprob(99)  # among all tokens, candidates are random


def test_suffixes_have_no_special_tokens_and_none_that_is_not_reproduced() -> None:
    editable = tiny_editable()
    assert allowed_tokens(editable).tolist() == list(range(6, 99))
    pocket = load("pocket", LoadConfig(device="cpu"))
    allowed = allowed_tokens(pocket).tolist()
    assert 500 < len(allowed) < 2560
    assert not {*pocket.tokenizer.all_special_ids} & {*allowed}


def test_a_request_that_occurs_twice_is_an_error() -> None:
    editable = tiny_editable()
    editable.intervene(Prompting(around="{prompt} w9 {prompt}"))
    with pytest.raises(ModelError, match="2 times") as error:
        search_suffix(editable, (Message("user", "w1"),), TARGET)
    assert error.value.code == "suffix-request-repeated"
