"""The stages of an edit, in order, each on disk before the next begins."""

from __future__ import annotations

import time
from collections.abc import Mapping

from retouch.concepts.concept import Concept
from retouch.concepts.registry import with_builtin
from retouch.contrast.measure import check_contrast, require_contrast
from retouch.core.checkpoints import Checkpoints
from retouch.core.config import EditConfig
from retouch.core.run_dir import RunDir
from retouch.core.serialization import to_plain
from retouch.core.types import OnEvent, StageEvent, ignore_event
from retouch.evaluation.evaluate import Evaluation, evaluate, measured_examples
from retouch.evaluation.outcome import find_outcome
from retouch.evaluation.safety_probe import probe_safety
from retouch.evaluation.scorers import shows_effect
from retouch.evaluation.strength_choice import StrengthChoice, choose_strength
from retouch.models import adapters, distributed
from retouch.models.editable_model import EditableModel
from retouch.models.free_memory import free_bytes
from retouch.models.load import model_name
from retouch.reporting.safety_gate import check_probe
from retouch.result import EditResult
from retouch.run_record import describe_edit, run_identity, write_adapter, write_results
from retouch.task.task import EditTask, build_task
from retouch.task.text_lengths import check_text_lengths, sampled_examples
from retouch.training.checkpoint import FILE, load_checkpoint, save_checkpoint
from retouch.training.setup import build_trainer
from retouch.training.trainer import Trainer

STRENGTH_FILE = "strength.json"  # in the checkpoints
NO_CHAT_TEMPLATE = (
    "The tokenizer has no chat template: chats are written as `User: ...` and `Assistant:`. "
    "Set `chat_template` to use another format."
)


def run_stages(
    run: RunDir,
    config: EditConfig,
    concept: Concept,
    editable: EditableModel,
    on_event: OnEvent,
) -> EditResult:
    """Every stage, in order. Processes other than the first do the same and write nothing.

    Of several processes, each would keep other responses: they resume after the last round alone.
    """
    checkpoints = Checkpoints(run.checkpoints, run_identity(config, concept, editable))
    editable.checkpoints = checkpoints if distributed.world_size() == 1 else None
    try:
        return _run_stages(run, checkpoints, config, concept, editable, on_event)
    finally:
        editable.checkpoints = None


def _run_stages(
    run: RunDir,
    checkpoints: Checkpoints,
    config: EditConfig,
    concept: Concept,
    editable: EditableModel,
    on_event: OnEvent,
) -> EditResult:
    writes = distributed.rank() == 0
    on_event = on_event if writes else ignore_event
    began = time.monotonic()
    if not editable.has_chat_template:
        on_event(StageEvent("load", NO_CHAT_TEMPLATE))
    _check_texts(editable, concept, config)

    task = build_task(
        editable,
        concept,
        config.direction,
        config.seed,
        config.data,
        config.method,
        on_event,
        shows_effect(concept, config.direction),
    )
    _check_contrast(run, editable, task, config, on_event)
    trainer = build_trainer(
        editable,
        task,
        task.layers,
        config.method,
        lambda *progress: on_event(StageEvent("cache", *progress)),
    )
    if writes:
        run.write_provenance({**run.provenance(), **describe_edit(editable, task)})

    _train(run, checkpoints, trainer, writes, on_event)
    choice = _choose_strength(editable, trainer, concept, config, on_event)
    adapters.scale(editable, choice.strength)
    on_event(StageEvent("strength", f"the adapter's strength is {choice.strength:g}"))
    if writes:
        chosen = {"chosen": choice.strength, "effects": to_plain(choice.effects)}
        facts = {"strength": chosen, "over_limits": choice.excess if choice.excess > 1 else None}
        run.write_provenance({**run.provenance(), **facts})
    _check_safety(run, config, editable, on_event)
    if writes:
        write_adapter(run, editable, trainer)
    timings = {"edit_seconds": time.monotonic() - began, **trainer.seconds}

    evaluation = None
    if config.evaluation.suites != "none":
        measuring = time.monotonic()
        evaluation = _measure(editable, concept, config, on_event)
        for note in evaluation.notes:
            on_event(StageEvent("measure", note))
        timings["measure_seconds"] = time.monotonic() - measuring
    timings["all_seconds"] = time.monotonic() - began
    outcome = find_outcome(evaluation, concept, config.direction, config.train.max_drift)
    if writes:
        on_event(StageEvent("write", f"writing the card and the report; {_describe(timings)}"))
        rounded = {key: round(value, 3) for key, value in timings.items()}
        notes = list(evaluation.notes) if evaluation is not None else []
        measured = {"timings": rounded, "outcome": to_plain(outcome), "notes": notes}
        run.write_provenance({**run.provenance(), **measured})
        write_results(run, config, concept, evaluation)
    result = EditResult(run.path, config, editable=editable, outcome=outcome)
    if evaluation is not None:
        result.metrics, result.samples = evaluation.metrics, evaluation.samples
    return result


def _check_texts(editable: EditableModel, concept: Concept, config: EditConfig) -> None:
    """Check that every text of the edit and its evaluation fits the context and the memory.

    Raises:
        DataError: one does not; names its file and line.
    """
    examples = list(sampled_examples(concept, config.direction, config.data, config.seed))
    if config.evaluation.suites != "none":
        measured = _measured_concepts(concept, config)
        examples += measured_examples(measured, "test", config.evaluation.limit or None)
    check_text_lengths(
        examples, editable.tokenizer, editable.base, editable.layout, free_bytes(editable.device)
    )


def _check_contrast(
    run: RunDir, editable: EditableModel, task: EditTask, config: EditConfig, on_event: OnEvent
) -> None:
    """Check the contrast of the task, unless the run has done so, and record and report it.

    Raises:
        DataError: there is nothing to move the source towards, and `ignore_contrast` is not set.
    """
    # The first process records the report, and the others must not see it too early.
    known = distributed.broadcast(run.provenance().get("contrast"))
    if known is not None and (known["level"] != "error" or config.data.ignore_contrast):
        return
    on_event(StageEvent("contrast", "the base model on source and target"))
    report = check_contrast(editable, task)
    if distributed.rank() == 0:
        run.write_provenance({**run.provenance(), "contrast": report.to_plain()})
    require_contrast(report, ignore=config.data.ignore_contrast)
    for finding in report.findings:
        level = "" if finding.level == "ok" else f"{finding.level}: "
        on_event(StageEvent("contrast", f"{level}{finding.message} {finding.hint}".rstrip()))


def _train(
    run: RunDir, checkpoints: Checkpoints, trainer: Trainer, writes: bool, on_event: OnEvent
) -> None:
    """Run the remaining rounds, each one on disk before the next begins."""
    state = load_checkpoint(checkpoints)
    if state is not None:
        try:
            trainer.restore(state)
        except (KeyError, ValueError, RuntimeError) as error:
            raise checkpoints.broken(FILE, error) from error
        on_event(StageEvent("train", f"resuming after round {trainer.round}"))
    distributed.barrier()  # all processes have read it before the first writes the next one
    if writes:
        run.truncate_events(trainer.round)
        if not trainer.finished:  # it was chosen for other weights
            checkpoints.remove(STRENGTH_FILE)
    for event in trainer.train():
        if writes:
            run.append_event(event)
            save_checkpoint(trainer.state(), checkpoints)
        on_event(event)
    trainer.finish()


def _check_safety(
    run: RunDir, config: EditConfig, editable: EditableModel, on_event: OnEvent
) -> None:
    """Measure and record the safety of base and edited model.

    Raises:
        RefusedError: the edit weakens safety without a reason. The checkpoint stays.
    """
    probe = probe_safety(editable, lambda *progress: on_event(StageEvent("safety", *progress)))
    if distributed.rank() == 0:
        run.write_provenance({**run.provenance(), "safety": {"probe": to_plain(probe)}})
    hint = f"Then resume the run {run.path} with it, or train on other examples."
    check_probe(probe, config.allow_weakening, "The edit", hint)


def _choose_strength(
    editable: EditableModel,
    trainer: Trainer,
    concept: Concept,
    config: EditConfig,
    on_event: OnEvent,
) -> StrengthChoice:
    """Choose the strength of the trained adapter; a run that is resumed has kept it."""

    def choose() -> StrengthChoice:
        return choose_strength(
            editable,
            concept,
            config.direction,
            config.train.strengths,
            max_new_tokens=config.data.max_new_tokens,
            excess=trainer.measure_excess,
            progress=lambda *progress: on_event(StageEvent("strength", *progress)),
        )

    checkpoints = editable.checkpoints
    if checkpoints is None:
        return choose()
    return checkpoints.kept(STRENGTH_FILE, StrengthChoice, choose)


def _measure(
    editable: EditableModel, concept: Concept, config: EditConfig, on_event: OnEvent
) -> Evaluation:
    on_event(StageEvent("measure", "base and edited model respond to the test split"))
    return evaluate(
        editable,
        _measured_concepts(concept, config),
        limit=config.evaluation.limit or None,
        progress=lambda *progress: on_event(StageEvent("measure", *progress)),
        max_new_tokens=config.evaluation.max_new_tokens,
    )


def _measured_concepts(concept: Concept, config: EditConfig) -> list[Concept]:
    if config.evaluation.suites == "all":
        return with_builtin(concept, model_name(config.model))
    return [concept]


def _describe(timings: Mapping[str, float]) -> str:
    """The timings in a sentence."""
    text = "training took {edit_seconds:.0f} s, {validation_seconds:.0f} s of it validation"
    if "measure_seconds" in timings:
        text += ", evaluation {measure_seconds:.0f} s"
    return text.format_map(timings)
