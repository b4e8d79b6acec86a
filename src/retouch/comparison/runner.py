"""Where points are made: a editable model, and what points can share."""

from __future__ import annotations

import torch

from retouch.comparison.grid import Grid, GridPoint
from retouch.comparison.method_run import check_bare, run_method
from retouch.comparison.result import Result
from retouch.comparison.tuned_settings import make_settings
from retouch.core.errors import RetouchError
from retouch.evaluation.evaluate import Asked
from retouch.methods import registry
from retouch.models.editable_model import EditableModel
from retouch.task.task import EditTask, build_task


class Runner:
    """Makes points, one after the other, and keeps the base's responses and the last task."""

    def __init__(self, editable: EditableModel, grid: Grid) -> None:
        check_bare(editable)
        self._editable, self._plan = editable, grid
        self._concept, self._measured, self._aim = grid.concept, grid.measured, grid.objective()
        self._known: dict[Asked, str] = {}
        self._task: tuple[tuple[int, int], EditTask] | None = None

    def make(self, point: GridPoint) -> Result:
        """Make a point; what its method raises is noted in it.

        Raises:
            RetouchError: the task cannot be set, which is no method's fault.
        """
        task, threads = self._set_task(point), torch.get_num_threads()
        method = registry.get_method(point.method)
        settings = make_settings(method, self._plan.settings[point.method], self._plan.tuned)
        try:
            tried = run_method(
                self._editable,
                method,
                settings,
                task,
                self._measured,
                split="test",
                limit=self._plan.limit,
                known=self._known,
                attacks=self._plan.robustness,
            )
        except RetouchError as error:
            return Result(point, "failed", str(error), threads=threads)
        kept = [(spec.suite, spec.metric) for spec in (self._aim.effect, self._aim.drift)]
        return Result(
            point,
            "done",
            seconds=tried.seconds,
            threads=threads,
            records=(*tried.evaluation.records, *tried.robustness_records),
            rows={"/".join(name): tried.evaluation.rows[name] for name in kept},
        )

    def _set_task(self, point: GridPoint) -> EditTask:
        """The task of the point's labels and seed: all methods get the same rows."""
        key = point.labels, point.seed
        if self._task is None or self._task[0] != key:
            config = self._plan.config(point.labels, point.seed)
            self._task = key, build_task(self._editable, self._concept, config)
        return self._task[1]
