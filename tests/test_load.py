from __future__ import annotations

import json
from pathlib import Path

import pytest

from retouch.concepts.render import prompt_text, render
from retouch.core.errors import ModelError
from retouch.core.types import Message
from retouch.models import adapters
from retouch.models.generate import generate
from retouch.models.load import load
from tiny import tiny_loaded, tiny_model, tiny_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_model().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_local_folder_loads_frozen(folder: Path) -> None:
    loaded = load(str(folder))
    assert loaded.layout.depth == 4
    assert not any(p.requires_grad for p in loaded.model.parameters())
    assert not loaded.edited


def test_a_missing_model_names_what_can_be_given(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"nowhere.*Give `pocket`"):
        load(str(tmp_path / "nowhere"))


def test_pickled_weights_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors"):
        load(str(folder))


def test_a_device_that_is_not_there(folder: Path) -> None:
    with pytest.raises(ModelError, match="--device cpu"):
        load(str(folder), device="nonsense")


def test_a_folder_that_is_no_adapter(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"adapter_config\.json"):
        load(str(folder), adapter=tmp_path)


def test_an_adapter_of_another_model_does_not_fit(folder: Path, tmp_path: Path) -> None:
    wide = tiny_loaded(hidden_size=64)
    adapters.attach(wide, [1], (), 2, 4.0, 0)
    adapters.save(wide, tmp_path / "wide")
    with pytest.raises(ModelError, match="does not fit"):
        load(str(folder), adapter=tmp_path / "wide")


def test_saving_an_adapter_names_no_path_of_this_machine_for_pocket(tmp_path: Path) -> None:
    loaded = load("pocket")
    adapters.attach(loaded, [1], (), 2, 4.0, 0)
    adapters.save(loaded, tmp_path / "adapter")
    facts = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert facts["base_model_name_or_path"] == "pocket"


def test_a_detached_adapter_leaves_the_base(folder: Path) -> None:
    loaded = load(str(folder))
    adapters.attach(loaded, [1], (), 2, 4.0, 0)
    assert loaded.edited
    adapters.detach(loaded)
    assert not loaded.edited


def test_replies_do_not_depend_on_the_batch() -> None:
    loaded = load("pocket")
    asked = [
        "What is 3 + 4?",
        "Hi!",
        "Sort these numbers: 7, 2, 9.",
        "What is the capital of Peru?",
    ]
    prompts = [render(loaded.tokenizer, [Message("user", a)], "").ids[:-1] for a in asked]
    together = generate(loaded, prompts)
    assert together == [generate(loaded, [prompt])[0] for prompt in prompts]
    assert together == generate(loaded, prompts, batch_size=2)


def test_without_a_template_there_is_a_plain_one() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    asked = [Message("system", "w1"), Message("user", "w2")]
    assert prompt_text(tokenizer, asked) == "System: w1\nUser: w2\nAssistant:"
    assert prompt_text(tokenizer, asked, "Sure") == "System: w1\nUser: w2\nAssistant: Sure"


def test_a_reply_is_tokenized_as_it_is_generated() -> None:
    loaded = load("pocket")
    asked = [Message("user", "What is the capital of France?")]
    whole = render(loaded.tokenizer, asked, "Sure, here is Paris.")
    cut = render(loaded.tokenizer, asked, "here is Paris.", prefill="Sure,")
    assert whole.ids == cut.ids
    assert cut.start > whole.start
    assert whole.ids[-1] == loaded.tokenizer.eos_token_id
