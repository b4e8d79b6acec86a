"""The comparison: every point of the grid, then the tables and the picture.

```
points/METHOD-LABELS-SEED.json   what a point came to; one that is there is not made again
compare.json                    the scores of every point, and Retouch against each method
compare.md                      the tables
compare.png                     effect against drift
```
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from retouch.comparison import parallel, ray_backend
from retouch.comparison.grid import Grid, GridPoint, Metrics, make_grid
from retouch.comparison.method_run import check_whole
from retouch.comparison.objective import Objective
from retouch.comparison.plot import draw
from retouch.comparison.ray_cluster import Cluster, make_cluster
from retouch.comparison.report import render_page
from retouch.comparison.result import Result, last, read_cell, write_cell
from retouch.comparison.runner import Runner
from retouch.comparison.summary import PairedTest, SummaryRow, key, make_lines, make_paired_tests
from retouch.core import serialization
from retouch.core.atomic import atomic_write
from retouch.core.errors import ConfigError
from retouch.core.types import Direction, Event, StageEvent
from retouch.methods import registry
from retouch.models.editable_model import EditableModel
from retouch.models.load import load

OnEvent = Callable[[Event], None]


@dataclass(frozen=True)
class Comparison:
    """A finished comparison.

    Attributes:
        path: its folder.
        grid: what was compared, and how.
        objective: the effect and the drift.
        results: the points, in the grid's order.
        lines: means over the seeds.
        paired_tests: Retouch against the other methods; empty where it takes no part.
    """

    path: Path
    grid: Grid
    objective: Objective
    results: tuple[Result, ...]
    lines: tuple[SummaryRow, ...]
    paired_tests: tuple[PairedTest, ...]

    def records(self) -> list[dict[str, Any]]:
        """One record for each point and metric: of the model with the method on it."""
        return [
            {
                **asdict(result.point),
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
    model: EditableModel | str = "pocket",
    concept: str = "safety",
    direction: Direction = "raise",
    *,
    methods: Sequence[str] = registry.IDS,
    seeds: int = 5,
    labels: int | Sequence[int] = 128,
    tuned: Path | str | None = None,
    metrics: Metrics = "own",
    robustness: Sequence[str] = (),
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
        robustness: robustness_records attacks, as in `retouch robustness`, that every method is asked.
        out: the folder; an unfinished comparison in it goes on.
        jobs: points that are made at once, each in a process; 1 makes them in this one.
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
        RetouchError: any of its kinds; points that are made stay on disk. What a method raises is
            noted in its point, and the comparison goes on.
    """
    progress = on_event or (lambda event: None)
    check_whole("--jobs", jobs, 1)
    if (jobs > 1 or ray is not None) and not isinstance(model, str):
        raise ConfigError("`jobs`: other processes cannot share a editable model.", "Name it.")
    if ray is None and (cpus_per_job is not None or gpus_per_job is not None):
        option = "--gpus-per-job" if cpus_per_job is None else "--cpus-per-job"
        raise ConfigError(f"`{option}`: only a cluster reserves any.", "Give --ray, too.")
    device = str(loading.get("device", "auto"))
    cluster = ray if ray is None else make_cluster(ray, jobs, cpus_per_job, gpus_per_job, device)
    grid = make_grid(
        model if isinstance(model, str) else model.name,
        concept,
        direction,
        methods,
        seeds,
        [labels] if isinstance(labels, int) else labels,
        tuned=Path(tuned) if tuned else None,
        metrics=metrics,
        limit=limit,
        robustness=robustness,
        allow_weakening=allow_weakening,
        source=source,
        loading=loading,
    )
    path = Path(out) if out else Path("runs", f"compare-{grid.concept.name}-{direction}")
    results = _fill(grid, path / "points", model, cluster or jobs, progress)
    objective = grid.objective()
    lines, paired_tests = make_lines(results), make_paired_tests(objective, results)
    done = Comparison(path, grid, objective, tuple(results), tuple(lines), tuple(paired_tests))
    progress(StageEvent("write", "writing the tables and the picture"))
    _write(done)
    return done


def _fill(
    grid: Grid, folder: Path, model: EditableModel | str, where: Cluster | int, progress: OnEvent
) -> list[Result]:
    """Make the points that are missing; all of them, in the grid's order."""
    points = grid.points()
    identities = {point: grid.identity(point) for point in points}
    found = {point: read_cell(folder, point, identities[point]) for point in points}
    missing = [point for point in points if found[point] is None]
    present = len(points) - len(missing)
    progress(StageEvent("settings", f"of the methods: {grid.tuned}"))
    if present:
        progress(StageEvent("points", f"{present} of {len(points)} are there already"))
    for count, result in enumerate(_make(grid, missing, model, where, progress), start=present + 1):
        write_cell(folder, result, identities[result.point])
        found[result.point] = result
        what = f"{count}/{len(points)}: {result.point}: {_tell(grid.objective(), result)}"
        progress(StageEvent("point", what, count, len(points)))
    return [result for result in found.values() if result is not None]


def _make(
    grid: Grid,
    points: Sequence[GridPoint],
    model: EditableModel | str,
    where: Cluster | int,
    progress: OnEvent,
) -> Iterator[Result]:
    """Make points on a cluster, in so many processes, or for one job in this process."""
    if not points:
        return
    if isinstance(where, Cluster):
        yield from ray_backend.make_cells(
            grid, points, where, lambda what: progress(StageEvent("workers", what))
        )
        return
    if where > 1:
        progress(StageEvent("load", f"loading {grid.model}, once for each of {where} processes"))
        yield from parallel.make_cells(grid, points, where)
        return
    if isinstance(model, str):
        progress(StageEvent("load", f"loading {model}"))
        model = load(model, **grid.loading)
    bench = Runner(model, grid)
    for point in points:
        yield bench.make(point)


def _tell(objective: Objective, result: Result) -> str:
    if result.state == "failed":
        return f"failed: {result.reason}"
    scores = result.scores()
    effect, drift = (
        scores[key(spec.suite, spec.metric)].value for spec in (objective.effect, objective.drift)
    )
    return f"effect {effect:.3f}, drift {drift:.4f}, {result.seconds:.0f} s"


def _write(done: Comparison) -> None:
    grid, objective = done.grid, done.objective
    methods = {id: registry.get_method(id) for id in grid.methods}
    values = {
        "model": grid.model,
        "concept": grid.concept.name,
        "hash": grid.concept.hash,
        "direction": grid.direction,
        "effect": {
            "suite": objective.effect.suite,
            "metric": objective.effect.metric,
            "better": objective.better,
        },
        "limit": grid.limit,
        "settings_from": grid.tuned,
        "methods": {
            id: {
                "title": method.title,
                "source": method.source,
                "settings": dict(grid.settings[id]),
            }
            for id, method in methods.items()
        },
        "records": done.records(),
        "failed": [
            {**asdict(result.point), "reason": result.reason}
            for result in done.results
            if result.state == "failed"
        ],
        "paired_tests": [asdict(contrast) for contrast in done.paired_tests],
    }
    titles = {id: method.title for id, method in methods.items()}
    atomic_write(done.path / "compare.json", serialization.to_json(values, indent=2) + "\n")
    atomic_write(
        done.path / "compare.md",
        render_page(grid, objective, done.results, done.lines, done.paired_tests, titles),
    )
    atomic_write(done.path / "compare.png", draw(objective, done.lines, titles))
