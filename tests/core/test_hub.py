"""The hub is asked once, and its answer is one message."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

from helpers.tiny_models import save_tiny
from retouch.core import hub
from retouch.core.errors import DataError, ModelError
from retouch.core.hub import list_hub_files
from retouch.models import load as loading
from retouch.models.load import load


def without_response(kind: type[Exception]) -> Exception:
    """An error of the hub's client, which needs a response of its network library otherwise."""
    return kind.__new__(kind, "no")


def files(names: Any) -> list[Any]:
    return [SimpleNamespace(rfilename=one, size=3) for one in names]


def answer(monkeypatch: pytest.MonkeyPatch, found: Any) -> list[str]:
    """Let the hub answer with files, or raise an error; the names that it is asked for."""
    names: list[str] = []

    class Api:
        def model_info(self, name: str, **_: Any) -> Any:
            names.append(name)
            if isinstance(found, Exception):
                raise found
            return SimpleNamespace(siblings=files(found))

        dataset_info = model_info

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    return names


def test_files_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, ["config.json", "model.safetensors"])
    found = list_hub_files("me/model", raises=ModelError)
    assert found == {"config.json": 3, "model.safetensors": 3}


@pytest.mark.parametrize(
    ("found", "code"),
    [
        (HFValidationError("bad"), "model-not-found"),
        (without_response(RepositoryNotFoundError), "model-not-found"),
        (without_response(GatedRepoError), "model-gated"),
        (OSError("Name or service not known"), "hub-unreachable"),
        (TimeoutError(), "hub-unreachable"),
    ],
)
def test_each_answer_is_one_message(
    monkeypatch: pytest.MonkeyPatch, found: Exception, code: str
) -> None:
    names = answer(monkeypatch, found)
    with pytest.raises(ModelError) as raised:
        load("me/model")
    assert raised.value.code == code
    assert "me/model" in raised.value.message
    assert names == ["me/model"]  # once, and nothing is tried after that
    with pytest.raises(DataError) as of_data:
        list_hub_files("me/data", raises=DataError, kind="dataset")
    assert of_data.value.code == code.replace("model", "dataset")


def test_a_cached_model_is_loaded_where_the_hub_cannot_be_reached(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = save_tiny(tmp_path / "snapshot")
    answer(monkeypatch, OSError("no network"))
    for module in (hub, loading):
        monkeypatch.setattr(module, "cached_folder", lambda *_: folder)
    assert load("me/model").name == "me/model"
    (folder / "model.safetensors").unlink()  # not all is cached
    with pytest.raises(ModelError, match="cannot be reached"):
        load("me/model")
    answer(monkeypatch, without_response(RepositoryNotFoundError))
    with pytest.raises(ModelError, match="has no model"):
        load("me/model")
