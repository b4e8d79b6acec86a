"""Architecture, tokenizer and location of a model are checked without its weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from helpers.preflight import codes, only_error, preflight, with_code
from helpers.tiny_models import tiny_model, tiny_tokenizer
from retouch.core.errors import ModelError
from retouch.models.checkpoint_files import check_listing
from retouch.models.layout import find_layout
from retouch.preflight import check, skeleton


def rewrite(folder: Path, name: str = "config.json", **changes: Any) -> None:
    file = folder / name
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def remove_chat_template(folder: Path) -> None:
    for file in folder.glob("chat_template*"):
        file.unlink()


def test_code_of_a_model_is_not_run(folder: Path) -> None:
    code = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    rewrite(folder, model_type="own", auto_map=code)
    (folder / "own.py").write_text("raise SystemExit('run')")
    errors = preflight(folder).errors
    assert "remote-code" in {error.code for error in errors}
    assert "`trust_remote_code`" in errors[0].hint


def test_an_unknown_architecture_is_an_error(folder: Path) -> None:
    rewrite(folder, model_type="strange")
    error = preflight(folder).errors[0]
    assert error.code == "architecture-unreadable"
    assert "transformers" in error.hint


def test_an_inconsistent_configuration_is_an_error(folder: Path) -> None:
    rewrite(folder, hidden_size=33)
    error = preflight(folder).errors[0]
    assert error.code == "architecture-unreadable"
    assert "not a multiple" in error.message
    (folder / "config.json").write_text("{")
    error = preflight(folder).errors[0]
    assert error.code == "architecture-unreadable"
    assert "JSON" in error.message


def test_an_unsupported_layout_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(model: Any) -> Any:
        raise ModelError("Two lists of blocks.", "Not supported.", code="architecture-unsupported")

    monkeypatch.setattr(skeleton, "find_layout", fail)
    assert only_error(preflight(folder)).code == "architecture-unsupported"


def test_the_quantisation_of_a_checkpoint_is_reported(folder: Path) -> None:
    rewrite(folder, quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 128})
    report = preflight(folder)
    (code,) = codes(report) & {"checkpoint-quantized", "quantization-unsupported"}
    assert "gptq, 4 bit" in with_code(report, code).message


def test_a_missing_tokenizer_is_an_error(folder: Path) -> None:
    for file in folder.glob("*token*"):
        file.unlink()
    assert only_error(preflight(folder)).code == "tokenizer-unreadable"


def test_a_tokenizer_of_another_model_is_an_error(folder: Path) -> None:
    tiny_model(vocab_size=50).save_pretrained(folder)
    error = only_error(preflight(folder))
    assert error.code == "tokenizer-mismatch"
    assert "99 tokens, the model embeds 50" in error.message


def test_a_tokenizer_without_an_end_token_is_an_error(folder: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    assert only_error(preflight(folder)).code == "tokenizer-no-eos"


def test_a_missing_chat_template_is_a_warning(folder: Path) -> None:
    assert with_code(preflight(folder), "tokenizer-complete").level == "ok"
    remove_chat_template(folder)
    report = preflight(folder)
    assert not report.errors
    finding = with_code(report, "chat-template-missing")
    assert finding.level == "warning"
    assert "`chat_template`" in finding.hint
    assert "tokenizer-complete" not in codes(report)


def test_a_template_that_rejects_the_chats_is_an_error(folder: Path) -> None:
    remove_chat_template(folder)
    rewrite(folder, "tokenizer_config.json", chat_template="{{ raise_exception('No turns.') }}")
    error = only_error(preflight(folder))
    assert error.code.startswith("chat-template")
    assert "No turns." in error.message


def test_a_chat_template_from_a_file_is_tried(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "own.jinja"
    file.write_text("{{ raise_exception('Nothing.') }}")
    settings = {"load.chat_template": str(file)}
    assert only_error(preflight(folder, settings)).code == "chat-template-invalid"
    remove_chat_template(folder)
    file.write_text("{% for message in messages %}{{ message['content'] }}{% endfor %}")
    report = preflight(folder, settings)
    assert not report.errors
    assert "chat-template-missing" not in codes(report)


def test_weights_without_an_adapter_are_counted(folder: Path, tmp_path: Path) -> None:
    assert "weights-unadapted" not in codes(preflight(folder))
    mixture = tiny_model("mixtral", num_local_experts=4)
    mixture.save_pretrained(tmp_path / "mixture")
    tiny_tokenizer().save_pretrained(tmp_path / "mixture")
    layers = {"lora.layers_to_transform": (1, 2), "discriminator.layers": (2,)}
    report = preflight(tmp_path / "mixture", layers)
    assert not report.errors
    blocks = find_layout(mixture).blocks(mixture)[1:3]
    total = sum(p.numel() for block in blocks for p in block.parameters())
    experts = 2 * (4 * 3 * 32 * 64 + 4 * 32)  # with their routers
    message = with_code(report, "weights-unadapted").message
    assert f"{experts:,} of the {total:,} parameters" in message
    assert "mlp.experts.down_proj, mlp.experts.gate_up_proj, mlp.gate." in message


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_the_language_model_of_a_vision_model_is_checked(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    report = preflight(tmp_path)
    assert not report.errors
    assert report.architecture.endswith("ForConditionalGeneration")
    assert report.num_layers == 4
    assert report.num_parameters == sum(p.numel() for p in model.parameters())


def test_a_model_that_generates_no_text_is_an_error(folder: Path) -> None:
    from transformers import CLIPVisionConfig

    CLIPVisionConfig(hidden_size=16, num_attention_heads=2).save_pretrained(folder)
    assert preflight(folder).errors[0].code == "architecture-unsupported"


def test_a_name_that_is_neither_folder_nor_hub_id_is_an_error(tmp_path: Path) -> None:
    for name in (str(tmp_path / "absent"), "./absent", "two words", "a/b/c"):
        error = only_error(preflight(name))
        assert error.code == "model-not-found"
        assert "no folder" in error.message


def test_an_unreachable_hub_is_an_error() -> None:
    assert only_error(preflight("nobody/nothing-here")).code == "hub-unreachable"


def test_a_cached_hub_model_needs_no_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    cached = str(folder / "config.json")
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: cached)
    assert not preflight("owner/name").errors
    (folder / "model.safetensors").unlink()
    error = only_error(preflight("owner/name"))
    assert error.code == "hub-unreachable"
    assert "not completely cached" in error.message


def test_a_download_needs_disk_space(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = skeleton.load_skeleton(str(folder), check.EditConfig().load, check.torch.float32)
    local.local, local.files = False, check_listing({"model.safetensors": 10**15})
    monkeypatch.setattr(check, "load_skeleton", lambda *_: local)
    error = only_error(preflight("owner/name"))
    assert error.code == "disk-full"
    assert "HF_HOME" in error.hint
