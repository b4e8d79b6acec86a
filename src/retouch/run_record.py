"""What a run directory records of an edit, and what a resumed run reads back."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from retouch.concepts.concept import Concept
from retouch.concepts.pack import save_pack
from retouch.concepts.registry import concept_for_model
from retouch.core.atomic import atomic_folder, atomic_write
from retouch.core.chat_template import (
    reads_clock,
    set_template_settings,
    template_time,
    template_variables,
)
from retouch.core.checkpoints import Identity
from retouch.core.config import EditConfig, LoadConfig
from retouch.core.config_file import CALLER_ONLY, check_caller_only, resolve
from retouch.core.errors import DataError, RunError
from retouch.core.files import sha256
from retouch.core.model_names import public_name
from retouch.core.options import flatten
from retouch.core.process import describe_machine
from retouch.core.run_dir import ADAPTER_WEIGHTS, RunDir, find_adapter
from retouch.core.types import OnEvent, Record, StageEvent
from retouch.evaluation.evaluate import Evaluation
from retouch.models import adapters, distributed
from retouch.models.editable_model import IN_MEMORY, EditableModel
from retouch.models.load import load, model_name
from retouch.reporting.export import concept_facts
from retouch.reporting.report import FinishedEdit
from retouch.reporting.reporters import added_files, builtin_files
from retouch.task.task import EditTask
from retouch.training.trainer import Trainer

# Settings that a run may be resumed with other values of: what only the caller decides is checked
# by itself, and the others change no result but for rounding.
CHANGEABLE = frozenset(
    (
        *(path for path in CALLER_ONLY if path not in ("model", "direction")),
        "data.ignore_contrast",
        "train.activation_cache",
        "train.micro_batch_size",
    )
)


def describe_edit(editable: EditableModel, task: EditTask) -> dict[str, Any]:
    """The provenance of an edit, for `run.json`."""
    train, validation = task.train, task.validation
    return {
        **describe_machine(),
        "model": {
            "name": public_name(editable.name),
            "revision": editable.revision,
            "device": str(editable.device),
            "dtype": str(editable.base.dtype).removeprefix("torch."),
            "auto_class": editable.auto_class,
            "in_memory": editable.in_memory,
            "fingerprint": editable.fingerprint if editable.in_memory else None,
        },
        "seed": task.seed,
        "concept": concept_facts(task.concept),
        "data": {task.concept.name: task.concept.hash},
        "examples": {
            "source": len(train.source),
            "target": len(train.target),
            "retain": len(train.retain),
            "validation_source": len(validation.source),
            "validation_retain": len(validation.retain),
        },
        "layers": {
            "adapted": list(task.layers.adapted),
            "read": list(task.layers.read),
            "reason": task.layers.reason,
            "recovery": {
                str(layer): round(value, 4)
                for layer, value in enumerate(task.patching.recovery if task.patching else ())
            },
        },
    }


def run_identity(
    config: EditConfig, concept: Concept | None = None, editable: EditableModel | None = None
) -> Identity:
    """What decides the checkpoints of a run, as far as it is known: settings, data and model."""
    settings = {
        path: value
        for path, value in flatten(config.model_dump(mode="json")).items()
        if path not in CHANGEABLE and not path.startswith("evaluation.")
    }
    hashes = {}
    if concept is not None:
        names = config.data.retain_concepts
        retained = [concept_for_model(name, model_name(config.model)) for name in names]
        hashes = {f"the data of the concept {one.name}": one.hash for one in (concept, *retained)}
    if editable is not None:
        template = str(getattr(editable.tokenizer, "chat_template", None) or "")
        hashes["the chat template"] = hashlib.sha256(template.encode()).hexdigest()
        if not editable.sharded:  # where no process has whole weights
            hashes[f"the weights of {config.model}"] = editable.fingerprint
    return Identity(settings, hashes)


def with_template_time(config: EditConfig, editable: EditableModel) -> EditConfig:
    """The configuration with the time that the chat template reads, if it reads the clock.

    All processes use that of the first one.
    """
    if not reads_clock(editable.tokenizer):
        return config
    time = distributed.broadcast(template_time(editable.tokenizer))
    set_template_settings(editable.tokenizer, template_variables(editable.tokenizer), time)
    load_config = config.load.model_copy(update={"chat_template_time": time})
    return config.model_copy(update={"load": load_config})


def with_recorded_template(
    config: LoadConfig, model: str, adapter: Path | str | None
) -> LoadConfig:
    """Load options with the template's variables and time of the run that an adapter is of.

    Those that are given stay; a run of another model decides nothing.

    Raises:
        RunError: there is no adapter.
    """
    folder = None if adapter is None else find_adapter(Path(adapter)).parent
    if folder is None or not (folder / "config.yaml").is_file():
        return config
    recorded = RunDir(folder).config()
    if recorded.model != model:
        return config
    names = ("chat_template_kwargs", "chat_template_time")
    found = {name: getattr(config, name) or getattr(recorded.load, name) for name in names}
    return config.model_copy(update=found)


def save_inputs(run: RunDir, concept: Concept, editable: EditableModel) -> None:
    """Keep what a later call needs and the run's folder alone may have."""
    config = run.config()
    if not _is_stored(config.concept, concept, config.model):
        with atomic_folder(run.concept) as folder:
            save_pack(concept, folder)
    template = getattr(editable.tokenizer, "chat_template", None)
    is_set = editable.in_memory or config.load.chat_template is not None
    if is_set and isinstance(template, str):
        atomic_write(run.chat_template, template)


def _is_stored(name_or_path: str, concept: Concept, model: str) -> bool:
    """Whether a concept can be loaded again by its name or path."""
    try:
        return concept_for_model(name_or_path, model_name(model)).hash == concept.hash
    except DataError:
        return False


def write_adapter(run: RunDir, editable: EditableModel, trainer: Trainer) -> None:
    """Write the adapter and the last discriminators, and which adapter the safety is of."""
    from safetensors.torch import save_file

    run.check_exists()
    with atomic_folder(run.adapter) as folder:
        adapters.save(editable, folder)
    facts = run.provenance()
    safety = {**facts["safety"], "adapter": sha256(run.adapter / ADAPTER_WEIGHTS)}
    run.write_provenance({**facts, "safety": safety})
    with atomic_folder(run.discriminator) as folder:
        save_file(trainer.discriminators.state_dict(), folder / "discriminators.safetensors")


def write_results(
    run: RunDir, config: EditConfig, concept: Concept, evaluation: Evaluation | None
) -> None:
    """Write metrics, samples, card and report; the run is finished when all are written."""
    records: list[Record] = list(evaluation.metrics) if evaluation else []
    samples = evaluation.samples if evaluation else []
    if evaluation is not None:
        run.write_metrics(records)
        run.write_samples(samples)
    edit = FinishedEdit(config, concept, records, samples, run.events(), run.provenance())
    for name, text in builtin_files(edit).items():
        run.write(name, text)
    run.mark_finished()  # a fault of a plugin's reporter loses nothing
    for name, text in added_files(edit, lambda name: (run.path / name).exists()).items():
        run.write(name, text)


def load_model(name: str, config: LoadConfig, on_event: OnEvent) -> EditableModel:
    """Load a model and report it."""
    on_event(StageEvent("load", f"loading {name}"))
    return load(name, config, on_event=on_event)


def check_caller(
    run: RunDir, config: EditConfig, given: Mapping[str, Any], has_model: bool
) -> None:
    """Check that a caller who resumes a run gave what only a caller decides.

    Args:
        run: the run.
        config: its configuration.
        given: what the caller gave, as nested values.
        has_model: whether the caller gave a loaded model.

    Raises:
        ConfigError: the run has another model, direction, device or reason, or runs code, and the
            caller did not give it.
        RunError: the run's model was in memory and has no name to load it by.
    """
    if config.model == IN_MEMORY and not has_model:
        raise RunError(
            f"The run {run.path} was started with a model that has no name to load it by.",
            "Pass it: retouch.resume(path, model, tokenizer).",
            code="model-in-memory",
        )
    recorded = config.model_dump(exclude={"model", "load"} if has_model else None)
    if recorded["allow_weakening"] is None:  # the safety probe may have asked for a reason
        del recorded["allow_weakening"]
    ours = resolve(given, where="the options").model_dump()
    check_caller_only(recorded, ours, str(run.path / "config.yaml"))


def check_fingerprint(run: RunDir, editable: EditableModel, facts: Mapping[str, Any]) -> None:
    """Raise if a model from memory is not the one that the run was started with."""
    recorded = facts.get("model", {}).get("fingerprint")
    if recorded and editable.fingerprint != recorded:
        raise RunError(
            f"The weights of {editable.name} differ from those that {run.path} was started with.",
            "Pass the model: retouch.resume(path, model, tokenizer).",
            code="model-changed",
        )
