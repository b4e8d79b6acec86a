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
from retouch.core.files import sha256
from retouch.core.model_names import public_name
from retouch.core.run_dir import ADAPTER_CONFIG, ADAPTER_WEIGHTS, RunDir
from retouch.core.serialization import to_plain
from retouch.evaluation.safety_probe import SafetyProbe, probe_safety, recorded_probe
from retouch.models.base_record import FILE as BASE_RECORD
from retouch.models.editable_model import EditableModel
from retouch.models.merged_checkpoint import write_merged_checkpoint
from retouch.reporting.model_card import Form, render_card
from retouch.reporting.safety_gate import check_probe, check_weakening

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
    allow_weakening: str | None = None,
) -> Path:
    """Write the edit of a finished run to a new or empty folder, for PEFT or transformers.

    Its safety is measured, with the same requests as after an edit. The adapter alone is exported
    with the figures that the edit recorded, unless the file of the adapter is another one.

    Args:
        run: the run.
        format: `peft` is the adapter; `merged` is a whole transformers model with its tokenizer.
        output_dir: a new or empty folder.
        model: the name of the model that the run edits; for `peft` only to measure the safety.
        trust_remote_code: run code that comes with that model.
        allow_weakening: the reason, where the edit weakens safety; it is written on the card.

    Raises:
        ConfigError: there is no such format; `model` is not the one that the run edits, or is
            missing.
        RefusedError: the edit weakens safety, and there is no reason.
        RunError: the run is not finished, or has a link in place of a file; or `output_dir` is in
            use or cannot be written.
        ModelError: the base model cannot be loaded.
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
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        _check_regular(run.adapter / name)
    config, concept = run.config(), _concept(run)
    check_weakening(config.direction, allow_weakening, concept)
    probe = _recorded_probe(run) if model is None and format == "peft" else None
    editable = None
    if probe is None:
        _check_model(run, config.model, model)
        editable = _load(run, config.model, trust_remote_code)
        probe = probe_safety(editable)
    check_probe(probe, allow_weakening, f"The edit of {run.path}")
    card = _card(run, format, concept, probe, allow_weakening)
    with atomic_folder(output_dir) as folder:
        if editable is not None and format == "merged":
            write_merged_checkpoint(editable, folder)
        else:
            recorded = [BASE_RECORD] if (run.adapter / BASE_RECORD).exists() else []
            for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS, *recorded):
                _copy(run.adapter / name, folder / name)
        _check_regular(run.path / "config.yaml")
        atomic_write(folder / "retouch.yaml", _public_config(run))
        atomic_write(folder / "README.md", card)
    return output_dir


def _check_model(run: RunDir, recorded: str, given: str | None) -> None:
    """Check that the caller gave the model that a run edits."""
    if given != recorded:
        found = "missing" if given is None else repr(given)
        raise ConfigError(
            f"The run {run.path} edits {recorded!r:.200}, and `model` is {found}.",
            "Give the model that the run edits: its safety is measured with this adapter.",
            code="models-differ",
        )


def _recorded_probe(run: RunDir) -> SafetyProbe | None:
    """The safety that the edit recorded; None if it is of another adapter."""
    facts = run.provenance()
    probe = recorded_probe(facts)
    if probe is None or facts["safety"].get("adapter") != sha256(run.adapter / ADAPTER_WEIGHTS):
        return None
    return probe


def _copy(source: Path, target: Path) -> None:
    """Copy a file of a run."""
    _check_regular(source)
    shutil.copyfile(source, target)


def _check_regular(source: Path) -> None:
    """Check that a file of a run is one. A link could lead to any file of this machine."""
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


def _concept(run: RunDir) -> Concept:
    """The concept of a run as far as a card shows it."""
    facts = run.provenance().get("concept")
    if not facts:
        return load_concept(run.config().concept)
    known = {name: facts[name] for name in CONCEPT_FACTS if name in facts}
    return Concept(**known, examples={}, directions={})


def _card(run: RunDir, form: Form, concept: Concept, probe: SafetyProbe, reason: str | None) -> str:
    config, provenance = run.config(), run.provenance()
    reasons = dict.fromkeys(one for one in (config.allow_weakening, reason) if one)
    config = config.model_copy(update={"allow_weakening": " / ".join(reasons) or None})
    provenance = {**provenance, "safety": {"probe": to_plain(probe)}}
    measured = (run.path / "metrics.json").is_file()
    return render_card(config, concept, run.metrics() if measured else [], provenance, form=form)


def _load(run: RunDir, model: str, trust_remote_code: bool) -> EditableModel:
    """The base model with the run's adapter."""
    from retouch.models.load import load

    # Unquantised, even if the adapter was trained on quantised weights, to merge without rounding.
    options = LoadConfig(
        **{**run.load_options(), "quantize": "none"},
        device="cpu",
        trust_remote_code=trust_remote_code,
    )
    return load(model, options, adapter=run.adapter)
