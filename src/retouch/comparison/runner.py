"""Run grid points on a loaded model: apply the method, evaluate, and remove it again."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from retouch.comparison.grid import Grid, GridPoint
from retouch.comparison.objective import metric_key
from retouch.comparison.result import Result
from retouch.comparison.samples import choose_samples
from retouch.comparison.tuned_settings import make_settings
from retouch.core.errors import DivergedError, RetouchError
from retouch.core.options import flatten
from retouch.core.types import OnEvent, Progress, Record, Split, ignore_event, no_progress
from retouch.evaluation.evaluate import BaseResults, evaluate
from retouch.evaluation.robustness import applicable_attacks, run_robustness
from retouch.evaluation.safety_probe import probe_safety
from retouch.evaluation.scorers import shows_effect
from retouch.methods import registry
from retouch.models import adapters
from retouch.models.editable_model import EditableModel
from retouch.reporting.safety_gate import check_probe
from retouch.task.task import EditTask, build_task


class Runner:
    """Runs points one after the other; caches the base model's results and the last task."""

    def __init__(
        self,
        editable: EditableModel,
        grid: Grid,
        split: Split = "test",
        on_event: OnEvent = ignore_event,
    ) -> None:
        self._editable, self._grid, self._split, self._on_event = editable, grid, split, on_event
        self._base = BaseResults()
        self._task: tuple[tuple[int, int], EditTask] | None = None

    def build_task(self, point: GridPoint) -> EditTask:
        """The task of the point's examples and seed, the same for all methods.

        Raises:
            RetouchError: it cannot be built.
        """
        key = point.num_examples, point.seed
        if self._task is None or self._task[0] != key:
            grid, data = self._grid, self._grid.data(point.num_examples)
            where = grid.concept, grid.direction, point.seed, data
            # As for `retouch edit`: the target responses are those that the model elicits.
            shows = shows_effect(grid.concept, grid.direction)
            task = build_task(self._editable, *where, on_event=self._on_event, shows=shows)
            self._task = key, task
        return self._task[1]

    def run(
        self,
        point: GridPoint,
        overrides: Mapping[str, Any] | None = None,
        progress: Progress = no_progress,
    ) -> Result:
        """Run a point; an error of its method makes it a failed result.

        `overrides` are settings by dotted path that replace those of the grid.

        Raises:
            RetouchError: the task cannot be built, which concerns all methods.
        """
        task, threads = self.build_task(point), torch.get_num_threads()
        grid, method = self._grid, registry.get_method(point.method)
        values = {**flatten(grid.settings[point.method]), **(overrides or {})}
        try:
            settings = make_settings(method, values, grid.settings_origin)
            began = time.monotonic()
            method.apply(self._editable, task, settings, progress)
            seconds = time.monotonic() - began
            if grid.adapters and self._editable.adapted and not self._editable.interventions:
                # An adapter is only measured unless it is saved, which makes it an edited model.
                probe = probe_safety(self._editable, known=self._base)
                check_probe(probe, grid.allow_weakening, f"The adapter of {point}")
                adapters.save(self._editable, grid.adapters / point.name)
            evaluation = evaluate(
                self._editable,
                grid.measured,
                suites=grid.suites,
                split=self._split,
                limit=grid.limit,
                known=self._base,
                max_new_tokens=grid.max_new_tokens,
            )
            records = [*evaluation.metrics, *self._attack(task)]
            for record in records:
                if record.after is not None and not math.isfinite(record.after.value):
                    raise DivergedError(
                        f"The metric {metric_key(record)} is not finite.", code="metric-not-finite"
                    )
        except RetouchError as error:
            return Result(point, "failed", str(error), threads=threads)
        finally:
            adapters.detach(self._editable)
        objective, suites = grid.objective(), {one.name for one in grid.suites}
        compared = {metric_key(objective.effect), metric_key(objective.drift)}
        return Result(
            point,
            "done",
            seconds=round(seconds, 3),
            threads=threads,
            records=tuple(records),
            values={
                f"{suite}/{metric}": values
                for (suite, metric), values in evaluation.values.items()
                if suite in suites or f"{suite}/{metric}" in compared
            },
            samples=choose_samples(evaluation.samples, grid.samples, suites),
        )

    def _attack(self, task: EditTask) -> Iterator[Record]:
        """The metrics of those of the attacks that apply to the model with the method applied."""
        if not self._grid.attacks:
            return
        applicable = applicable_attacks(self._editable, task.concept)
        report = run_robustness(
            self._editable,
            task.concept,
            [name for name in applicable if name in self._grid.attacks],
            limit=self._grid.limit,
            seed=task.seed,
            direction=task.direction,
            layer=task.layers.adapted[0],  # latent attacks act on the same layer for all methods
        )
        yield from report.records
        for curve in report.curves:
            for x, score in curve.points:
                # A curve has no base scores, so its scores are recorded as `before`.
                name = f"{curve.metric}_{curve.along}_{x:g}"
                yield Record(curve.suite, name, curve.unit, curve.better, score)
