"""The calls of the package: edit, resume, evaluate, check a contrast. START HERE.

An edit runs these stages (`stages.py`):

concept -> examples and layers -> adversarial training -> evaluation -> adapter, card and report

Everything is written into a run directory as it is made, atomically: an interrupted run resumes
after its last finished round and ends in the same weights, bit for bit on the CPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from retouch.concepts.concept import Concept
from retouch.concepts.hashing import content_hash
from retouch.concepts.registry import (
    concept_for_model,
    load_concept_file,
    names_for_model,
)
from retouch.contrast.measure import check_concept
from retouch.contrast.report import ContrastReport
from retouch.core.chat_template import set_template_settings
from retouch.core.checkpoints import Checkpoints
from retouch.core.config import AUTO_CONCEPT, EditConfig, LoadConfig
from retouch.core.config_file import (
    check_caller_only,
    explicit,
    read_config_file,
    resolve,
)
from retouch.core.errors import RunError
from retouch.core.metrics import Metrics
from retouch.core.progress import displayed
from retouch.core.run_dir import RunDir, check_free, next_free
from retouch.core.types import Direction, OnEvent, Split, StageEvent, ignore_event
from retouch.evaluation.evaluate import MAX_NEW_TOKENS, Evaluation, joined
from retouch.evaluation.evaluate import evaluate as evaluate_concepts
from retouch.evaluation.judge import Judge
from retouch.evaluation.lm_eval_tasks import run_tasks
from retouch.evaluation.outcome import Outcome
from retouch.evaluation.scorers import check_metrics
from retouch.models import adapters, distributed
from retouch.models.editable_model import EditableModel
from retouch.models.load import adapter_added, as_editable, loaded_already, model_name
from retouch.reporting.safety_gate import check_weakening
from retouch.result import EditResult
from retouch.run_record import (
    check_caller,
    check_fingerprint,
    load_model,
    run_identity,
    save_inputs,
    with_recorded_template,
    with_template_time,
)
from retouch.stages import NO_CHAT_TEMPLATE, run_stages
from retouch.suites.registry import load_suite_concepts

RESUME_HINT = "retouch.resume(path, model) continues the run."


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
        model: `pocket`, `smollm2`, a local folder, a GGUF file or a hub id; or a loaded model: one
            of transformers, with its `tokenizer`, or an `EditableModel`. A loaded model keeps its
            revision, dtype and quantisation, and gets the adapter in place.
        tokenizer: the tokenizer of a transformers model.
        concept: the name of a built-in concept, the path of a file or a pack, or a `Concept`
            (default: `pocket-safety` for pocket, `safety` for other models).
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
    given = {"direction": direction, "allow_weakening": allow_weakening, "seed": seed}
    with displayed(on_event, RESUME_HINT) as events:
        editable = as_editable(model, tokenizer)
        settings, known = _resolve(model, editable, concept, config, given)
        out = Path(output_dir) if output_dir is not None else choose_path(settings)
        return run_edit(settings, known, out, editable, events)


def resume(
    path: Path | str,
    model: Any = None,
    tokenizer: Any = None,
    *,
    direction: Direction | None = None,
    allow_weakening: str | None = None,
    load_config: LoadConfig | None = None,
    on_event: OnEvent | None = None,
) -> EditResult:
    """Continue a run that was interrupted; a finished one is read back.

    The settings are those of the run. But a run may come from elsewhere, so the model, the
    direction, the device, `trust_remote_code` and `allow_weakening` must be given as for `edit`.

    Args:
        path: the run directory.
        model: a name or a loaded model, the one that the run was started with.
        tokenizer: the tokenizer of a transformers model.
        direction: that of the run.
        allow_weakening: the reason, where the run weakens safety; it is recorded.
        load_config: the device and `trust_remote_code` of the run, where they are not the defaults.
        on_event: receives the events, as for `edit`.

    Raises:
        ConfigError: the run has another value of what the caller must give.
        RunError: `path` is not a run, or its concept or its model has changed since.
    """
    distributed.init()
    run = RunDir.open(Path(path))
    config = run.config()
    if run.finished:
        measured = config.evaluation.suites != "none"
        records, samples = (run.metrics(), run.samples()) if measured else ([], [])
        outcome = run.recorded("outcome", Outcome)
        return EditResult(run.path, config, Metrics(records), samples, outcome=outcome)
    editable = as_editable(model, tokenizer)
    given = {
        "model": model if isinstance(model, str) else None,
        "direction": direction,
        "allow_weakening": allow_weakening,
        "load": explicit(load_config) if load_config else None,
    }
    given = {key: value for key, value in given.items() if value is not None}
    check_caller(run, config, given, editable is not None)
    # Before the model is loaded, and before a changed setting leads to another error.
    Checkpoints(run.checkpoints, run_identity(config)).check()
    if allow_weakening != config.allow_weakening:  # the safety probe has asked for it
        config = config.model_copy(update={"allow_weakening": allow_weakening})
    concept = concept_for_model(
        load_concept_file(run.concept) if run.has_concept else config.concept,
        model_name(config.model),
    )
    check_weakening(config.direction, config.allow_weakening, concept)
    facts = run.provenance()
    if facts.get("data", {}).get(concept.name, concept.hash) != concept.hash:
        raise RunError(
            f"The concept {config.concept} has changed since {path} was started.",
            "Restore its files, or start a new run.",
            code="concept-changed",
        )
    with _run_lock(run), displayed(on_event, RESUME_HINT) as events:
        load_config = config.load.model_copy(update=run.load_options())
        editable = editable or load_model(config.model, load_config, events)
        variables = config.load.chat_template_kwargs
        set_template_settings(editable.tokenizer, variables, config.load.chat_template_time)
        check_fingerprint(run, editable, facts)
        if distributed.rank() == 0:
            run.write_config(config)
        distributed.barrier()
        return run_stages(run, config, concept, editable, events)


def evaluate(
    model: Any = "pocket",
    tokenizer: Any = None,
    *,
    adapter: Path | str | None = None,
    concepts: Sequence[Concept | str] = (),
    suites: Sequence[str | Path] = (),
    data_dir: Path | str | None = None,
    tasks: Sequence[str] = (),
    task_options: Mapping[str, Any] | None = None,
    judge: Judge | None = None,
    split: Split = "test",
    limit: int | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
    load_config: LoadConfig | None = None,
    on_event: OnEvent | None = None,
) -> Evaluation:
    """Measure a model, and its adapter beside it, on concepts and on public evaluation sets.

    Args:
        model: a name or a loaded model, as for `edit`.
        tokenizer: the tokenizer of a transformers model.
        adapter: a run directory or an adapter folder, to compare with the base model. It is taken
            off a loaded model again.
        concepts: names, paths or `Concept` objects (default, without suites: all built-in concepts
            for the model).
        suites: names of built-in suites, or paths of suite files.
        data_dir: the folder with the suites' published files (default: datasets of the hub).
        tasks: names of lm-eval's tasks, which lm-eval runs.
        task_options: further arguments of `run_tasks`, such as `num_fewshot`, `include_path` and
            `out`.
        judge: a model that classifies responses, as of `load_judge` (default: rules).
        split: the split of the concepts to measure on.
        limit: maximum number of examples per metric of a concept, and of rows per suite.
        max_new_tokens: maximum length of a response, in tokens, where a suite sets none.
        load_config: how a model that is given by its name is loaded.
        on_event: receives the events, as for `edit`.

    Raises:
        RetouchError: any of its kinds.
    """
    with displayed(on_event) as events:
        editable = as_editable(model, tokenizer)
        if editable is not None and load_config is not None:
            raise loaded_already("load_config")
        # Before a large model is loaded: the files of a suite may be missing.
        measured = load_suite_concepts(suites, data_dir, limit)
        for one in measured:
            check_metrics(one)
        if editable is None:
            load_config = with_recorded_template(load_config or LoadConfig(), str(model), adapter)
            editable = load_model(str(model), load_config, events)
        if not editable.has_chat_template:
            events(StageEvent("load", NO_CHAT_TEMPLATE))
        known_as = model_name(editable.name)
        names = concepts or (() if suites or tasks else names_for_model(known_as))
        chosen = [concept_for_model(one, known_as) for one in names]
        for one in chosen:
            one.report_notes(events)

        def progress(*values: Any) -> None:
            events(StageEvent("measure", *values))

        with adapter_added(editable, adapter):
            found = evaluate_concepts(
                editable,
                chosen,
                suites=measured,
                split=split,
                limit=limit,
                progress=progress,
                max_new_tokens=max_new_tokens,
                judge=judge,
            )
            if not tasks:
                return found
            options = {"limit": limit, "progress": progress, **(task_options or {})}
            results = run_tasks(editable, tasks, **options)
            return joined([found, replace(results.evaluation, notes=results.warnings)])


def check_contrast(
    model: Any = None,
    tokenizer: Any = None,
    concept: Concept | str | None = None,
    direction: Direction | None = None,
    *,
    config: EditConfig | Mapping[str, Any] | Path | str | None = None,
    seed: int | None = None,
    on_event: OnEvent | None = None,
) -> ContrastReport:
    """Check, before anything is trained, that there is something to move the source towards.

    The base model responds to source and target prompts, and the two are compared. `edit` does the
    same before it trains, and stops where the report has an error.

    Args:
        model: a name or a loaded model, as for `edit`. It is unchanged.
        tokenizer: the tokenizer of a transformers model.
        concept: the concept, as for `edit`.
        direction: `raise` or `lower`.
        config: further settings, as for `edit`.
        seed: the random seed of the examples.
        on_event: receives the events, as for `edit`.

    Returns:
        How often source and target responses show the concept's behaviour, the gap between them,
        samples, and the findings.

    Raises:
        RetouchError: any of its kinds.
    """
    given = {"direction": direction, "seed": seed}
    with displayed(on_event) as events:
        editable = as_editable(model, tokenizer)
        settings, known = _resolve(model, editable, concept, config, given)
        editable = editable or load_model(settings.model, settings.load, events)
        return check_concept(
            editable,
            known,
            settings.direction,
            settings.data,
            settings.seed,
            layers=settings.discriminator.layers or (),
            on_event=events,
        )


def _run_lock(run: RunDir) -> AbstractContextManager[None]:
    """The lock of a run, which the first of several processes holds for all."""
    return run.locked() if distributed.rank() == 0 else nullcontext()


def _resolve(
    model: Any,
    editable: EditableModel | None,
    concept: Concept | str | None,
    config: EditConfig | Mapping[str, Any] | Path | str | None,
    arguments: Mapping[str, Any],
) -> tuple[EditConfig, Concept]:
    """The configuration of a call's arguments, None where one is not given, and its concept."""
    names = {
        "model": model if isinstance(model, str) else None,
        "concept": concept if isinstance(concept, str) else None,
    }
    given = {key: value for key, value in {**arguments, **names}.items() if value is not None}
    known = concept if isinstance(concept, Concept) else None
    settings = configure(given, config, concept=known, editable=editable)
    return settings, concept_for_model(known or settings.concept, model_name(settings.model))


def configure(
    overrides: Mapping[str, Any],
    config: EditConfig | Mapping[str, Any] | Path | str | None = None,
    *,
    concept: Concept | None = None,
    editable: EditableModel | None = None,
) -> EditConfig:
    """Merge defaults, the concept's tuned settings, `config` and `overrides`, in this order.

    Args:
        overrides: nested values.
        config: a configuration, a mapping or a file.
        concept: the concept, where it is not given by its name.
        editable: the model, where it is not given by its name.

    Raises:
        ConfigError: a key is unknown or a value is wrong; a file decides what the caller must; or
            load options beside a loaded model.
        DataError: the concept is for other models, or cannot be loaded.
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
    if editable is not None:
        if values.get("load") or overrides.get("load"):
            raise loaded_already("config.load")
        fixed |= {"model": editable.name, "load": editable.load_config.model_dump()}
    if isinstance(config, Path | str):
        check_caller_only(values, resolve(overrides, fixed, where=where).model_dump(), where)
    untuned = resolve(values, overrides, fixed, where=where)
    concept = concept_for_model(concept or untuned.concept, model_name(untuned.model))
    if untuned.concept == AUTO_CONCEPT:
        fixed["concept"] = concept.name
    tuned = concept.settings.get(untuned.direction, {})
    return resolve(tuned, values, overrides, fixed, where=where)


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
    known_as = model_name(config.model)
    concept = concept_for_model(concept, known_as)
    for name in config.data.retain_concepts:
        concept_for_model(name, known_as)
    check_weakening(config.direction, config.allow_weakening, concept)
    check_metrics(concept)
    concept = replace(concept, hash=concept.hash or content_hash(concept))
    check_free(path)  # before a large model is loaded
    concept.report_notes(on_event)
    editable = editable or load_model(config.model, config.load, on_event)
    config = with_template_time(config, editable)
    distributed.barrier()  # all processes have seen that the path is free
    try:
        run = RunDir(path)
        with _run_lock(run):  # before anything is written: another process may start here too
            if distributed.rank() == 0:
                RunDir.create(path, config)
                save_inputs(run, concept, editable)
            return run_stages(run, config, concept, editable, on_event)
    except BaseException:
        adapters.detach(editable)  # the caller's model is the base again
        raise
