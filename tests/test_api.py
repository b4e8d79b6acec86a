"""The Python API: names and objects are accepted alike, and what is recorded is what was used."""

from __future__ import annotations

import inspect
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

import retouch
from helpers.pocket_edit import small_settings
from helpers.tiny_models import tiny_model, tiny_tokenizer
from retouch.concepts.chat import prompt_ids
from retouch.concepts.registry import concept_for_model
from retouch.core import chat_template
from retouch.core.config import LoadConfig
from retouch.core.errors import ConfigError, ModelError, RunError
from retouch.core.run_dir import RunDir
from retouch.core.types import Message
from retouch.models.load import POCKET
from retouch.models.load import load as load_model
from retouch.reporting.export import export
from retouch.run_record import with_recorded_template
from retouch.stages import NO_CHAT_TEMPLATE

ONE_ROUND = {"train.rounds": 1, "evaluation.suites": "none"}
PROMPTS = [f"Name {i} things that float." for i in range(12)]


def pocket(dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    model = AutoModelForCausalLM.from_pretrained(POCKET, dtype=dtype)
    return model, AutoTokenizer.from_pretrained(POCKET)


def pairs() -> retouch.Concept:
    return retouch.Concept.from_pairs(
        source=PROMPTS,
        target=[f"{prompt} Be cheerful." for prompt in PROMPTS],
        name="cheer",
    )


def weights(folder: Path) -> bytes:
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


def test_a_name_and_a_loaded_model_give_the_same_adapter(tmp_path: Path) -> None:
    config = small_settings(ONE_ROUND)
    retouch.edit("pocket", concept="pocket-tone", config=config, output_dir=tmp_path / "name")
    model, tokenizer = pocket()
    result = retouch.edit(
        model, tokenizer, "pocket-tone", config=config, output_dir=tmp_path / "object"
    )
    assert isinstance(result.model, PeftModel)
    first, second = (tmp_path / name for name in ("name", "object"))
    assert weights(first) == weights(second)


def test_a_concept_object_is_stored_in_the_run_and_resumed_from_there(tmp_path: Path) -> None:
    stopped = tmp_path / "stopped"
    config = small_settings({"evaluation.suites": "none"})

    def stop(event: Any) -> None:
        if getattr(event, "round", 0) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        retouch.edit("pocket", concept=pairs(), config=config, output_dir=stopped, on_event=stop)
    assert RunDir.open(stopped).has_concept
    retouch.resume(stopped, on_event=lambda event: None)
    whole = tmp_path / "whole"
    retouch.edit("pocket", concept=pairs(), config=config, output_dir=whole)
    assert weights(stopped) == weights(whole)


def test_a_loaded_model_keeps_and_records_its_own_settings(tmp_path: Path) -> None:
    model, tokenizer = pocket(torch.bfloat16)
    config = small_settings(ONE_ROUND)
    result = retouch.edit(
        model, tokenizer, "pocket-tone", config=config, output_dir=tmp_path / "run"
    )
    run = RunDir.open(result.path)
    assert run.config().load.dtype == "bfloat16"
    facts = run.provenance()["model"]
    assert facts["dtype"] == "bfloat16"
    assert facts["in_memory"] is True
    assert facts["fingerprint"] == result.editable.fingerprint  # type: ignore[union-attr]
    assert run.chat_template.read_text() == tokenizer.chat_template
    card = (result.path / "README.md").read_text()
    assert f"**{POCKET.name}**" in card
    assert str(POCKET) not in card  # a folder of this machine


def test_load_options_beside_a_loaded_model_are_an_error(tmp_path: Path) -> None:
    model, tokenizer = pocket()
    for config in ({"load": {"dtype": "bfloat16"}}, {"load": {"quantize": "4bit"}}):
        with pytest.raises(ConfigError) as error:
            retouch.edit(
                model, tokenizer, "pocket-tone", config=config, output_dir=tmp_path / "run"
            )
        assert error.value.code == "options-of-loaded-model"
    assert not (tmp_path / "run").exists()


def test_a_transformers_model_needs_its_tokenizer_and_a_name_has_its_own() -> None:
    model, tokenizer = pocket()
    with pytest.raises(ConfigError) as error:
        retouch.edit(model, concept="pocket-tone")
    assert error.value.code == "tokenizer-missing"
    with pytest.raises(ConfigError) as error:
        retouch.edit("pocket", tokenizer, "pocket-tone")
    assert error.value.code == "tokenizer-unexpected"


def test_a_model_with_an_adapter_is_refused() -> None:
    model, tokenizer = pocket()
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ModelError) as error:
        retouch.edit(adapted, tokenizer, "pocket-tone")
    assert error.value.code == "model-edited"


def _stopped_run(model: Any, tokenizer: Any, path: Path) -> Path:
    def stop(event: Any) -> None:
        if getattr(event, "round", 0) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        retouch.edit(
            model,
            tokenizer,
            pairs(),
            config=small_settings({"evaluation.suites": "none"}),
            output_dir=path,
            on_event=stop,
        )
    return path


def test_a_run_of_a_model_from_a_folder_is_resumed_from_what_was_recorded(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    model, tokenizer = pocket()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    from_folder = AutoModelForCausalLM.from_pretrained(folder)
    run = _stopped_run(from_folder, tokenizer, tmp_path / "run")
    with pytest.raises(ConfigError, match="`model`") as error:
        retouch.resume(run)
    assert error.value.code == "caller-only"
    cpu = LoadConfig(device="cpu")
    result = retouch.resume(run, str(folder), load_config=cpu, on_event=lambda event: None)
    assert result.config.model == str(folder)
    assert RunDir.open(run).finished


def test_resuming_with_other_weights_is_an_error(tmp_path: Path) -> None:
    model, tokenizer = pocket()
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(1.5)
    run = _stopped_run(model, tokenizer, tmp_path / "run")
    name = RunDir.open(run).config().model
    with pytest.raises(RunError) as error:
        retouch.resume(run, name, load_config=LoadConfig(device="cpu"))
    assert error.value.code == "model-changed"
    again, _ = pocket()
    with torch.no_grad():
        again.model.embed_tokens.weight.mul_(1.5)
    assert retouch.resume(run, again, tokenizer).editable is not None


def test_a_model_without_a_name_says_what_resume_needs(tmp_path: Path) -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    concept = retouch.Concept.from_pairs(
        source=[f"w{i} w80" for i in range(12)],
        target=[f"w{i}" for i in range(12)],
        retain=[f"w{i} w60" for i in range(12)],
    )
    path = tmp_path / "run"

    def stop(event: Any) -> None:
        if getattr(event, "round", 0) == 1:
            raise KeyboardInterrupt

    config = small_settings({"evaluation.suites": "none"})
    with pytest.raises(KeyboardInterrupt):
        retouch.edit(model, tokenizer, concept, config=config, output_dir=path, on_event=stop)
    with pytest.raises(RunError) as error:
        retouch.resume(path)
    assert error.value.code == "model-in-memory"
    assert retouch.resume(path, tiny_model(), tiny_tokenizer()).editable is not None


def test_a_run_records_the_time_and_the_variables_of_its_chat_template(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, file = tmp_path / "model", tmp_path / "clock.jinja"
    model, tokenizer = pocket()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    clock = "{{ '' if brief else strftime_now('%d %b %Y: ') }}"
    file.write_text(clock + tokenizer.chat_template)
    load = {"chat_template": str(file), "chat_template_kwargs": {"brief": False}, "device": "cpu"}
    quick = {"evaluation.suites": "none", "data.ignore_contrast": True}
    config = {**small_settings(quick), "load": load}

    def stop(event: Any) -> None:
        if getattr(event, "round", 0) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(chat_template, "_process_time", lambda: "2024-02-05T09:30:00")
    path = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        retouch.edit(str(folder), concept=pairs(), config=config, output_dir=path, on_event=stop)
    recorded = RunDir.open(path).config().load
    assert recorded.chat_template_time == "2024-02-05T09:30:00"
    assert recorded.chat_template_kwargs == {"brief": False}
    # On another day, the resumed run and an evaluation of its adapter write the same prompts.
    monkeypatch.setattr(chat_template, "_process_time", lambda: "2031-12-24T18:00:00")
    cpu = LoadConfig(device="cpu")
    result = retouch.resume(path, str(folder), load_config=cpu, on_event=lambda event: None)
    assert result.editable is not None
    prompt = [Message("user", "Hi!")]
    expected = prompt_ids(result.editable.tokenizer, prompt)
    assert "05 Feb 2024" in result.editable.tokenizer.decode(expected)
    options = with_recorded_template(LoadConfig(chat_template=str(file)), str(folder), path)
    again = load_model(str(folder), options)
    assert prompt_ids(again.tokenizer, prompt) == expected
    other = with_recorded_template(LoadConfig(), "pocket", path)
    assert other == LoadConfig()
    given = LoadConfig(chat_template_time="2000-01-01")
    assert with_recorded_template(given, str(folder), path).chat_template_time == "2000-01-01"


def test_a_failed_edit_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model, tokenizer = pocket()
    editable = retouch.EditableModel.from_transformers(model, tokenizer)
    before = editable.fingerprint
    with pytest.raises(KeyboardInterrupt):
        retouch.edit(
            editable,
            concept="pocket-tone",
            config=small_settings(ONE_ROUND),
            output_dir=tmp_path / "run",
            on_event=_interrupt_training,
        )
    assert not editable.edited
    assert editable.fingerprint == before


def _interrupt_training(event: Any) -> None:
    if getattr(event, "round", 0):
        raise KeyboardInterrupt


def test_evaluate_accepts_objects_and_returns_a_table(tmp_path: Path) -> None:
    config = small_settings(ONE_ROUND)
    run = retouch.edit(
        "pocket", concept="pocket-tone", config=config, output_dir=tmp_path / "run"
    ).path
    model, tokenizer = pocket()
    found = retouch.evaluate(model, tokenizer, adapter=run, concepts=["pocket-capability"], limit=4)
    table = found.metrics.to_pandas()
    assert list(table.columns[:5]) == ["suite", "metric", "unit", "better", "before"]
    assert table["after"].notna().all()
    assert not [name for name, _ in model.named_parameters() if "lora" in name]
    html = found.metrics._repr_html_()
    assert "<table>" in html
    assert "task accuracy" in html
    by_name = retouch.evaluate("pocket", adapter=run, concepts=["pocket-capability"], limit=4)
    assert by_name.metrics == found.metrics


def test_texts_of_others_are_escaped_in_notebooks(tmp_path: Path) -> None:
    from retouch.core.metrics import Metrics
    from retouch.core.types import Record, Score

    score = Score(0.5, 0.4, 0.6, 10)
    html = Metrics([Record("<b>x</b>", "<script>", "rate", "higher", score)])._repr_html_()
    assert "<script>" not in html
    assert "<b>x</b>" not in html


def test_progress_is_logged_under_the_name_retouch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = small_settings(ONE_ROUND)
    with caplog.at_level(logging.INFO, logger="retouch"):
        retouch.edit("pocket", concept="pocket-tone", config=config, output_dir=tmp_path / "run")
    messages = [record.message for record in caplog.records if record.name == "retouch"]
    assert any(message.startswith("layers: adapt") for message in messages)
    assert any(message.startswith("round 1 of 1") for message in messages)
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="retouch"):
        retouch.edit("pocket", concept="pocket-tone", config=config, output_dir=tmp_path / "quiet")
    assert not [record for record in caplog.records if record.name == "retouch"]


@pytest.mark.parametrize("name", ["edit", "resume", "evaluate", "compare", "load"])
def test_public_functions_have_explicit_documented_arguments(name: str) -> None:
    function = getattr(retouch, name)
    signature = inspect.signature(function)
    kinds = {parameter.kind for parameter in signature.parameters.values()}
    assert inspect.Parameter.VAR_KEYWORD not in kinds
    doc = inspect.getdoc(function) or ""
    for parameter in signature.parameters:
        assert f"{parameter}:" in doc, f"{name} does not document {parameter}"


def test_pushing_uploads_the_adapter_and_its_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    uploaded: dict[str, Any] = {}

    class FakeApi:
        def __init__(self, token: str | None = None) -> None:
            uploaded["token"] = token

        def create_repo(self, repo_id: str, **options: Any) -> None:
            uploaded["repo"] = (repo_id, options)

        def upload_folder(self, *, repo_id: str, folder_path: str, **_: Any) -> str:
            uploaded["files"] = sorted(file.name for file in Path(folder_path).iterdir())
            return f"https://huggingface.co/{repo_id}/commit/1"

    config = small_settings(ONE_ROUND)
    result = retouch.edit(
        "pocket", concept="pocket-tone", config=config, output_dir=tmp_path / "run"
    )
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    address = result.push_to_hub("me/cheerful", private=True, token="secret")
    assert address == "https://huggingface.co/me/cheerful/commit/1"
    assert uploaded["repo"] == ("me/cheerful", {"private": True, "exist_ok": True})
    assert uploaded["token"] == "secret"
    assert {"README.md", "adapter_config.json", "adapter_model.safetensors"} <= set(
        uploaded["files"]
    )


def test_a_missing_chat_template_is_reported(tmp_path: Path) -> None:
    model, tokenizer = pocket()
    tokenizer.chat_template = None
    details: list[str] = []

    def on_event(event: Any) -> None:
        details.append(getattr(event, "detail", ""))

    config = small_settings({**ONE_ROUND, "data.ignore_contrast": True})
    retouch.edit(
        model,
        tokenizer,
        "pocket-tone",
        config=config,
        output_dir=tmp_path / "run",
        on_event=on_event,
    )
    assert NO_CHAT_TEMPLATE in details
    details.clear()
    model, _ = pocket()
    retouch.evaluate(model, tokenizer, concepts=["pocket-capability"], limit=2, on_event=on_event)
    assert NO_CHAT_TEMPLATE in details


def test_a_concept_object_with_the_name_of_a_built_in_one_is_stored(tmp_path: Path) -> None:
    concept = retouch.Concept.from_pairs(
        source=PROMPTS, target=[f"{prompt} Be cheerful." for prompt in PROMPTS], name="safety"
    )
    config = small_settings(ONE_ROUND)
    path = tmp_path / "run"
    retouch.edit("pocket", concept=concept, config=config, output_dir=path)
    used = concept_for_model(concept, "pocket")
    assert retouch.Concept.from_file(RunDir.open(path).concept).hash == used.hash


def test_the_merged_export_has_the_chat_template_of_the_loaded_model(tmp_path: Path) -> None:
    model, tokenizer = pocket()
    tokenizer.chat_template = "{# changed #}" + tokenizer.chat_template
    config = small_settings(ONE_ROUND)
    run = retouch.edit(model, tokenizer, "pocket-tone", config=config, output_dir=tmp_path / "run")
    export(RunDir.open(run.path), "merged", tmp_path / "merged", model=run.config.model)
    exported = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert exported.chat_template == tokenizer.chat_template


def test_what_was_mapped_is_said_wherever_a_file_is_used(tmp_path: Path) -> None:
    file = tmp_path / "data.csv"
    kinds = ("positive", "negative")
    rows = [f"Question {i} of {kind}?,{kind},x" for i in range(8) for kind in kinds]
    file.write_text("\n".join(["prompt,label,comment", *rows]) + "\n")
    events: list[Any] = []
    retouch.evaluate("pocket", concepts=[str(file)], limit=1, on_event=events.append)
    said = [one.detail for one in events if one.stage == "data"]
    assert any("comment" in message for message in said)
