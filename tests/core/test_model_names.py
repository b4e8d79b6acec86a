"""Short names of models, and the names that other machines know them by."""

from __future__ import annotations

from pathlib import Path

import pytest

from retouch.core.model_names import MODEL_HELP, NAMED_MODELS, public_name


def test_the_help_lists_all_names() -> None:
    assert list(NAMED_MODELS) == ["pocket", "smollm2"]
    assert all(f"`{name}`" in MODEL_HELP for name in NAMED_MODELS)


def test_public_names_have_no_folder_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert public_name("pocket") == "pocket"
    assert public_name("smollm2") == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert public_name("/home/me/models/tiny.GGUF") == "tiny.GGUF"
    assert public_name("owner/name") == "owner/name"
    assert public_name("/home/somebody/models/tiny") == "tiny"
    assert public_name("") == ""
    assert public_name("x" * 10_000 + "/\0") == "x" * 10_000 + "/\0"
    folder = tmp_path / "models" / "mine"
    folder.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert public_name("models/mine") == "mine"
    monkeypatch.chdir(folder)
    assert public_name(".") == "mine"
