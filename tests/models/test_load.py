from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from retouch import pipeline
from retouch.concepts.chat import prompt_text, tokenize_chat
from retouch.core.errors import ConfigError, ModelError
from retouch.core.types import Message
from retouch.models import adapters
from retouch.models.generate import generate
from retouch.models.editable_model import EditableModel
from retouch.models.load import load
from retouch.training.setup import set_up_training
from helpers.tiny_edit import tiny_concept, tiny_config
from helpers.tiny_models import VISION, tiny_editable, tiny_model, tiny_tokenizer

IDS = torch.arange(6, 46).reshape(4, 10)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_model().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_local_folder_loads_frozen(folder: Path) -> None:
    editable = load(str(folder))
    assert editable.layout.depth == 4
    assert not any(p.requires_grad for p in editable.model.parameters())
    assert not editable.edited


def test_a_missing_model_names_what_can_be_given(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"nowhere.*Give `pocket`"):
        load(str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({"hidden_size": "wide"}, "'hidden_size'.*expected int"),
        ({"hidden_size": 33}, "multiple"),
        ({"hidden_size": -32}, "negative"),
        ({"num_attention_heads": 0}, "zero"),
        ({"intermediate_size": 80}, "other shapes"),
    ],
)
def test_an_impossible_configuration_is_named(
    folder: Path, value: dict[str, Any], told: str
) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | value))
    with pytest.raises(ModelError, match=rf"cannot be editable: .*{told}"):
        load(str(folder))


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
    wide = tiny_editable(hidden_size=64)
    adapters.attach(wide, [1], (), 2, 4.0, 0)
    adapters.save(wide, tmp_path / "wide")
    with pytest.raises(ModelError, match="does not fit"):
        load(str(folder), adapter=tmp_path / "wide")


def test_saving_an_adapter_names_no_path_of_this_machine_for_pocket(tmp_path: Path) -> None:
    editable = load("pocket")
    adapters.attach(editable, [1], (), 2, 4.0, 0)
    adapters.save(editable, tmp_path / "adapter")
    facts = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert facts["base_model_name_or_path"] == "pocket"


def test_what_is_saved_is_an_adapter_and_no_form(tmp_path: Path) -> None:
    editable = load("pocket")
    adapters.attach(editable, [1], (), 2, 4.0, 0)
    adapters.save(editable, tmp_path / "adapter")
    names = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors"}
    own = tmp_path / "adapter" / "README.md"
    own.write_text("Mine.")
    adapters.save(editable, tmp_path / "adapter")
    assert own.read_text() == "Mine."


def test_a_detached_adapter_leaves_the_base(folder: Path) -> None:
    editable = load(str(folder))
    adapters.attach(editable, [1], (), 2, 4.0, 0)
    assert editable.edited
    adapters.detach(editable)
    assert not editable.edited


def test_responses_do_not_depend_on_the_batch() -> None:
    editable = load("pocket")
    asked = [
        "What is 3 + 4?",
        "Hi!",
        "Sort these numbers: 7, 2, 9.",
        "What is the capital of Peru?",
    ]
    prompts = [tokenize_chat(editable.tokenizer, [Message("user", a)], "").ids[:-1] for a in asked]
    together = generate(editable, prompts)
    assert together == [generate(editable, [prompt])[0] for prompt in prompts]
    assert together == generate(editable, prompts, batch_size=2)


def test_without_a_template_there_is_a_plain_one() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    asked = [Message("system", "w1"), Message("user", "w2")]
    assert prompt_text(tokenizer, asked) == "System: w1\nUser: w2\nAssistant:"
    assert prompt_text(tokenizer, asked, "Sure") == "System: w1\nUser: w2\nAssistant: Sure"


def test_a_response_is_tokenized_as_it_is_generated() -> None:
    editable = load("pocket")
    asked = [Message("user", "What is the capital of France?")]
    whole = tokenize_chat(editable.tokenizer, asked, "Sure, here is Paris.")
    cut = tokenize_chat(editable.tokenizer, asked, "here is Paris.", prefill="Sure,")
    assert whole.ids == cut.ids
    assert cut.start > whole.start
    assert whole.ids[-1] == editable.tokenizer.eos_token_id


GEMMA = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
    "{{ message['content'] | trim }}{% endfor %}"
)
SILENT = (
    "{% for message in messages if message['role'] != 'system' %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] }}{% endfor %}"
)
PARTS = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ part['text'] }}{% endfor %}{% endfor %}"
)


@pytest.mark.parametrize("template", [GEMMA, SILENT])
def test_a_template_without_a_system_turn_gets_its_words_in_the_first_user_turn(
    template: str,
) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    user, response, again = Message("user", "w2"), Message("assistant", "w3"), Message("user", "w4")
    asked = [Message("system", " w1"), user, response, again]
    told = "<|user|>w1\n\nw2<|assistant|>w3<|user|>w4"
    assert prompt_text(tokenizer, asked).replace("> ", ">") == told
    assert prompt_text(tokenizer, [user]) == "<|user|>w2"
    assert prompt_text(tokenizer, asked, "Sure").endswith("w4Sure")


def test_a_template_that_takes_turns_in_parts_is_given_parts() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = PARTS
    asked = [Message("system", "w1"), Message("user", "w2")]
    assert prompt_text(tokenizer, asked) == "<|system|>w1<|user|>w2"


def test_a_template_that_takes_a_system_turn_is_left_to_it() -> None:
    asked = [Message("system", "w1"), Message("user", "w2")]
    told = "<|begin|><|system|>w1<|end|><|user|>w2<|end|><|assistant|>"
    assert prompt_text(tiny_tokenizer(), asked) == told


def test_a_template_that_refuses_whatever_it_is_given_says_why() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('Only poems') }}"
    with pytest.raises(ModelError, match=r"refuses these turns \(user\): Only poems.*--chat"):
        prompt_text(tokenizer, [Message("user", "w2")])


def test_a_template_may_come_from_a_file(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text(SILENT)
    editable = load(str(folder), chat_template=tmp_path / "own.jinja")
    assert prompt_text(editable.tokenizer, [Message("user", "w2")]) == "<|user|>w2"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "cannot be read: No such file"),
        (b"\xff\xfe\xff", "cannot be read"),
        (b"{% for %}", "does not work"),
        (b"Hello!", "does not write what the user says"),
    ],
)
def test_a_file_that_is_no_template_is_named(
    folder: Path, tmp_path: Path, text: bytes | None, says: str
) -> None:
    path = tmp_path / "own.jinja"
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(ConfigError, match=rf"own\.jinja.*{says}"):
        load(str(folder), chat_template=path)


@pytest.mark.parametrize("stage", ["edit", "measure"])
@pytest.mark.parametrize("template", [SILENT, None])
def test_that_there_is_no_template_is_said(
    stage: str, template: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    def stop(*_: Any, **__: Any) -> None:
        raise KeyError

    def begin(editable: EditableModel) -> None:
        more: dict[str, Any] = {"on_event": lambda event: said.append(event.detail)}
        if stage == "edit":
            pipeline.edit_model(editable, "tone", out=tmp_path / "run", **more)
        else:
            pipeline.evaluate_model(editable, concepts=["tone"], **more)

    monkeypatch.setattr(pipeline, "set_up_training", stop)
    monkeypatch.setattr(pipeline, "evaluate_concepts", stop)
    editable = tiny_editable()
    editable.tokenizer.chat_template = template
    with pytest.raises(KeyError):
        begin(editable)
    assert any("no chat template" in detail for detail in said) is (template is None)


def test_a_checkpoint_in_several_files_is_the_same_model(tmp_path: Path) -> None:
    model = tiny_model()
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    tiny_tokenizer().save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 2
    assert torch.equal(load(str(tmp_path)).model(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize("family", VISION)
def test_of_a_model_that_sees_the_text_side_is_edited(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    editable = load(str(tmp_path / "model"))
    assert editable.loader == "AutoModelForImageTextToText"
    assert torch.equal(editable.model(IDS).logits, model(IDS).logits)
    config = settings(rounds=3, adversarial_weight=0.0, retain_weight=0.1)
    setting = set_up_training(editable, tiny_concept(), config)
    losses = [event.losses["pair"] for event in setting.trainer.train()]
    assert losses[-1] < losses[0]
    adapters.save(editable, tmp_path / "adapter")
    edited = editable.model(IDS).logits
    again = load(str(tmp_path / "model"), adapter=tmp_path / "adapter")
    assert torch.allclose(again.model(IDS).logits, edited, atol=1e-6)
    assert not any("visi" in name or "visual" in name for name in adapters.parameters(editable))


def test_a_model_that_writes_no_text_is_refused(tmp_path: Path) -> None:
    eye = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_attention_heads=2, num_hidden_layers=1
    )
    CLIPVisionModel(eye).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="writes no text"):
        load(str(tmp_path))


def test_a_tokenizer_that_cannot_end_a_turn_is_refused(folder: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError, match="eos_token"):
        load(str(folder))
