"""The whole edit, stage by stage. START HERE.

concept -> examples and layers -> adversarial training -> evaluation -> adapter, card and report

Everything is written into a run directory as it is made, atomically: an interrupted run resumes
after its last finished round and ends in the same weights, bit for bit on the CPU.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from retouch.concepts.concept import Concept
from retouch.concepts.pack import save_pack
from retouch.concepts.registry import (
    builtin_names,
    concept_names,
    load_concept,
    load_concept_file,
)
from retouch.core.atomic import atomic_folder, atomic_write
from retouch.core.config import EditConfig, LoadConfig
from retouch.core.config_file import explicit, read_config_file, resolve
from retouch.core.errors import RunError
from retouch.core.metrics import Metrics
from retouch.core.progress import displayed
from retouch.core.provenance import describe_machine
from retouch.core.run_dir import RunDir, check_free, next_free
from retouch.core.types import Direction, OnEvent, Sample, Split, StageEvent, ignore_event
from retouch.evaluation.evaluate import Evaluation
from retouch.evaluation.evaluate import evaluate as evaluate_concepts
from retouch.evaluation.scorers import check_metrics
from retouch.models import adapters, distributed
from retouch.models.editable_model import IN_MEMORY, EditableModel
from retouch.models.load import add_adapter, as_editable, load, loaded_already
from retouch.reporting.export import concept_facts
from retouch.reporting.model_card import render_card
from retouch.reporting.report import render_report
from retouch.reporting.safety_gate import check_weakening
from retouch.result import EditResult
from retouch.task.task import EditTask, build_task
from retouch.training.checkpoint import broken_checkpoint, load_checkpoint, save_checkpoint
from retouch.training.setup import build_trainer
from retouch.training.trainer import Trainer

NO_CHAT_TEMPLATE = (
    "The tokenizer has no chat template: chats are written as `User: ...` and `Assistant:`. "
    "Set `chat_template` to use another format."
)
RESUME_HINT = "retouch.resume(path) continues the run."


def edit(
    model: Any = None,
    tokenizer: Any = None,
    concept: Concept | str | None = None,
    direction: Direction | None = None,
    *,
    config: EditConfig | Mapping[str, Any] | Path | str | None = None,
    output_dir: Path | str | None = None,
    allow_weakening: str | None = None,
    seed: int | None = None,
    on_event: OnEvent | None = None,
) -> EditResult:
    """Edit one concept inside a model and measure what changed.

    Args:
        model: `pocket`, a local folder or a hub id; or a loaded model: one of transformers, with
            its `tokenizer`, or an `EditableModel`. A loaded model keeps its revision, dtype and
            quantisation, and gets the adapter in place.
        tokenizer: the tokenizer of a transformers model.
        concept: the name of a built-in concept, the path of a file or a pack, or a `Concept`.
        direction: `raise` or `lower`.
        config: further settings: an `EditConfig`, a mapping, or a YAML or TOML file. What it does
            not set, the concept's tuned settings do, and then the defaults.
        output_dir: the run directory (default: a new one under `runs/`).
        allow_weakening: the reason for an edit that weakens safety; it is written on the card.
        seed: the random seed.
        on_event: receives the events (default: progress bars, and messages to the logger
            `retouch`).

    Returns:
        The edited model, its metrics, and the path of the run.

    Raises:
        RetouchError: any of its kinds; what was written before stays valid.
    """
    overrides = {
        "direction": direction,
        "allow_weakening": allow_weakening,
        "seed": seed,
        "model": model if isinstance(model, str) else None,
        "concept": concept if isinstance(concept, str) else None,
    }
    given = {key: value for key, value in overrides.items() if value is not None}
    with displayed(on_event, RESUME_HINT) as events:
        loaded = as_editable(model, tokenizer)
        known = concept if isinstance(concept, Concept) else None
        settings = configure(given, config, concept=known, loaded=loaded)
        known = known or load_concept(settings.concept)
        out = Path(output_dir) if output_dir is not None else choose_path(settings)
        return run_edit(settings, known, out, loaded, events)


def resume(
    path: Path | str,
    model: Any = None,
    tokenizer: Any = None,
    *,
    on_event: OnEvent | None = None,
) -> EditResult:
    """Continue a run that was interrupted; a finished one is read back.

    Args:
        path: the run directory.
        model: the model, where the run was started with one from memory that cannot be loaded by
            its name.
        tokenizer: its tokenizer.
        on_event: receives the events, as for `edit`.

    Raises:
        RunError: `path` is not a run, or its concept or its model has changed since.
    """
    distributed.init()
    run = RunDir.open(Path(path))
    config = run.config()
    if run.finished:
        measured = config.evaluation.suites != "none"
        records, samples = (run.metrics(), run.samples()) if measured else ([], [])
        return EditResult(run.path, config, Metrics(records), samples)
    concept = load_concept_file(run.concept) if run.has_concept else load_concept(config.concept)
    check_weakening(config.direction, config.allow_weakening, concept)
    facts = run.provenance()
    if facts.get("data", {}).get(concept.name, concept.hash) != concept.hash:
        raise RunError(
            f"The concept {config.concept} has changed since {path} was started.",
            "Restore its files, or start a new run.",
            code="concept-changed",
        )
    with displayed(on_event, RESUME_HINT) as events:
        editable = as_editable(model, tokenizer) or _reload(run, config, events)
        _check_fingerprint(run, editable, facts)
        distributed.barrier()
        return _run_stages(run, config, concept, editable, events)


def evaluate(
    model: Any = "pocket",
    tokenizer: Any = None,
    *,
    adapter: Path | str | None = None,
    concepts: Sequence[Concept | str] = (),
    split: Split = "test",
    limit: int | None = None,
    max_new_tokens: int = 32,
    load_config: LoadConfig | None = None,
    on_event: OnEvent | None = None,
) -> Evaluation:
    """Measure a model, and its adapter beside it, on concepts.

    Args:
        model: a name or a loaded model, as for `edit`.
        tokenizer: the tokenizer of a transformers model.
        adapter: a run directory or an adapter folder, to compare with the base model.
        concepts: names, paths or `Concept` objects (default: all built-in concepts).
        split: the split to measure on.
        limit: maximum number of examples per metric.
        max_new_tokens: maximum length of a response, in tokens.
        load_config: how a model that is given by its name is loaded.
        on_event: receives the events, as for `edit`.

    Raises:
        RetouchError: any of its kinds.
    """
    with displayed(on_event) as events:
        editable = as_editable(model, tokenizer)
        if editable is None:
            editable = _load(str(model), load_config or LoadConfig(), events)
        elif load_config is not None:
            raise loaded_already("load_config")
        if adapter is not None:
            add_adapter(editable, Path(adapter))
        if not editable.has_chat_template:
            events(StageEvent("load", NO_CHAT_TEMPLATE))
        named = [
            one if isinstance(one, Concept) else load_concept(one)
            for one in concepts or builtin_names()
        ]
        return evaluate_concepts(
            editable,
            named,
            split=split,
            limit=limit,
            progress=lambda *progress: events(StageEvent("measure", *progress)),
            max_new_tokens=max_new_tokens,
        )


def configure(
    overrides: Mapping[str, Any],
    config: EditConfig | Mapping[str, Any] | Path | str | None = None,
    *,
    concept: Concept | None = None,
    loaded: EditableModel | None = None,
) -> EditConfig:
    """Merge defaults, the concept's tuned settings, `config` and `overrides`, in this order.

    Args:
        overrides: nested values.
        config: a configuration, a mapping or a file.
        concept: the concept, where it is not given by its name.
        loaded: the model, where it is not given by its name.

    Raises:
        ConfigError: a key is unknown or a value is wrong; or load options beside a loaded model.
    """
    where = "`config`"
    if isinstance(config, Path | str):
        where, values = str(config), read_config_file(Path(config))
    elif isinstance(config, EditConfig):
        values = explicit(config)
    else:
        values = dict(config or {})
    if not values:
        where = "the options"
    fixed: dict[str, Any] = {}
    if concept is not None:
        fixed["concept"] = concept.name
    if loaded is not None:
        if values.get("load") or overrides.get("load"):
            raise loaded_already("config.load")
        fixed |= {"model": loaded.name, "load": explicit_load(loaded)}
    asked = resolve(values, overrides, fixed, where=where)
    tuned = (concept or load_concept(asked.concept)).settings.get(asked.direction, {})
    return resolve(tuned, values, overrides, fixed, where=where)


def explicit_load(editable: EditableModel) -> dict[str, Any]:
    """How a loaded model was loaded, as configuration values."""
    values: dict[str, Any] = editable.load_config.model_dump()
    return values


def choose_path(config: EditConfig) -> Path:
    """A new run directory, the same one for all processes of an edit."""
    distributed.init()
    name = f"{Path(config.concept).stem}-{config.direction}"
    return distributed.broadcast(next_free(Path("runs"), name))


def run_edit(
    config: EditConfig,
    concept: Concept,
    path: Path,
    editable: EditableModel | None = None,
    on_event: OnEvent = ignore_event,
) -> EditResult:
    """Make an edit with a resolved configuration in a new run directory.

    Raises:
        RetouchError: any of its kinds; what was written before stays valid.
    """
    distributed.init()
    check_weakening(config.direction, config.allow_weakening, concept)
    check_metrics(concept)
    check_free(path)  # before a large model is loaded
    editable = editable or _load(config.model, config.load, on_event)
    distributed.barrier()  # all processes have seen that the path is free
    try:
        run = RunDir(path)
        if distributed.rank() == 0:
            run = RunDir.create(path, config)
            _save_inputs(run, config, concept, editable)
        return _run_stages(run, config, concept, editable, on_event)
    except BaseException:
        adapters.detach(editable)  # the caller's model is the base again
        raise


def _run_stages(
    run: RunDir,
    config: EditConfig,
    concept: Concept,
    editable: EditableModel,
    on_event: OnEvent,
) -> EditResult:
    """Every stage, in order. Processes other than the first do the same and write nothing."""
    writes = distributed.rank() == 0
    on_event = on_event if writes else ignore_event
    began = time.monotonic()
    if not editable.has_chat_template:
        on_event(StageEvent("load", NO_CHAT_TEMPLATE))

    task = build_task(
        editable, concept, config.direction, config.seed, config.data, config.method, on_event
    )
    trainer = build_trainer(editable, task, task.layers, config.method)
    if writes:
        facts = {**run.provenance(), **_provenance(editable, concept, config, task)}
        run.write_provenance(facts)

    _train(run, trainer, writes, on_event)
    if writes:
        _write_adapter(run, editable, trainer)
    timings = {"edit_seconds": time.monotonic() - began, **trainer.seconds}

    result = EditResult(run.path, config, editable=editable)
    if config.evaluation.suites != "none":
        measuring = time.monotonic()
        measured = _measure(editable, concept, config, on_event)
        result.metrics, result.samples = measured.metrics, measured.samples
        timings["measure_seconds"] = time.monotonic() - measuring
    timings["all_seconds"] = time.monotonic() - began
    if writes:
        on_event(StageEvent("write", f"writing the card and the report; {_describe(timings)}"))
        rounded = {key: round(value, 3) for key, value in timings.items()}
        run.write_provenance({**run.provenance(), "timings": rounded})
        _write_results(run, config, concept, result)
    return result


def _train(run: RunDir, trainer: Trainer, writes: bool, on_event: OnEvent) -> None:
    """Run the remaining rounds, each one on disk before the next begins."""
    state = load_checkpoint(run.checkpoints)
    if state is not None:
        try:
            trainer.restore(state)
        except (KeyError, ValueError, RuntimeError) as error:
            raise broken_checkpoint(run.checkpoints, error) from error
        on_event(StageEvent("train", f"resuming after round {trainer.round}"))
    distributed.barrier()  # all processes have read it before the first writes the next one
    if writes:
        run.truncate_events(trainer.round)
    for event in trainer.train():
        if writes:
            run.append_event(event)
            save_checkpoint(trainer.state(), run.checkpoints)
        on_event(event)
    trainer.finish()


def _measure(
    editable: EditableModel, concept: Concept, config: EditConfig, on_event: OnEvent
) -> Evaluation:
    on_event(StageEvent("measure", "base and edited model respond to the test split"))
    concepts = [concept]
    if config.evaluation.suites == "all":
        concepts += [load_concept(name) for name in builtin_names() if name != concept.name]
    return evaluate_concepts(
        editable,
        concepts,
        limit=config.evaluation.limit or None,
        progress=lambda *progress: on_event(StageEvent("measure", *progress)),
        max_new_tokens=config.data.max_new_tokens,
    )


def _provenance(
    editable: EditableModel, concept: Concept, config: EditConfig, task: EditTask
) -> dict[str, Any]:
    train, validation = task.train, task.validation
    return {
        **describe_machine(),
        "model": {
            "name": editable.name,
            "revision": editable.revision,
            "device": str(editable.device),
            "dtype": str(editable.base.dtype).removeprefix("torch."),
            "auto_class": editable.auto_class,
            "in_memory": editable.in_memory,
            "fingerprint": editable.fingerprint if editable.in_memory else None,
        },
        "seed": config.seed,
        "concept": concept_facts(concept),
        "data": {concept.name: concept.hash},
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


def _save_inputs(
    run: RunDir, config: EditConfig, concept: Concept, editable: EditableModel
) -> None:
    """Keep what exists in memory alone, so that the run can be resumed from its folder."""
    if concept.name == config.concept and concept.name not in concept_names():
        with atomic_folder(run.concept) as folder:
            save_pack(concept, folder)
    template = getattr(editable.tokenizer, "chat_template", None)
    if editable.in_memory and isinstance(template, str):
        atomic_write(run.chat_template, template)


def _write_adapter(run: RunDir, editable: EditableModel, trainer: Trainer) -> None:
    from safetensors.torch import save_file

    with atomic_folder(run.adapter) as folder:
        adapters.save(editable, folder)
    with atomic_folder(run.discriminator) as folder:
        save_file(trainer.discriminators.state_dict(), folder / "discriminators.safetensors")


def _write_results(run: RunDir, config: EditConfig, concept: Concept, result: EditResult) -> None:
    """Metrics, samples, card and report; the run is finished when all are written."""
    records, facts = list(result.metrics), run.provenance()
    if config.evaluation.suites != "none":
        run.write_metrics(records)
        run.write_samples(result.samples)
    atomic_write(run.path / "README.md", render_card(config, concept, records, facts))
    samples: Sequence[Sample] = result.samples
    report = render_report(config, concept, records, samples, run.events(), facts)
    atomic_write(run.path / "report.html", report)
    run.mark_finished()


def _describe(timings: Mapping[str, float]) -> str:
    """The timings in a sentence."""
    text = "training took {edit_seconds:.0f} s, {validation_seconds:.0f} s of it validation"
    if "measure_seconds" in timings:
        text += ", evaluation {measure_seconds:.0f} s"
    return text.format_map(timings)


def _load(name: str, config: LoadConfig, on_event: OnEvent) -> EditableModel:
    on_event(StageEvent("load", f"loading {name}"))
    return load(name, config)


def _reload(run: RunDir, config: EditConfig, on_event: OnEvent) -> EditableModel:
    """The model of a run, from what the run recorded.

    Raises:
        RunError: it was in memory and has no name to load it by.
    """
    if config.model == IN_MEMORY:
        raise RunError(
            f"The run {run.path} was started with a model that has no name to load it by.",
            "Pass it: retouch.resume(path, model, tokenizer).",
            code="model-in-memory",
        )
    options = config.load
    if run.chat_template.is_file():
        options = options.model_copy(update={"chat_template": str(run.chat_template)})
    return _load(config.model, options, on_event)


def _check_fingerprint(run: RunDir, editable: EditableModel, facts: Mapping[str, Any]) -> None:
    """Raise if a model from memory is not the one that the run was started with."""
    recorded = facts.get("model", {}).get("fingerprint")
    if recorded and editable.fingerprint != recorded:
        raise RunError(
            f"The weights of {editable.name} differ from those that {run.path} was started with.",
            "Pass the model: retouch.resume(path, model, tokenizer).",
            code="model-changed",
        )
