"""Run grid points on a loaded model, and share between them what they have in common."""

from __future__ import annotations

import torch

from retouch.comparison.grid import Grid, GridPoint
from retouch.comparison.method_run import check_unedited, run_method
from retouch.comparison.objective import metric_key
from retouch.comparison.result import Result
from retouch.comparison.tuned_settings import make_settings
from retouch.core.errors import RetouchError
from retouch.core.options import flatten
from retouch.evaluation.evaluate import PromptKey
from retouch.methods import registry
from retouch.models.editable_model import EditableModel
from retouch.task.task import EditTask, build_task


class Runner:
    """Runs points one after the other; caches the base model's responses and the last task."""

    def __init__(self, editable: EditableModel, grid: Grid) -> None:
        """Take a base model.

        Raises:
            ModelError: it is edited already.
        """
        check_unedited(editable)
        self._editable, self._grid, self._objective = editable, grid, grid.objective()
        self._base_responses: dict[PromptKey, str] = {}
        self._task: tuple[tuple[int, int], EditTask] | None = None

    def run(self, point: GridPoint) -> Result:
        """Run a point; an error of its method makes it a failed result.

        Raises:
            RetouchError: the task cannot be built, which concerns all methods.
        """
        task, threads = self._build_task(point), torch.get_num_threads()
        grid, method = self._grid, registry.get_method(point.method)
        settings = make_settings(method, flatten(grid.settings[point.method]), grid.settings_origin)
        try:
            run = run_method(
                self._editable,
                method,
                settings,
                task,
                grid.measured,
                split="test",
                limit=grid.limit,
                base_responses=self._base_responses,
                attacks=grid.attacks,
            )
        except RetouchError as error:
            return Result(point, "failed", str(error), threads=threads)
        return Result(
            point,
            "done",
            seconds=round(run.seconds, 3),
            threads=threads,
            records=tuple(run.records),
            values={
                metric_key(spec): run.values[spec.suite, spec.metric]
                for spec in (self._objective.effect, self._objective.drift)
            },
        )

    def _build_task(self, point: GridPoint) -> EditTask:
        """The task of the point's examples and seed, the same for all methods."""
        key = point.num_examples, point.seed
        if self._task is None or self._task[0] != key:
            grid, data = self._grid, self._grid.data(point.num_examples)
            task = build_task(self._editable, grid.concept, grid.direction, point.seed, data)
            self._task = key, task
        return self._task[1]
