"""The comparison: every cell of the grid, then the tables and the picture.

```
cells/METHOD-LABELS-SEED.json   what a cell came to; one that is there is not made again
compare.json                    the scores of every cell, and Retouch against each method
compare.md                      the tables
compare.png                     effect against drift
```
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from retouch.comparison import crew, workers
from retouch.comparison.aim import Aim
from retouch.comparison.attempt import check_whole
from retouch.comparison.bench import Bench
from retouch.comparison.cell import Result, last, read_cell, write_cell
from retouch.comparison.cluster import Cluster, make_cluster
from retouch.comparison.page import render_page
from retouch.comparison.picture import draw
from retouch.comparison.plan import Cell, Metrics, Plan, make_plan
from retouch.comparison.summary import Contrast, Line, key, make_contrasts, make_lines
from retouch.core import plain
from retouch.core.atomic import atomic_write
from retouch.core.errors import ConfigError
from retouch.core.types import Direction, Event, StageEvent
from retouch.methods import catalog
from retouch.models.load import LoadedModel, load

OnEvent = Callable[[Event], None]


@dataclass(frozen=True)
class Comparison:
    """A finished comparison.

    Attributes:
        path: its folder.
        plan: what was compared, and how.
        aim: the effect and the drift.
        results: the cells, in the plan's order.
        lines: means over the seeds.
        contrasts: Retouch against the other methods; empty where it takes no part.
    """

    path: Path
    plan: Plan
    aim: Aim
    results: tuple[Result, ...]
    lines: tuple[Line, ...]
    contrasts: tuple[Contrast, ...]

    def records(self) -> list[dict[str, Any]]:
        """One record for each cell and metric: of the model with the method on it."""
        return [
            {
                **asdict(result.cell),
                "suite": record.suite,
                "metric": record.metric,
                "better": record.better,
                **asdict(last(record)),
                "seconds": round(result.seconds, 3),
            }
            for result in self.results
            for record in result.records
        ]


def compare(
    model: LoadedModel | str = "pocket",
    concept: str = "safety",
    direction: Direction = "raise",
    *,
    methods: Sequence[str] = catalog.IDS,
    seeds: int = 5,
    labels: int | Sequence[int] = 128,
    tuned: Path | str | None = None,
    metrics: Metrics = "own",
    stress: Sequence[str] = (),
    out: Path | str | None = None,
    jobs: int = 1,
    ray: str | None = None,
    cpus_per_job: int | None = None,
    gpus_per_job: float | None = None,
    limit: int | None = None,
    on_event: OnEvent | None = None,
    allow_weakening: str | None = None,
    source: str | None = None,
    **loading: Any,
) -> Comparison:
    """`retouch.compare`: try methods on the same rows and measure them on the test split.

    Args:
        model: a bare model, or its name; several `jobs` and a cluster need a name.
        concept: a built-in concept, or a pack.
        direction: raise or lower it.
        methods: ids of methods.
        seeds: how many; they are 0, 1, 2 and so on.
        labels: labelled rows, of source and of target each; or several such numbers.
        tuned: a file of tuned settings, in place of what ships.
        metrics: the concept's `own`, with those that it uses, or those of `all` built-in concepts.
        stress: harder questions, as in `retouch stress`, that every method is asked.
        out: the folder; an unfinished comparison in it goes on.
        jobs: cells that are made at once, each in a process; 1 makes them in this one.
        ray: make them on a Ray cluster: `local` starts one on this machine, `auto` joins the one
            that runs, HOST:PORT joins that one.
        cpus_per_job: what each reserves there (default: the cluster's are shared out).
        gpus_per_job: likewise, perhaps a part of one (default: one, if the device is a GPU).
        limit: at most so many rows a metric.
        on_event: told what happens.
        allow_weakening: the reason for comparing methods that weaken safety.
        source: training rows to move in place of the concept's: a label, or LABEL:GROUP.
        loading: options of `models.load.load`.

    Raises:
        RetouchError: any of its kinds; cells that are made stay on disk. What a method raises is
            noted in its cell, and the comparison goes on.
    """
    say = on_event or (lambda event: None)
    check_whole("--jobs", jobs, 1)
    if (jobs > 1 or ray is not None) and not isinstance(model, str):
        raise ConfigError("`jobs`: other processes cannot share a loaded model.", "Name it.")
    if ray is None and (cpus_per_job is not None or gpus_per_job is not None):
        option = "--gpus-per-job" if cpus_per_job is None else "--cpus-per-job"
        raise ConfigError(f"`{option}`: only a cluster reserves any.", "Give --ray, too.")
    device = str(loading.get("device", "auto"))
    cluster = ray if ray is None else make_cluster(ray, jobs, cpus_per_job, gpus_per_job, device)
    plan = make_plan(
        model if isinstance(model, str) else model.name,
        concept,
        direction,
        methods,
        seeds,
        [labels] if isinstance(labels, int) else labels,
        tuned=Path(tuned) if tuned else None,
        metrics=metrics,
        limit=limit,
        stress=stress,
        allow_weakening=allow_weakening,
        source=source,
        loading=loading,
    )
    path = Path(out) if out else Path("runs", f"compare-{plan.concept.name}-{direction}")
    results = _fill(plan, path / "cells", model, cluster or jobs, say)
    aim = plan.aim()
    lines, contrasts = make_lines(results), make_contrasts(aim, results)
    done = Comparison(path, plan, aim, tuple(results), tuple(lines), tuple(contrasts))
    say(StageEvent("write", "writing the tables and the picture"))
    _write(done)
    return done


def _fill(
    plan: Plan, folder: Path, model: LoadedModel | str, where: Cluster | int, say: OnEvent
) -> list[Result]:
    """Make the cells that are missing; all of them, in the plan's order."""
    cells = plan.cells()
    identities = {cell: plan.identity(cell) for cell in cells}
    found = {cell: read_cell(folder, cell, identities[cell]) for cell in cells}
    missing = [cell for cell in cells if found[cell] is None]
    present = len(cells) - len(missing)
    say(StageEvent("settings", f"of the methods: {plan.tuned}"))
    if present:
        say(StageEvent("cells", f"{present} of {len(cells)} are there already"))
    for count, result in enumerate(_make(plan, missing, model, where, say), start=present + 1):
        write_cell(folder, result, identities[result.cell])
        found[result.cell] = result
        what = f"{count}/{len(cells)}: {result.cell}: {_tell(plan.aim(), result)}"
        say(StageEvent("cell", what, count, len(cells)))
    return [result for result in found.values() if result is not None]


def _make(
    plan: Plan, cells: Sequence[Cell], model: LoadedModel | str, where: Cluster | int, say: OnEvent
) -> Iterator[Result]:
    """Make cells on a cluster, in so many processes, or for one job in this process."""
    if not cells:
        return
    if isinstance(where, Cluster):
        yield from crew.make_cells(
            plan, cells, where, lambda what: say(StageEvent("workers", what))
        )
        return
    if where > 1:
        say(StageEvent("load", f"loading {plan.model}, once for each of {where} processes"))
        yield from workers.make_cells(plan, cells, where)
        return
    if isinstance(model, str):
        say(StageEvent("load", f"loading {model}"))
        model = load(model, **plan.loading)
    bench = Bench(model, plan)
    for cell in cells:
        yield bench.make(cell)


def _tell(aim: Aim, result: Result) -> str:
    if result.state == "failed":
        return f"failed: {result.reason}"
    scores = result.scores()
    effect, drift = (scores[key(spec.suite, spec.metric)].value for spec in (aim.effect, aim.drift))
    return f"effect {effect:.3f}, drift {drift:.4f}, {result.seconds:.0f} s"


def _write(done: Comparison) -> None:
    plan, aim = done.plan, done.aim
    methods = {id: catalog.get_method(id) for id in plan.methods}
    values = {
        "model": plan.model,
        "concept": plan.concept.name,
        "hash": plan.concept.hash,
        "direction": plan.direction,
        "effect": {
            "suite": aim.effect.suite,
            "metric": aim.effect.metric,
            "better": aim.better,
        },
        "limit": plan.limit,
        "settings_from": plan.tuned,
        "methods": {
            id: {
                "title": method.title,
                "source": method.source,
                "settings": dict(plan.settings[id]),
            }
            for id, method in methods.items()
        },
        "records": done.records(),
        "failed": [
            {**asdict(result.cell), "reason": result.reason}
            for result in done.results
            if result.state == "failed"
        ],
        "contrasts": [asdict(contrast) for contrast in done.contrasts],
    }
    titles = {id: method.title for id, method in methods.items()}
    atomic_write(done.path / "compare.json", plain.to_json(values, indent=2) + "\n")
    atomic_write(
        done.path / "compare.md",
        render_page(plan, aim, done.results, done.lines, done.contrasts, titles),
    )
    atomic_write(done.path / "compare.png", draw(aim, done.lines, titles))
