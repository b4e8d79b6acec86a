"""Export: an adapter or a merged model in a folder of its own, with its card."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from retouch.concepts.concept import Concept
from retouch.concepts.registry import load_concept
from retouch.core.config import EditConfig
from retouch.core.errors import ConfigError, RunError
from retouch.core.run_dir import RunDir, atomic_folder, atomic_write
from retouch.reporting.model_card import Form, render_card

Format = Literal["peft", "merged"]
FORMATS: tuple[Format, ...] = get_args(Format)


def export(run: RunDir, format: Format, out: Path) -> Path:
    """Write the run's edit where others can load it without Retouch.

    Args:
        run: a finished run.
        format: `peft`, the adapter alone; or `merged`, a whole transformers model in safetensors
            with its tokenizer.
        out: a folder that does not exist yet, or is empty.

    Raises:
        RunError: the run is not finished, or `out` is in use or cannot be written.
        ModelError: the base model is not to be had (`merged` alone needs it).
    """
    if format not in FORMATS:
        raise ConfigError(f"There is no format {format!r}.", f"Choose of: {', '.join(FORMATS)}.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"{out} exists and is not an empty folder.", "Choose another `--out`.")
    if not (run.adapter / "adapter_config.json").is_file():
        raise RunError(
            f"The run {run.path} has no adapter yet.",
            f"Finish it: `retouch edit --resume {run.path}`.",
        )
    config = run.config()
    card = _card(run, config, format)
    with atomic_folder(out) as folder:
        if format == "peft":
            shutil.copytree(run.adapter, folder, dirs_exist_ok=True)
        else:
            _write_merged(run, config, folder)
        shutil.copyfile(run.path / "config.yaml", folder / "retouch.yaml")
        atomic_write(folder / "README.md", card)
    return out


def concept_facts(concept: Concept) -> dict[str, Any]:
    """What `run.json` keeps of a concept under `concept`, so that its file may move away."""
    return {
        "name": concept.name,
        "title": concept.title,
        "description": concept.description,
        "weakens": concept.weakens,
        "source": concept.source,
        "hash": concept.hash,
    }


def _card(run: RunDir, config: EditConfig, form: Form) -> str:
    provenance = run.provenance()
    facts = provenance.get("concept")
    if isinstance(facts, Mapping) and {"name", "title", "description", "weakens"} <= facts.keys():
        concept = Concept(
            name=facts["name"],
            title=facts["title"],
            description=facts["description"],
            examples={},
            directions={},
            weakens=facts["weakens"],
            source=facts.get("source", ""),
            hash=facts.get("hash", ""),
        )
    else:
        concept = load_concept(config.concept)
    measured = (run.path / "metrics.json").is_file()
    return render_card(config, concept, run.metrics() if measured else [], provenance, form=form)


def _write_merged(run: RunDir, config: EditConfig, folder: Path) -> None:
    from retouch.models.adapters import merged
    from retouch.models.load import load

    # Unquantised, even where the adapter was trained on quantised weights: it is merged.
    options = config.load.model_copy(
        update={"device": "cpu", "quantize": "none", "max_device_memory": None, "fsdp": False}
    )
    editable = load(config.model, options, adapter=run.adapter)
    merged(editable).save_pretrained(str(folder))
    editable.tokenizer.save_pretrained(str(folder))
