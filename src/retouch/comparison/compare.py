"""Compare methods: run every point of the grid, then write the tables and the plot.

```
results/METHOD-NUM_EXAMPLES-SEED.json   the result of a point; an existing one is reused
compare.json                            the scores of every point, and the paired tests
compare.md                              the tables
compare.png                             effect against drift
samples.md                              responses of every method, if samples are kept
adapters/METHOD-NUM_EXAMPLES-SEED/      the adapter of a point, if adapters are saved
```
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retouch.comparison.grid import (
    Grid,
    GridPoint,
    MetricSet,
    check_integer,
    make_grid,
    unedited_model,
)
from retouch.comparison.objective import Objective, metric_key
from retouch.comparison.parallel import ProcessPool
from retouch.comparison.plot import render_plot
from retouch.comparison.ray_backend import Cluster, RayPool, connect, import_ray
from retouch.comparison.result import Result, final_score, read_saved
from retouch.comparison.runner import Runner
from retouch.comparison.samples import render_samples
from retouch.comparison.summary import PairedTest, SummaryRow, paired_tests, summarize
from retouch.comparison.table import Table, html, main_columns, make_table, render_markdown
from retouch.concepts.concept import Concept
from retouch.core.atomic import atomic_write, check_output_folder
from retouch.core.config import AUTO_CONCEPT, LoadConfig
from retouch.core.errors import ConfigError
from retouch.core.formatting import DIRECTION_DONE
from retouch.core.lock import locked
from retouch.core.plugins import import_library
from retouch.core.progress import displayed
from retouch.core.run_dir import safe_name
from retouch.core.serialization import to_json, to_plain
from retouch.core.types import Direction, OnEvent, StageEvent
from retouch.evaluation.evaluate import MAX_NEW_TOKENS
from retouch.methods import registry
from retouch.models.editable_model import EditableModel
from retouch.models.load import load

if TYPE_CHECKING:
    import pandas

Backend = EditableModel | Cluster | int  # a loaded model, or a number of processes


@dataclass(frozen=True)
class Comparison:
    """A finished comparison.

    Attributes:
        path: its folder.
        grid: the methods, numbers of examples and seeds, with all settings.
        results: the result of each point, in the grid's order.
    """

    path: Path
    grid: Grid
    results: tuple[Result, ...]

    @property
    def objective(self) -> Objective:
        """The effect and the drift."""
        return self.grid.objective()

    @cached_property
    def rows(self) -> tuple[SummaryRow, ...]:
        """The summary of the results over the seeds."""
        return tuple(summarize(self.results))

    @cached_property
    def tests(self) -> tuple[PairedTest, ...]:
        """Retouch against the other methods; empty where it is not among the methods."""
        return tuple(paired_tests(self.results))

    @property
    def titles(self) -> dict[str, str]:
        """The titles of the methods by id."""
        return {id: registry.get_method(id).title for id in self.grid.methods}

    def tables(self, *, main: bool = False) -> list[Table]:
        """The table of each number of examples; `main` leaves out those of the retain set."""
        columns = main_columns(self.objective, self.grid.concept, self.grid.direction)
        columns = [column for column in columns if column.main or not main]
        return [
            make_table(count, self.rows, columns, self.tests, self.titles)
            for count in self.grid.num_examples
        ]

    def to_pandas(self) -> pandas.DataFrame:
        """One row for each point and metric, with the score of the model with the method applied.

        The columns are method, num_examples, seed, suite, metric, better, value, low, high, n and
        seconds.

        Raises:
            ConfigError: pandas is not installed.
        """
        library = import_library("pandas", "`to_pandas`", "pandas")
        return library.DataFrame(_score_rows(self.results))

    def _repr_html_(self) -> str:
        concept, direction = self.grid.concept.name, DIRECTION_DONE[self.grid.direction]
        head = escape(f"{self.grid.model}: {concept}, {direction}")
        parts = [f"<p><b>{head}</b><br><code>{escape(str(self.path))}</code></p>"]
        for table in self.tables():
            parts.append(f"<p>{table.num_examples} examples</p>{html(table)}")
        return "".join(parts)


def compare(
    model: Any = "pocket",
    tokenizer: Any = None,
    concept: Concept | str = AUTO_CONCEPT,
    direction: Direction = "raise",
    *,
    methods: Sequence[str] | None = None,
    seeds: int = 5,
    more_seeds: Mapping[str, int] | None = None,
    num_examples: int | Sequence[int] = 128,
    tuned: Path | str | None = None,
    metrics: MetricSet = "concept",
    suites: Sequence[str | Path] = (),
    data_dir: Path | str | None = None,
    attacks: Sequence[str] = (),
    samples: int = 0,
    save_adapters: bool = False,
    output_dir: Path | str | None = None,
    jobs: int = 1,
    ray: str | None = None,
    cpus_per_job: int | None = None,
    gpus_per_job: float | None = None,
    limit: int | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
    load_config: LoadConfig | None = None,
    allow_weakening: str | None = None,
    source_filter: str | None = None,
    on_event: OnEvent | None = None,
) -> Comparison:
    """Train methods on the same examples and evaluate them on the test split.

    Args:
        model: `pocket`, `smollm2`, a local folder, a GGUF file or a hub id; or a loaded model
            without an edit: one of transformers, with its `tokenizer`, or an `EditableModel`. A
            loaded model keeps its revision, dtype and quantisation.
        tokenizer: the tokenizer of a transformers model.
        concept: the name of a built-in concept, the path of a file or a pack, or a `Concept`
            (default: `pocket-safety` for pocket, `safety` for other models).
        direction: `raise` or `lower`.
        methods: ids of methods (default: all).
        seeds: the number of seeds: 0, 1, 2, and so on.
        more_seeds: the number of seeds of single methods, by id, in place of `seeds`.
        num_examples: labelled source examples, and as many target examples; or several numbers.
        tuned: a file of tuned settings (default: those that ship for a built-in concept).
        metrics: `objective` measures the effect and the drift, `concept` all metrics of the
            concept, `all` those of all built-in concepts for the model too.
        suites: public evaluation sets that are measured too: names, or paths of suite files.
        data_dir: the folder with the suites' published files (default: datasets of the hub).
        attacks: robustness attacks to evaluate every method against, as for `retouch robustness`.
        samples: the number of responses of every method that are kept, for `samples.md`.
        save_adapters: whether the adapters are kept, for methods that change the weights alone.
        output_dir: the folder of the comparison, which is continued if it exists (default:
            `runs/compare-CONCEPT-DIRECTION`).
        jobs: number of points that run at once; above 1 each in a process of its own.
        ray: run the points on a Ray cluster: `local` starts one on this machine, `auto` connects to
            the one that is running, HOST:PORT connects to that one.
        cpus_per_job: CPUs that Ray reserves per job (default: those of the cluster are divided).
        gpus_per_job: GPUs that Ray reserves per job, may be a fraction (default: one if the device
            is a GPU).
        limit: maximum number of examples per metric, and of rows per suite.
        max_new_tokens: maximum length of a response that is measured, in tokens.
        load_config: how a model that is given by its name is loaded.
        allow_weakening: the reason for comparing edits that weaken safety.
        source_filter: training examples that replace the concept's source: LABEL, or LABEL:GROUP.
        on_event: receives the events (default: progress bars, and messages to the logger
            `retouch`).

    Returns:
        The results, their summary and the paired tests.

    Raises:
        RetouchError: any of its kinds; finished points stay on disk. An error of a method makes its
            point a failed one, and the comparison continues.
    """
    check_integer("jobs", jobs, 1)
    editable = unedited_model(model, tokenizer, load_config)
    if editable is not None and (jobs > 1 or ray is not None):
        raise ConfigError(
            f"`{'jobs' if ray is None else 'ray'}`: other processes cannot share a loaded model.",
            "Give the model by its name.",
            code="model-not-named",
        )
    backend: Backend = editable or jobs
    if ray is not None:
        device = (load_config or LoadConfig()).device
        backend = Cluster(ray, jobs, cpus_per_job, gpus_per_job, device)
        import_ray()  # raises if it is not installed
    elif cpus_per_job is not None or gpus_per_job is not None:
        argument = "gpus_per_job" if cpus_per_job is None else "cpus_per_job"
        raise ConfigError(f"`{argument}` needs `ray`.", "Set `ray`, or leave it out.")
    grid = make_grid(
        editable or str(model),
        concept,
        direction,
        registry.method_ids() if methods is None else methods,
        seeds,
        [num_examples] if isinstance(num_examples, int) else num_examples,
        more_seeds=more_seeds,
        tuned=tuned,
        metrics=metrics,
        suites=suites,
        data_dir=data_dir,
        limit=limit,
        max_new_tokens=max_new_tokens,
        attacks=attacks,
        allow_weakening=allow_weakening,
        source_filter=source_filter,
        samples=samples,
        load_config=load_config,
    )
    path = Path(output_dir or Path("runs", safe_name(f"compare-{grid.concept.name}-{direction}")))
    check_output_folder(path, ("compare.json", "results"))
    if save_adapters:
        grid = replace(grid, adapters=path / "adapters")
    hint = "The same call continues with the points that are left."
    with locked(path, "results"), displayed(on_event, hint) as events:
        grid.concept.report_notes(events)
        results = _run_grid(grid, path / "results", backend, events)
        comparison = Comparison(path, grid, tuple(results))
        events(StageEvent("write", "writing the tables and the plot"))
        _write(comparison)
    return comparison


def _run_grid(grid: Grid, folder: Path, backend: Backend, on_event: OnEvent) -> list[Result]:
    """Run the points without a result file; returns all results in the grid's order."""
    points = grid.points()
    identities = {point: grid.identity(point) for point in points}
    files = {point: folder / f"{point.name}.json" for point in points}
    results = {
        point: read_saved(file, "result", Result, identities[point], "result-broken")
        for point, file in files.items()
    }
    missing = [point for point in points if results[point] is None]
    finished = len(points) - len(missing)
    on_event(StageEvent("settings", f"settings of the methods: {grid.settings_origin}"))
    if finished:
        on_event(StageEvent("points", f"{finished} of {len(points)} are finished already"))
    for result in _run_points(grid, missing, backend, on_event):
        finished += 1
        point = result.point
        saved = {"identity": identities[point], "result": to_plain(result)}
        atomic_write(files[point], to_json(saved) + "\n")
        results[point] = result
        message = f"{finished}/{len(points)}: {point}: {_describe(grid.objective(), result)}"
        on_event(StageEvent("points", message, finished, len(points)))
    return [result for result in results.values() if result is not None]


def _run_points(
    grid: Grid, points: Sequence[GridPoint], backend: Backend, on_event: OnEvent
) -> Iterator[Result]:
    """Run points on a cluster, in several processes, or in this process for one job."""
    if not points:
        return
    if isinstance(backend, Cluster):
        with connect(backend) as allocation:
            yield from RayPool(grid, allocation).run(points, on_event)
    elif isinstance(backend, int) and backend > 1:
        yield from ProcessPool(grid, backend).run(points, on_event)
    else:
        if isinstance(backend, int):
            on_event(StageEvent("load", f"loading {grid.model}"))
            backend = load(grid.model, grid.load_config)
        yield from map(Runner(backend, grid).run, points)


def _describe(objective: Objective, result: Result) -> str:
    """The outcome of a point in words."""
    if result.state == "failed":
        return f"failed: {result.reason}"
    scores = result.scores()
    effect, drift = (scores[metric_key(spec)] for spec in (objective.effect, objective.drift))
    return f"effect {effect.value:.3f}, drift {drift.value:.4f}, {result.seconds:.0f} s"


def _score_rows(results: Sequence[Result]) -> list[dict[str, Any]]:
    """One row for each point and metric."""
    return [
        {
            **asdict(result.point),
            "suite": record.suite,
            "metric": record.metric,
            "better": record.better,
            **asdict(final_score(record)),
            "seconds": result.seconds,
        }
        for result in results
        for record in result.records
    ]


def _write(comparison: Comparison) -> None:
    """Write the files of the comparison, but for the results."""
    path, grid, results = comparison.path, comparison.grid, comparison.results
    objective = comparison.objective
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
        "settings_origin": grid.settings_origin,
        "methods": {
            id: {"title": one.title, "source": one.source, "settings": dict(grid.settings[id])}
            for id, one in methods.items()
        },
        "records": _score_rows(results),
        "failed": [
            {**asdict(result.point), "reason": result.reason}
            for result in results
            if result.state == "failed"
        ],
        "tests": to_plain(comparison.tests),
    }
    titles = comparison.titles
    page = render_markdown(grid, results, comparison.rows, comparison.tests, titles)
    atomic_write(path / "compare.json", to_json(values, indent=2) + "\n")
    atomic_write(path / "compare.md", page)
    atomic_write(path / "compare.png", render_plot(objective, comparison.rows, titles))
    if grid.samples:
        atomic_write(path / "samples.md", render_samples(grid, results, titles))
