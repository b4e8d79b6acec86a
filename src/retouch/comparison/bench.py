"""Where cells are made: a loaded model, and what cells can share."""

from __future__ import annotations

import torch

from retouch.comparison.attempt import attempt, check_bare
from retouch.comparison.cell import Result
from retouch.comparison.plan import Cell, Plan
from retouch.comparison.tuned import make_settings
from retouch.core.errors import RetouchError
from retouch.editing.task import Task, set_task
from retouch.evaluation.runner import Asked
from retouch.methods import catalog
from retouch.models.load import LoadedModel


class Bench:
    """Makes cells, one after the other, and keeps the base's replies and the last task."""

    def __init__(self, loaded: LoadedModel, plan: Plan) -> None:
        check_bare(loaded)
        self._loaded, self._plan = loaded, plan
        self._concept, self._measured, self._aim = plan.concept, plan.measured, plan.aim()
        self._known: dict[Asked, str] = {}
        self._task: tuple[tuple[int, int], Task] | None = None

    def make(self, cell: Cell) -> Result:
        """Make a cell; what its method raises is noted in it.

        Raises:
            RetouchError: the task cannot be set, which is no method's fault.
        """
        task, threads = self._set_task(cell), torch.get_num_threads()
        method = catalog.get_method(cell.method)
        settings = make_settings(method, self._plan.settings[cell.method], self._plan.tuned)
        try:
            tried = attempt(
                self._loaded,
                method,
                settings,
                task,
                self._measured,
                split="test",
                limit=self._plan.limit,
                known=self._known,
                questions=self._plan.stress,
            )
        except RetouchError as error:
            return Result(cell, "failed", str(error), threads=threads)
        kept = [(spec.suite, spec.metric) for spec in (self._aim.effect, self._aim.drift)]
        return Result(
            cell,
            "done",
            seconds=tried.seconds,
            threads=threads,
            records=(*tried.evaluation.records, *tried.harder),
            rows={"/".join(name): tried.evaluation.rows[name] for name in kept},
        )

    def _set_task(self, cell: Cell) -> Task:
        """The task of the cell's labels and seed: all methods get the same rows."""
        key = cell.labels, cell.seed
        if self._task is None or self._task[0] != key:
            config = self._plan.config(cell.labels, cell.seed)
            self._task = key, set_task(self._loaded, self._concept, config)
        return self._task[1]
