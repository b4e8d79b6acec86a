"""The search for a method's settings on the validation split, trial by trial, on disk.

`search.json` is all there is of a search: it is written anew after every trial, and a search that
finds one goes on from it. A trial that was cut off is made again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from retouch.comparison.method_run import check_bare, check_whole, run_method, task_config
from retouch.comparison.objective import Objective, find_objective
from retouch.comparison.sampler import check_optuna, suggest
from retouch.comparison.search_space import SearchSpace, find_search_space
from retouch.comparison.study import Study
from retouch.comparison.trial import GUARD, Trial
from retouch.comparison.tuned_settings import make_settings
from retouch.concepts.concept import Concept
from retouch.concepts.registry import load_concept
from retouch.core.errors import ConfigError, RetouchError
from retouch.core.types import Direction, Event, StageEvent
from retouch.evaluation.evaluate import Asked
from retouch.methods import registry
from retouch.methods.method import Method
from retouch.models.editable_model import EditableModel
from retouch.models.load import load
from retouch.task.task import EditTask, build_task

OnEvent = Callable[[Event], None]


def search(
    model: EditableModel | str,
    concept: str,
    direction: Direction,
    method: str,
    *,
    labels: int = 128,
    trials: int = 40,
    minutes: float = 10.0,
    seed: int = 0,
    guard: float = GUARD,
    limit: int | None = None,
    out: Path | None = None,
    on_event: OnEvent | None = None,
    allow_weakening: str | None = None,
    **loading: Any,
) -> Study:
    """Study a method's settings: much effect and little drift on the validation split.

    Args:
        model: a bare model, or its name.
        concept: a built-in concept, or a pack.
        direction: raise or lower it.
        method: the id of a method.
        labels: labelled rows, of source and of target each.
        trials: at most so many trials, those of earlier sittings included; the first has the
            defaults.
        minutes: no trial is retain_openings once the trials took so long, over all sittings.
        seed: decides rows, first weights and the trials.
        guard: the drift that the choice allows, nats a token.
        limit: at most so many validation rows a metric.
        out: the folder; an unfinished search in it goes on.
        on_event: told what happens.
        allow_weakening: the reason for searching settings that weaken safety.
        loading: options of `models.load.load`.

    Raises:
        RetouchError: any of its kinds; trials that are done stay on disk. A trial that raises one
            is recorded as failed, and the search goes on.
    """
    progress = on_event or (lambda event: None)
    check_whole("--trials", trials, 1)
    for option, number in (("--minutes", minutes), ("--guard", guard)):
        if not number > 0:
            raise ConfigError(f"`{option}`: {number} will not do.", "Give a number above 0.")
    made = registry.get_method(method)
    check_optuna()
    pack = load_concept(concept)
    objective = find_objective(pack, direction)
    name = model if isinstance(model, str) else model.name
    config = task_config(pack, name, concept, direction, labels, seed, allow_weakening)
    identity = {
        "method": method,
        "model": name,
        "concept": pack.name,
        "hash": pack.hash,
        "direction": direction,
        "labels": labels,
        "seed": seed,
        "limit": limit,
    }
    path = out or Path("runs", f"search-{pack.name}-{direction}-{method}")
    found = Study(path, identity, {"trials": trials, "minutes": minutes}, guard)
    found.read()
    space = find_search_space(made.settings).starting(made.defaults(pack, direction))
    if found.over or suggest(space, found.trials, seed) is None:
        found.write()  # the guard may be another one
        return found
    if isinstance(model, str):
        progress(StageEvent("load", f"loading {model}"))
        model = load(model, **loading)
    check_bare(model)
    progress(StageEvent("responses", "the base model responses to the rows of the concept"))
    task = build_task(model, pack, config)
    own = made.defaults(pack, direction)
    _go_on(found, _Bench(model, made, task, pack, objective, limit, own), space, seed, progress)
    return found


@dataclass
class _Bench:
    """What all trials share."""

    editable: EditableModel
    method: Method
    task: EditTask
    concept: Concept
    objective: Objective
    limit: int | None
    own: dict[str, Any]
    known: dict[Asked, str] = field(default_factory=dict)

    def run(self, number: int, values: dict[str, Any], progress: OnEvent) -> Trial:
        """Make one trial; what the user could hint makes it a failed one."""
        measured = replace(self.concept, metrics=(self.objective.effect, self.objective.drift))
        began = time.monotonic()

        def tell(what: str, done: int, total: int) -> None:
            progress(StageEvent("trial", "", done, total))

        try:
            settings = make_settings(self.method, {**self.own, **values}, f"trial {number}")
            tried = run_method(
                self.editable,
                self.method,
                settings,
                self.task,
                [measured],
                split="validation",
                limit=self.limit,
                known=self.known,
                progress=tell,
            )
        except RetouchError as error:
            seconds = round(time.monotonic() - began, 3)
            return Trial(number, values, None, None, seconds, "failed", str(error))
        scores = {r.metric: r.after or r.before for r in tried.evaluation.records}
        return Trial(
            number,
            values,
            self.objective.gain(scores[self.objective.effect.metric].value),
            scores[self.objective.drift.metric].value,
            round(time.monotonic() - began, 3),
        )


def _go_on(found: Study, bench: _Bench, space: SearchSpace, seed: int, progress: OnEvent) -> None:
    total = int(found.budget["trials"])
    while not found.over:
        values = suggest(space, found.trials, seed)
        if values is None:
            progress(StageEvent("trial", "nothing is left to try"))
            return
        trial = bench.run(len(found.trials), values, progress)
        found.trials.append(trial)
        found.write()
        what = f"failed: {trial.reason}"
        if trial.effect is not None and trial.drift is not None:
            what = f"effect {trial.effect:.3f}, drift {trial.drift:.4f}, {trial.seconds:.0f} s"
            if found.chosen is trial:
                what += ", the choice so far"
        progress(StageEvent("trial", f"{trial.number + 1}/{total}: {what}"))
