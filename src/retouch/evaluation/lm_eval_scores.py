"""The scores of lm-eval's results: records, the values of documents, and paired tests."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

import numpy as np

from retouch.core.errors import RunError
from retouch.core.metrics import Metrics
from retouch.core.types import Better, Record, Score
from retouch.evaluation.evaluate import Evaluation
from retouch.evaluation.lm_eval_files import first_line, leaf_tasks
from retouch.evaluation.statistics import (
    ExampleValues,
    bootstrap,
    paired_p,
    wilson,
)

SUITE = "lm-eval"

# Resamples of a metric that is not a mean; lm-eval draws 100 for BLEU, whose corpus score is slow.
DRAWS = 200

Results = dict[str, Any]
"""What lm-eval returns: `results`, `samples`, `configs`, `n-shot` and more."""

MetricKey = tuple[str, str]
"""The suite and the metric of a record."""

# lm-eval's aggregations that are a ratio of sums, or its exponential: a document's numerator and
# denominator. Where its value is a log-likelihood, those are nats and the number of units.
_RATIOS: dict[str, Callable[[Any], tuple[float, float]]] = {
    "mean": lambda value: (float(value), 1.0),
    "nanmean": lambda value: (0.0, 0.0) if math.isnan(value) else (float(value), 1.0),
    "perplexity": lambda value: (-float(value), 1.0),
    "weighted_perplexity": lambda value: (-float(value[0]), float(value[1])),
    "bits_per_byte": lambda value: (-float(value[0]) / math.log(2), float(value[1])),
}


@dataclass(frozen=True)
class _Metric:
    """A metric of a task or group.

    Attributes:
        key: the suite and the metric of its record.
        better: which way is better.
        figures: lm-eval's figure for each model.
    """

    key: MetricKey
    better: Better
    figures: tuple[float, ...]


class TaskScores:
    """Computes records, document values and paired tests from the results of one or two models."""

    def __init__(self, results: Sequence[Results], seed: int, warnings: list[str]) -> None:
        self._results, self._seed, self._warnings = results, seed, warnings
        self._records: dict[MetricKey, Record] = {}
        self._values: list[dict[MetricKey, ExampleValues]] = [{} for _ in results]
        self._p_values: dict[MetricKey, float] = {}

    def evaluation(self, items: Sequence[Any]) -> Evaluation:
        """Score tasks and groups; the records of groups come first.

        Raises:
            RunError: base and edited model got different prompts.
        """
        for name, task in leaf_tasks(items).items():
            self._score_task(name, task)
        tasks, self._records = self._records, {}
        parents = [item for item in items if hasattr(item, "get_all_groups")]
        for group in (one for parent in parents for one in (parent, *parent.get_all_groups())):
            self._score_group(group)
        records = [*self._records.values(), *tasks.values()]
        return Evaluation(
            Metrics(records),
            [],
            self._values[-1],
            self._values[0],
            p_values=self._p_values,
        )

    def _metric(self, table: str, name: str, metric: str, filter_name: str) -> _Metric:
        higher = self._results[0]["higher_is_better"].get(name, {}).get(metric)
        figures = [float(one[table][name][f"{metric},{filter_name}"]) for one in self._results]
        return _Metric(
            _key(name, metric, filter_name),
            "none" if higher is None else "higher" if higher else "lower",
            tuple(figures),
        )

    def _score_task(self, name: str, task: Any) -> None:
        """Score every metric of a task, for each of its filters."""
        library = import_module("lm_eval.api.metrics")
        known = {getattr(library, one): one for one in _RATIOS}
        samples = [one["samples"][name] for one in self._results]
        hashes = [[(row["doc_hash"], row["prompt_hash"]) for row in rows] for rows in samples]
        if hashes[-1] != hashes[0]:
            message = f"The task `{name}` gave base and edited model different prompts."
            raise RunError(message, "Its functions must not be random.", code="tasks-unpaired")
        names = dict.fromkeys(
            (metric, row["filter"]) for row in samples[0] for metric in row["metrics"]
        )
        for metric, filter_name in names:
            aggregate = task.aggregation().get(metric, library.mean)
            values = [
                [row.get(metric) for row in rows if row["filter"] == filter_name]
                for rows in samples
            ]
            try:  # a task's own values and functions can be of any kind
                one = self._metric("results", name, metric, filter_name)
                if kind := known.get(aggregate):
                    self._add_ratios(one, [_as_ratio(_RATIOS[kind], rows) for rows in values], kind)
                else:
                    self._add(one, *_resample(one, values, aggregate, self._seed))
            except Exception as error:
                text = f"{name}: {metric} has no record: {first_line(error)}."
                self._warnings.append(text)

    def _score_group(self, group: Any) -> None:
        """Score the metrics of a group: means over its documents, or over its tasks."""
        for column in self._results[0].get("groups", {}).get(group.name, ()):
            metric, comma, filter_name = column.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            one = self._metric("groups", group.name, metric, filter_name)
            keys = [_key(task.task_name, metric, filter_name) for task in group.get_all_tasks()]
            parts = [[values[key] for key in keys if key in values] for values in self._values]
            for by_size in (True, False):
                ratios = [_joined(part, by_size) for part in parts]
                # Not where the figure is no such mean, as for perplexities.
                if all(map(_agrees, ratios, one.figures)):
                    self._add_ratios(one, ratios, "mean")
                    break

    def _add_ratios(self, one: _Metric, ratios: Sequence[ExampleValues], kind: str) -> None:
        """Add a metric that is a ratio of sums, or the exponential of one."""
        share = (
            all(top in (0.0, n) for part in ratios for top, n in _pairs(part)) and kind == "mean"
        )
        binary = share and all({*part.counts} == {1.0} for part in ratios)
        scores, p = [], None
        for figure, part in zip(one.figures, ratios, strict=True):
            if binary:
                score = wilson(int(sum(part.sums)), len(part.sums))
            else:
                score = bootstrap(part, self._seed)
            if "perplexity" in kind:
                score = replace(score, low=float(np.exp(score.low)), high=float(np.exp(score.high)))
            # lm-eval's figure itself, which may differ from ours in its last digit.
            scores.append(replace(score, value=figure, n=sum(n > 0 for n in part.counts)))
        if len(ratios) == 2:
            p = paired_p(ratios[0], ratios[1], self._seed)
        self._add(one, scores, p, "rate" if share else "")
        for values, part in zip(self._values, ratios, strict=True):
            values[one.key] = part

    def _add(self, one: _Metric, scores: Sequence[Score], p: float | None, unit: str = "") -> None:
        if not all(math.isfinite(x) for s in scores for x in (s.value, s.low, s.high)):
            raise ValueError("it is not finite")
        self._records[one.key] = Record(*one.key, unit, one.better, *scores)
        if p is not None:
            self._p_values[one.key] = p


def _key(name: str, metric: str, filter_name: str) -> MetricKey:
    """The key of a task's metric, with its filter if the task has any."""
    return f"{SUITE}/{name}", metric if filter_name == "none" else f"{metric},{filter_name}"


def _pairs(values: ExampleValues) -> Iterator[tuple[float, float]]:
    return zip(values.sums, values.counts, strict=True)


def _as_ratio(parts: Callable[[Any], tuple[float, float]], values: Sequence[Any]) -> ExampleValues:
    """The numerators and denominators of a metric; 0 of 0 where a document has no value."""
    pairs = [(0.0, 0.0) if value is None else parts(value) for value in values]
    return ExampleValues(tuple(top for top, _ in pairs), tuple(bottom for _, bottom in pairs))


def _joined(parts: Sequence[ExampleValues], by_size: bool) -> ExampleValues:
    """The values of several tasks as one metric: the mean over documents, or over tasks."""
    scales = [1.0 if by_size else 1 / (math.fsum(part.counts) or 1.0) for part in parts]
    pairs = [
        (scale * top, scale * bottom)
        for part, scale in zip(parts, scales, strict=True)
        for top, bottom in _pairs(part)
    ]
    return ExampleValues(tuple(top for top, _ in pairs), tuple(bottom for _, bottom in pairs))


def _agrees(values: ExampleValues, figure: float) -> bool:
    """Whether the values give lm-eval's figure."""
    total = math.fsum(values.counts)
    return total > 0 and math.isclose(math.fsum(values.sums) / total, figure, rel_tol=1e-9)


def _resample(
    metric: _Metric,
    values: Sequence[Sequence[Any]],
    aggregate: Callable[[list[Any]], float],
    seed: int,
) -> tuple[list[Score], float | None]:
    """Intervals and paired p of any metric, by its own function of resampled documents.

    Both models get the same documents in each draw.
    """
    present = [row for row in zip(*values, strict=True) if all(one is not None for one in row)]
    rng, n, draws = np.random.default_rng(seed), len(present), []
    for _ in range(DRAWS):
        rows = [present[i] for i in rng.integers(0, n, n)]
        draws.append([float(aggregate(list(part))) for part in zip(*rows, strict=True)])
    sampled = np.array(draws)
    low, high = np.percentile(sampled, [2.5, 97.5], axis=0).tolist()
    scores = [Score(*one, n) for one in zip(metric.figures, low, high, strict=True)]
    if len(scores) == 1:
        return scores, None
    change = sampled[:, 1] - sampled[:, 0]
    tail = min(int((change <= 0).sum()), int((change >= 0).sum()))
    return scores, min(1.0, 2 * (tail + 1) / (DRAWS + 1))
