"""The sum of several edits of one model as a single adapter, measured beside each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from retouch.concepts.registry import concept_for_model
from retouch.core.atomic import atomic_folder, atomic_write
from retouch.core.config import LoadConfig
from retouch.core.config_file import explicit
from retouch.core.errors import ConfigError
from retouch.core.run_dir import RunDir, check_free, find_adapter
from retouch.core.types import OnEvent, Record, StageEvent, ignore_event
from retouch.evaluation.safety_probe import probe_safety
from retouch.evaluation.strength_sweep import effect_records
from retouch.models import adapters
from retouch.models.adapter_merging import merge_adapters
from retouch.models.load import load, model_name
from retouch.reporting.merged_card import MergedEdit, render_merged_card
from retouch.reporting.safety_gate import check_probe, check_weakening

MERGED = "merged"


@dataclass(frozen=True)
class MergeResult:
    """A merged adapter and the effect of every edited concept and the drift.

    The metrics are by run, and those of the sum under `merged`; before is the base model. Together
    they tell which edit interferes with which concept.

    Attributes:
        path: the folder of the adapter.
        metrics: every concept's effect and the drift, by run.
        overlaps: the cosine of each pair of updates, in the order of the runs.
    """

    path: Path
    metrics: dict[str, list[Record]]
    overlaps: list[list[float]]


def merge(
    runs: Sequence[Path | str],
    output_dir: Path | str,
    weights: Sequence[float] | None = None,
    *,
    model: str,
    limit: int | None = 200,
    allow_weakening: str | None = None,
    load_config: LoadConfig | None = None,
    on_event: OnEvent = ignore_event,
) -> MergeResult:
    r"""Merge the edits of several runs: $W + \sum_i w_i \Delta W_i$, exactly.

    Args:
        runs: run directories of edits of the same model.
        output_dir: a new folder for the PEFT adapter, whose rank is the sum of the runs' ranks.
        weights: the weight of each run (default: 1 each).
        model: the name of the model that the runs edit.
        limit: maximum number of test examples per metric.
        allow_weakening: the reason, where the sum weakens safety; it is written on the card.
        load_config: how the model is loaded; the revision and the chat template are those of the
            first run where it does not set them.
        on_event: receives the events.

    Raises:
        ConfigError: the runs edit different models, or another one than `model`; or their number
            differs from that of weights.
        RefusedError: an edit is declared to weaken safety, or the sum does, without a reason.
        RunError: a run has no adapter, or `output_dir` is in use.
        ModelError: the model cannot be loaded, or an adapter is not plain LoRA.
    """
    paths, output_dir = [Path(run) for run in runs], Path(output_dir)
    weights = [1.0] * len(paths) if weights is None else weights
    if len(weights) != len(paths):
        raise ConfigError(
            f"`weights` must have one value per run, got {len(weights)} for {len(paths)} runs.",
            code="weights-count",
        )
    opened = [RunDir.open(path) for path in paths]
    configs = [run.config() for run in opened]
    _check_same_model(paths, [(config.model, config.load.revision) for config in configs], model)
    for path in paths:
        find_adapter(path)
    check_free(output_dir)
    chosen = dict.fromkeys((config.concept, config.direction) for config in configs)
    concepts = {
        (name, direction): (concept_for_model(name, model_name(model)), direction)
        for name, direction in chosen
    }
    for config, weight in zip(configs, weights, strict=True):
        concept, direction = concepts[config.concept, config.direction]
        if weight > 0:  # what an edit with a negative weight does is measured
            check_weakening(direction, allow_weakening, concept)
    for concept, _ in concepts.values():
        concept.report_notes(on_event)
    on_event(StageEvent("load", f"loading {model}"))
    editable = load(model, _load_config(opened[0], load_config))
    metrics: dict[str, list[Record]] = {}
    overlaps: list[list[float]] = []
    singles = [(str(path), [path], [1.0]) for path in paths]
    for name, folders, shares in (*singles, (MERGED, paths, weights)):
        overlaps = merge_adapters(editable, folders, shares)
        metrics[name] = effect_records(
            editable,
            list(concepts.values()),
            limit=limit,
            progress=partial(_report, on_event, name),
        )
        if name == MERGED:
            probe = probe_safety(editable, partial(_report, on_event, name))
            check_probe(probe, allow_weakening, "The sum of the edits")
            edits = [
                MergedEdit(path.name, model, one.concept, one.direction, weight, metrics[str(path)])
                for path, one, weight in zip(paths, configs, weights, strict=True)
            ]
            reasons = [allow_weakening, *(config.allow_weakening for config in configs)]
            with atomic_folder(output_dir) as folder:
                adapters.save(editable, folder)
                card = render_merged_card(edits, metrics[name], probe, reasons)
                atomic_write(folder / "README.md", card)
        adapters.detach(editable)
    return MergeResult(output_dir, metrics, overlaps)


def _check_same_model(
    paths: Sequence[Path], models: Sequence[tuple[str, str | None]], given: str
) -> None:
    if models[0][0] != given:
        raise ConfigError(
            f"{paths[0]} edits {models[0][0]!r:.200}, and `model` is {given!r}.",
            "Give the model that the runs edit.",
            code="models-differ",
        )
    for path, model in zip(paths, models, strict=True):
        if model != models[0]:
            names = [f"{name} ({revision or 'default revision'})" for name, revision in models]
            raise ConfigError(
                f"{paths[0]} edits {names[0]}, and {path} edits {names[models.index(model)]}.",
                "Only edits of the same model and revision can be merged.",
                code="models-differ",
            )


def _load_config(run: RunDir, given: LoadConfig | None) -> LoadConfig:
    """The load options that were given, on top of those of a run that decide the weights."""
    options = {**run.load_options(), "quantize": "none"}
    return LoadConfig(**options | (explicit(given) if given else {}))


def _report(on_event: OnEvent, name: str, description: str, done: int, total: int) -> None:
    on_event(StageEvent("measure", f"{name}: {description}", done, total))
