"""Export of an adapter or a merged model to a folder, with its model card."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Literal, get_args

from retouch.concepts.concept import Concept
from retouch.concepts.registry import load_concept
from retouch.core.atomic import atomic_folder, atomic_write, is_free
from retouch.core.config import LoadConfig
from retouch.core.config_file import dump_yaml
from retouch.core.errors import ConfigError, RunError
from retouch.core.model_names import public_name
from retouch.core.run_dir import ADAPTER_CONFIG, ADAPTER_WEIGHTS, RunDir
from retouch.reporting.model_card import Form, render_card

Format = Literal["peft", "merged"]
FORMATS: tuple[Format, ...] = get_args(Format)
CONCEPT_FACTS = ("name", "title", "description", "weakens", "source", "hash")


def export(
    run: RunDir,
    format: Format,
    output_dir: Path,
    *,
    model: str | None = None,
    trust_remote_code: bool = False,
) -> Path:
    """Write the edit of a finished run to a new or empty folder, for PEFT or transformers.

    Args:
        run: the run.
        format: `peft` is the adapter; `merged` is a whole transformers model with its tokenizer.
        output_dir: a new or empty folder.
        model: the name of the model that the run edits (`merged` only).
        trust_remote_code: run code that comes with that model.

    Raises:
        ConfigError: there is no such format, or `model` is not the one that the run edits.
        RunError: the run is not finished, or has a link in place of a file; or `output_dir` is in
            use or cannot be written.
        ModelError: the base model cannot be loaded (`merged` only).
    """
    if format not in FORMATS:
        raise ConfigError(
            f"`format` must be one of {', '.join(FORMATS)}, got {format!r}.", code="format-unknown"
        )
    if not is_free(output_dir):
        raise RunError(
            f"{output_dir} exists and is not an empty folder.",
            "Choose another `output_dir`.",
            code="path-in-use",
        )
    if not (run.adapter / ADAPTER_CONFIG).is_file():
        raise RunError(
            f"The run {run.path} has no adapter yet.",
            f"Finish it: `retouch edit MODEL --resume {run.path}`.",
            code="run-unfinished",
        )
    recorded = run.config().model
    if format == "merged" and model != recorded:
        given = "missing" if model is None else repr(model)
        raise ConfigError(
            f"The run {run.path} edits {recorded!r:.200}, and `model` is {given}.",
            "Give the model that the run edits.",
            code="models-differ",
        )
    card = _card(run, format)
    with atomic_folder(output_dir) as folder:
        if format == "peft":
            for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
                _copy(run.adapter / name, folder / name)
        else:
            _write_merged(run, recorded, trust_remote_code, folder)
        _check_regular(run.path / "config.yaml")
        atomic_write(folder / "retouch.yaml", _public_config(run))
        atomic_write(folder / "README.md", card)
    return output_dir


def _copy(source: Path, target: Path) -> None:
    """Copy a file of a run."""
    _check_regular(source)
    shutil.copyfile(source, target)


def _check_regular(source: Path) -> None:
    """Check that a file of a run is no link, which could lead to any file of this machine."""
    if source.is_symlink() or source.parent.is_symlink() or not source.is_file():
        raise RunError(
            f"{source} is not a regular file.", "Restore the run.", code="not-a-regular-file"
        )


def _public_config(run: RunDir) -> str:
    """The configuration of a run, with the names of folders and files in place of their paths."""
    config = run.config()
    template = config.load.chat_template
    names = {
        "model": public_name(config.model),
        "concept": public_name(config.concept),
        "load": config.load.model_copy(
            update={"chat_template": template and public_name(template)}
        ),
    }
    return dump_yaml(config.model_copy(update=names))


def concept_facts(concept: Concept) -> dict[str, Any]:
    """The facts about a concept for `run.json`: an export does not need the concept's file."""
    facts = {name: getattr(concept, name) for name in CONCEPT_FACTS}
    return {**facts, "source": public_name(concept.source)}


def _card(run: RunDir, form: Form) -> str:
    config, provenance = run.config(), run.provenance()
    if facts := provenance.get("concept"):
        known = {name: facts[name] for name in CONCEPT_FACTS if name in facts}
        concept = Concept(**known, examples={}, directions={})
    else:
        concept = load_concept(config.concept)
    measured = (run.path / "metrics.json").is_file()
    return render_card(config, concept, run.metrics() if measured else [], provenance, form=form)


def _write_merged(run: RunDir, model: str, trust_remote_code: bool, folder: Path) -> None:
    from retouch.models.adapters import merged
    from retouch.models.load import load

    # Unquantised, even if the adapter was trained on quantised weights, to merge without rounding.
    options = LoadConfig(
        **{**run.load_options(), "quantize": "none"},
        device="cpu",
        trust_remote_code=trust_remote_code,
    )
    editable = load(model, options, adapter=run.adapter)
    merged(editable).save_pretrained(str(folder))
    editable.tokenizer.save_pretrained(str(folder))
