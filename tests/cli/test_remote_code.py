"""A stranger's code runs only with `--trust-remote-code` on the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from helpers.command_line import call
from retouch.concepts.pack import save_pack
from retouch.concepts.registry import load_concept
from retouch.core.config import EditConfig, LoadConfig
from retouch.core.config_file import dump_yaml
from retouch.core.run_dir import RunDir
from retouch.models.load import POCKET

CODE = """
import pathlib
pathlib.Path({mark!r}).touch()
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class Config(LlamaConfig):
    model_type = "stranger"
class Model(LlamaForCausalLM):
    config_class = Config
class Tokenizer(PreTrainedTokenizerFast):
    pass
"""


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """The file that the code creates."""
    return tmp_path / "the-code-ran"


@pytest.fixture
def model(tmp_path: Path, mark: Path) -> str:
    """A model folder with code for its configuration, its weights and its tokenizer."""
    folder = tmp_path / "model"
    shutil.copytree(POCKET, folder)
    config = json.loads((folder / "config.json").read_text())
    classes = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    classes |= {"AutoModelForSequenceClassification": "code.Model"}
    config |= {"model_type": "stranger", "auto_map": classes}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer |= {"auto_map": {"AutoTokenizer": [None, "code.Tokenizer"]}}
    tokenizer["tokenizer_class"] = "Tokenizer"
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    (folder / "code.py").write_text(CODE.format(mark=str(mark)))
    return str(folder)


@pytest.fixture
def run(tmp_path: Path, model: str) -> str:
    """A run that asks for the code, with an adapter."""
    config = EditConfig(model=model, load=LoadConfig(trust_remote_code=True))
    made = RunDir.create(tmp_path / "run", config)
    made.adapter.mkdir()
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "target_modules": ["q_proj"]}
    settings |= {"auto_mapping": {"parent_library": "code", "base_model_class": "Model"}}
    (made.adapter / "adapter_config.json").write_text(json.dumps(settings))
    (made.adapter / "adapter_model.safetensors").write_bytes(b"")
    return str(made.path)


COMMANDS = (
    "edit {model}",
    "edit {model} --config {config}",
    "edit {model} --concept {pack}",
    "edit --resume {run}",
    "edit {model} --resume {run}",
    "doctor {model} --contrast",
    "doctor {model} --config {config}",
    "chat {model} --prompt hello",
    "chat {model} --adapter {run} --prompt hello",
    "chat pocket --adapter {run} --prompt hello",
    "chat --adapter {run} --prompt hello",
    "evaluate {model} --limit 2",
    "evaluate {model} --adapter {run} --limit 2",
    "evaluate pocket --adapter {run} --limit 2",
    "evaluate pocket --judge {model} --limit 2",
    "robustness {model} --adapter {run} --limit 2",
    "merge {run} {run} --model {model} --out out",
    "export {run} --model {model} --format merged --out out",
    "compare {model} --methods none --seeds 1",
    "tune {model} --method lorra --trials 1",
    "concept create {model} --instruction hello --out out",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_runs_the_code_of_a_model(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    model: str,
    run: str,
    mark: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "shared.yaml"
    demanding = EditConfig(model=model, load=LoadConfig(trust_remote_code=True))
    config.write_text(dump_yaml(demanding))
    pack = tmp_path / "pack"
    save_pack(load_concept("tone"), pack)
    values = yaml.safe_load((pack / "concept.yaml").read_text())
    values["settings"] = {"raise": {"load": {"trust_remote_code": True}}}
    (pack / "concept.yaml").write_text(yaml.safe_dump(values))
    words = command.format(model=model, run=run, config=config, pack=pack).split()
    result = call(*words)
    assert result.exit_code not in (0, 1) or "remote-code" in result.output, result.output
    assert "Traceback" not in result.output
    assert not mark.exists()


def test_the_code_runs_where_the_command_line_says_so(model: str, mark: Path) -> None:
    call("chat", model, "--trust-remote-code", "--prompt", "hello")
    assert mark.exists()
