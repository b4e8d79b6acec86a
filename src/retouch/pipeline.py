"""The whole job. START HERE.

concept data -> representations -> adversarial edit -> evaluation -> card, report and adapter.

Everything is written into a run directory as it comes, atomically: whatever happens, the run goes
on from its last finished round and ends in the same weights, bit for bit on CPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retouch.concepts.catalog import builtin_names, load_concept
from retouch.core.config import EditConfig, read_config_file, resolve
from retouch.core.errors import ConfigError, RunError
from retouch.core.provenance import describe_machine
from retouch.core.run_dir import RunDir, atomic_folder, atomic_write, check_free, next_free
from retouch.core.types import Concept, Event, Record, Sample, Split, StageEvent
from retouch.delivery.card import render_card
from retouch.delivery.export import concept_facts
from retouch.delivery.gate import check_weakening
from retouch.delivery.report import render_report
from retouch.editing.checkpoint import load_checkpoint, save_checkpoint, save_jury
from retouch.editing.edit import Setting, set_up
from retouch.evaluation.runner import Evaluation
from retouch.evaluation.runner import evaluate as evaluate_concepts
from retouch.models import adapters, ranks
from retouch.models.load import LoadedModel, load

OnEvent = Callable[[Event], None]

PLAIN = (
    "the tokenizer has no chat template: chats are written as `User: ...` and `Assistant:`; "
    "--chat-template gives it one"
)


@dataclass
class Run:
    """A finished edit.

    Attributes:
        path: the run directory.
        config: what was asked for, resolved.
        metrics: before and after, with intervals.
        samples: the generations that the metrics rest on.
        model: the model with its adapter, ready to use; None when read back from disk.
    """

    path: Path
    config: EditConfig
    metrics: list[Record] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    model: LoadedModel | None = None


def edit(
    config: EditConfig,
    *,
    out: Path | None = None,
    model: LoadedModel | None = None,
    on_event: OnEvent | None = None,
) -> Run:
    """Edit a concept in a model and measure what changed.

    Raises:
        RetouchError: any of its kinds; what was written before is whole.
    """
    ranks.join()
    concept = load_concept(config.concept)
    check_weakening(config, concept)
    path = out or choose_path(config)
    check_free(path)  # before a large model is loaded, and nothing is written before it is
    on_event = on_event or (lambda event: None)
    loaded = model or _load(config, on_event)
    ranks.wait()  # all have seen that the path is free
    try:
        if ranks.rank() > 0:
            return _follow(path, config, concept, loaded)
        return _go_on(RunDir.create(path, config), config, concept, loaded, on_event)
    except BaseException:
        adapters.detach(loaded)  # a caller's model is the base again, and may be edited anew
        raise


def resume(path: Path, *, on_event: OnEvent | None = None) -> Run:
    """Go on with a run that was stopped; a finished one is read back.

    Raises:
        RunError: `path` is no run, or its concept has changed since.
    """
    ranks.join()
    run = RunDir.open(path)
    config = run.config()
    if run.finished:
        measured = config.measure != "nothing"
        return Run(
            path, config, run.metrics() if measured else [], run.samples() if measured else []
        )
    concept = load_concept(config.concept)
    check_weakening(config, concept)
    known = run.provenance().get("data", {}).get(concept.name, concept.hash)
    if known != concept.hash:
        raise RunError(
            f"The concept {config.concept} has changed since {path} was begun.",
            "Restore its files, or start a new run.",
        )
    on_event = on_event or (lambda event: None)
    loaded = _load(config, on_event)
    ranks.wait()
    if ranks.rank() > 0:
        return _follow(path, config, concept, loaded)
    return _go_on(run, config, concept, loaded, on_event)


def choose_path(config: EditConfig) -> Path:
    """A run directory that is free, the same one for all processes of an edit."""
    ranks.join()
    name = f"{Path(config.concept).stem}-{config.direction}"
    return ranks.from_first(next_free(Path("runs"), name))


def _load(config: EditConfig, on_event: OnEvent) -> LoadedModel:
    on_event(StageEvent("load", f"loading {config.model}"))
    return load(
        config.model,
        revision=config.revision,
        device=config.device,
        dtype=config.dtype,
        trust_remote_code=config.trust_remote_code,
        device_memory=config.device_bytes,
        shard=config.shard,
        chat_template=config.chat_template,
        quantize=config.quantize,
    )


def _follow(path: Path, config: EditConfig, concept: Concept, loaded: LoadedModel) -> Run:
    """What every process but the first does: the same stages, and nothing is written."""
    setting = set_up(loaded, concept, config)
    load_checkpoint(setting.trainer, RunDir(path).checkpoints)
    ranks.wait()  # until the first has read it too, before it writes the next
    for _ in setting.trainer.play():
        pass
    setting.trainer.finish()
    result = Run(path, config, model=loaded)
    if config.measure != "nothing":
        measured = _measure(loaded, concept, config, lambda *_: None)
        result.metrics, result.samples = measured.records, measured.samples
    return result


def _go_on(
    run: RunDir,
    config: EditConfig,
    concept: Concept,
    loaded: LoadedModel,
    on_event: OnEvent,
) -> Run:
    """Every stage, in order."""

    def say(stage: str, detail: str, done: int = 0, total: int = 0) -> None:
        on_event(StageEvent(stage, detail, done, total))

    began = time.monotonic()
    if not loaded.templated:
        say("load", PLAIN)
    setting = set_up(loaded, concept, config, say)
    facts = _provenance(loaded, concept, config, setting)
    run.write_provenance({**run.provenance(), **facts})

    _play(run, setting, on_event, say)
    with atomic_folder(run.adapter) as folder:
        adapters.save(loaded, folder)
    with atomic_folder(run.discriminator) as folder:
        save_jury(setting.trainer.jury, folder)
    timings = {"edit_seconds": time.monotonic() - began, **setting.trainer.seconds}

    result = Run(run.path, config, model=loaded)
    if config.measure != "nothing":
        measuring = time.monotonic()
        measured = _measure(loaded, concept, config, say)
        result.metrics, result.samples = measured.records, measured.samples
        run.write_metrics(result.metrics)
        run.write_samples(result.samples)
        timings["measure_seconds"] = time.monotonic() - measuring
    timings["all_seconds"] = time.monotonic() - began

    say("write", f"writing the card and the report; {_split(timings)}")
    facts = {**run.provenance(), "timings": {k: round(v, 3) for k, v in timings.items()}}
    run.write_provenance(facts)
    _deliver(run, config, concept, result, facts)
    run.mark_finished()
    return result


def _play(run: RunDir, setting: Setting, on_event: OnEvent, say: Callable[..., None]) -> None:
    """Play the rounds that are left, each one on disk before the next begins."""
    trainer = setting.trainer
    if load_checkpoint(trainer, run.checkpoints):
        say("train", f"going on after round {trainer.round}")
    ranks.wait()
    run.truncate_events(trainer.round)
    for event in trainer.play():
        run.append_event(event)
        save_checkpoint(trainer, run.checkpoints)
        on_event(event)
    trainer.finish()


def _measure(
    loaded: LoadedModel, concept: Concept, config: EditConfig, say: Callable[..., None]
) -> Evaluation:
    say("measure", "base and edited model reply to the test split")
    concepts = [concept]
    if config.measure == "all":
        concepts += [load_concept(name) for name in builtin_names() if name != concept.name]
    return evaluate_concepts(
        loaded,
        concepts,
        limit=config.measure_rows or None,
        progress=lambda what, done, total: say("measure", what, done, total),
        max_new_tokens=config.reply_tokens,
    )


def _split(timings: Mapping[str, float]) -> str:
    """Where the time went, in a sentence."""
    whole = "the edit took {edit_seconds:.0f} s, {judge_seconds:.0f} s of them for validation"
    if "measure_seconds" in timings:
        whole += ", its measurement {measure_seconds:.0f} s"
    return whole.format_map(timings)


def _provenance(
    loaded: LoadedModel, concept: Concept, config: EditConfig, setting: Setting
) -> dict[str, Any]:
    recovery = setting.patching.recovery if setting.patching else ()
    return {
        **describe_machine(),
        "model": {
            "name": loaded.name,
            "revision": loaded.revision,
            "device": str(loaded.device),
            "loader": loaded.loader,
        },
        "seed": config.seed,
        "concept": concept_facts(concept),
        "data": {concept.name: concept.hash},
        "rows": setting.rows,
        "layers": {
            "chosen": list(setting.layers.adapted),
            "taps": list(setting.layers.tapped),
            "why": setting.layers.why,
            "scores": {str(i): round(value, 4) for i, value in enumerate(recovery)},
        },
    }


def _deliver(
    run: RunDir, config: EditConfig, concept: Concept, result: Run, facts: dict[str, Any]
) -> None:
    card = render_card(config, concept, result.metrics, facts)
    atomic_write(run.path / "README.md", card)
    report = render_report(config, concept, result.metrics, result.samples, run.events(), facts)
    atomic_write(run.path / "report.html", report)


def configure(overrides: Mapping[str, Any], config_file: Path | None = None) -> EditConfig:
    """Lay the settings over each other: defaults, the concept's tuned ones, the file, `overrides`.

    Raises:
        ConfigError: a key is unknown or a value is wrong.
    """
    from_file = read_config_file(config_file) if config_file else {}
    asked = resolve(from_file, overrides, where=str(config_file or "the options"))
    tuned = load_concept(asked.concept).settings.get(asked.direction, {})
    return resolve(tuned, from_file, overrides, where=str(config_file or "the options"))


def edit_model(
    model: LoadedModel | str = "pocket",
    concept: str = "safety",
    direction: str = "raise",
    *,
    out: Path | str | None = None,
    on_event: OnEvent | None = None,
    **settings: Any,
) -> Run:
    """`retouch.edit`: edit a loaded model (its adapter stays on it) or a named one.

    Raises:
        RetouchError: any of its kinds.
    """
    loaded = model if isinstance(model, LoadedModel) else None
    name = model.name if isinstance(model, LoadedModel) else model
    overrides = {"model": name, "concept": concept, "direction": direction, **settings}
    if "model" in settings:
        raise ConfigError("`model` is given twice.", "Give it once, as the first argument.")
    return edit(
        configure(overrides), out=Path(out) if out else None, model=loaded, on_event=on_event
    )


def evaluate_model(
    model: LoadedModel | str = "pocket",
    *,
    adapter: Path | str | None = None,
    concepts: Sequence[str] = (),
    split: Split = "test",
    limit: int | None = None,
    on_event: OnEvent | None = None,
) -> Evaluation:
    """`retouch.evaluate`: measure a model, and its adapter beside it, on built-in concepts.

    Raises:
        RetouchError: any of its kinds.
    """
    say = on_event or (lambda event: None)
    if not isinstance(model, LoadedModel):
        model = load(model, adapter=Path(adapter) if adapter else None)
    elif adapter is not None:
        raise ConfigError("`adapter` goes with a model's name, not with a loaded model.")
    if not model.templated:
        say(StageEvent("load", PLAIN))
    return evaluate_concepts(
        model,
        [load_concept(name) for name in (concepts or builtin_names())],
        split=split,
        limit=limit,
        progress=lambda what, done, total: say(StageEvent("measure", what, done, total)),
    )
