"""Tasks of lm-evaluation-harness (the library `lm-eval`), run on a model in memory.

    results = run_tasks(editable, ["arc_easy", "gsm8k"], limit=200, out=Path("out"))
    results.evaluation.metrics["lm-eval/arc_easy/acc"]

lm-eval builds the prompts, runs the model and computes every figure. Its figures are those of its
own command with the same folder, adapter, batch size and seed, to the last digit. The intervals
and the paired tests are computed from its values of the single documents.

A model that is loaded in another dtype than its files gives other figures, as in lm-eval. The
products are those of the weights' dtype: `compute_dtype` does not apply.

Code in task files: the tasks of the package are trusted. A file of `include_path` is refused where
it would run code: `!function` and other tags of its own, a metric that lm-eval would load as a
script, `trust_remote_code` and `custom_generate`. Its templates run in Jinja's sandbox. All of this
is allowed with `trust_remote_code=True`. Tasks that run code which the model writes are refused.
"""

from __future__ import annotations

import copy
import difflib
import io
import json
import logging
import math
import random
import re
import sys
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import (
    AbstractContextManager,
    ExitStack,
    contextmanager,
    nullcontext,
    redirect_stderr,
    redirect_stdout,
)
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from retouch.core.atomic import atomic_write
from retouch.core.errors import ConfigError, DataError, RunError, code_list
from retouch.core.metrics import Metrics
from retouch.core.plugins import import_library
from retouch.core.types import Better, Progress, Record, Score, no_progress
from retouch.evaluation.evaluate import Evaluation, evaluation_mode
from retouch.evaluation.statistics import (
    ExampleValues,
    bootstrap,
    mcnemar,
    paired_bootstrap,
    wilson,
)
from retouch.models import distributed
from retouch.models.editable_model import EditableModel
from retouch.models.interventions import Intervention
from retouch.models.oom import is_out_of_memory

BATCH_SIZE = 8
SUITE = "lm-eval"
BASE_FILE, EDITED_FILE = "lm-eval-base.json", "lm-eval-edited.json"

# Resamples of a metric that is not a mean; lm-eval draws 100 for BLEU, whose corpus score is slow.
DRAWS = 200

Results = dict[str, Any]
"""What lm-eval returns: `results`, `samples`, `configs`, `n-shot` and more."""

MetricKey = tuple[str, str]
"""The suite and the metric of a record."""


@dataclass(frozen=True)
class TaskResults:
    """The results of tasks on the base and, if anything acts on it, on the edited model.

    Attributes:
        evaluation: a record for each metric of each task and group, with 95 % intervals: suite
            `lm-eval/TASK`, metric `acc`, or `exact_match,FILTER` where the task has filters. A
            figure that is not finite has none. The values of the documents are there for metrics
            that are a ratio of sums, nats for a perplexity.
        p_values: the two-sided p of no change on the same documents: exact McNemar where the values
            are 0 and 1, a paired bootstrap otherwise. Empty for a base model.
        base: lm-eval's results of the base model, with its samples.
        edited: those of the edited model; None where nothing acts on the base.
        warnings: what lm-eval warned of, such as truncated prompts.
    """

    evaluation: Evaluation
    p_values: Mapping[MetricKey, float]
    base: Results
    edited: Results | None
    warnings: tuple[str, ...]


def run_tasks(
    editable: EditableModel,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    num_fewshot: int | None = None,
    include_path: Path | str | None = None,
    batch_size: int = BATCH_SIZE,
    apply_chat_template: bool = False,
    trust_remote_code: bool = False,
    seed: int | None = None,
    out: Path | None = None,
    progress: Progress = no_progress,
) -> TaskResults:
    """Run lm-eval's tasks on the base model and, if anything acts on it, on the edited model.

    The model and the tasks are loaded once, and both models get the same documents and prompts.
    Adapters and steering act; an added prompt cannot, since lm-eval writes the prompts.

    Args:
        editable: the model; it is unchanged.
        tasks: names of tasks, groups or tags, or patterns such as `mmlu_*`.
        limit: maximum number of documents of each task: the first ones.
        num_fewshot: number of examples in each prompt (default: the task's). Tasks that fix it at 0
            keep 0, as in lm-eval.
        include_path: a folder with further task files (YAML). Relative `data_files` are relative to
            the working directory, as in lm-eval. If all tasks are in the folder, the thousands of
            files of the package are not read.
        batch_size: texts that run together. Floating-point sums, and so the last digits of
            log-probabilities, depend on it.
        apply_chat_template: write prompts as chats with the tokenizer's template, few-shot examples
            as earlier turns.
        trust_remote_code: allow task files in `include_path` to run code.
        seed: seed of few-shot examples and intervals (default: lm-eval's own seeds). The random
            states of the process are restored.
        out: a folder for `lm-eval-base.json` and `lm-eval-edited.json`, lm-eval's results with all
            samples. Each is written as soon as it is there.
        progress: called with the requests of each model that are done; the total is 0 where it is
            unknown, for the windows of long texts.

    Raises:
        ConfigError: lm-eval is not installed, an argument is wrong, a task does not exist, needs
            images or runs code; or an added prompt acts on the model.
        DataError: a task file or its data cannot be read.
        RunError: lm-eval stopped with an error, or a file cannot be written.
    """
    import_library("lm_eval", "Running tasks", "'retouch[lm-eval]'")
    folder = None if include_path is None else Path(include_path)
    _check_arguments(editable, tasks, limit, num_fewshot, folder, batch_size, apply_chat_template)
    # What some tasks load a tokenizer by; lm-eval's command passes it too.
    source = str(getattr(editable.base.config, "_name_or_path", "") or editable.name)
    options: dict[str, Any] = {
        "model_args": {"pretrained": source},
        "num_fewshot": num_fewshot,
        "batch_size": batch_size,
        "limit": limit,
        "apply_chat_template": apply_chat_template,
        "fewshot_as_multiturn": apply_chat_template,
    }
    if seed is not None:
        kinds = ("random", "numpy_random", "torch_random", "fewshot_random")
        options |= {f"{kind}_seed": seed for kind in kinds}
    warnings: list[str] = []
    with ExitStack() as stack:
        bars = stack.enter_context(_contained(editable, warnings, progress))
        progress("lm-eval: reading task files", 0, 0)
        manager, names = _find_tasks(tasks, folder, source)
        own_files = _files_of_users(manager.task_index, names)
        if own_files and not trust_remote_code:
            _check_code(own_files)
            stack.enter_context(_sandboxed_templates())
        items = _load_tasks(manager, names, progress)
        stack.enter_context(evaluation_mode(editable))
        results: list[Results] = []
        for name, file in (("base", BASE_FILE), ("edited", EDITED_FILE)):
            if name == "edited" and not editable.edited:
                break
            bars.model = name
            with editable.base_model() if name == "base" else nullcontext():
                results.append(_run(editable, items, manager, options))
            if out is not None and distributed.rank() == 0:
                atomic_write(out / file, _to_json(results[-1]))
        scoring = _Scoring(results, seed or 0, warnings)
        evaluation = scoring.evaluation(items)
    edited = results[1] if len(results) > 1 else None
    return TaskResults(evaluation, scoring.p_values, results[0], edited, tuple(warnings))


def _check_arguments(
    editable: EditableModel,
    tasks: Sequence[str],
    limit: int | None,
    num_fewshot: int | None,
    include_path: Path | None,
    batch_size: int,
    apply_chat_template: bool,
) -> None:
    if isinstance(tasks, str) or not tasks:
        message = f"`tasks` must be a list with at least one name, got {tasks!r}."
        raise ConfigError(message, code="tasks-empty")
    numbers = (("limit", limit, 1), ("num_fewshot", num_fewshot, 0), ("batch_size", batch_size, 1))
    for name, number, least in numbers:
        if number is not None and number < least:
            message = f"`{name}` must be at least {least}, got {number}."
            raise ConfigError(message, code="tasks-number")
    if include_path is not None and not include_path.is_dir():
        message = f"`include_path` must be a folder with task files, got {include_path}."
        raise ConfigError(message, code="tasks-folder")
    if apply_chat_template and not editable.has_chat_template:
        message = f"The tokenizer of {editable.name} has no chat template to apply."
        hint = "Load the model with a chat template, or leave `apply_chat_template` out."
        raise ConfigError(message, hint, code="tasks-chat-template")
    for one in editable.interventions:
        if one.active and type(one).rewrite is not Intervention.rewrite:
            message = f"{type(one).__name__} rewrites prompts, and lm-eval's cannot be rewritten."
            hint = "Measure it on concepts, or run the tasks with an adapter or steering."
            raise ConfigError(message, hint, code="tasks-prompting")


# --- the tasks ------------------------------------------------------------------------------------


def _find_tasks(
    tasks: Sequence[str], include_path: Path | None, source: str
) -> tuple[Any, list[str]]:
    """lm-eval's task manager, and the names of the tasks in its index; no data is loaded.

    Raises:
        ConfigError: a task does not exist.
        DataError: a task does not exist, and a file of the folder is no YAML.
    """
    manager_type = import_module("lm_eval.tasks").TaskManager
    options: dict[str, Any] = {"metadata": {"pretrained": source}}
    manager = None
    if include_path is not None:
        options["include_path"] = str(include_path)
        manager = manager_type(**options, include_defaults=False)
    if manager is None or _reachable(manager.task_index, tasks)[1]:
        manager = manager_type(**options)  # reads the thousands of files of the package
    matches = {name: manager.match_tasks([name]) for name in tasks}
    unknown = [name for name, found in matches.items() if not found]
    if not unknown:
        return manager, list(dict.fromkeys(name for found in matches.values() for name in found))
    for file in sorted(include_path.rglob("*.yaml")) if include_path else ():
        _compose(file)  # lm-eval skips files with errors, and the task may be in one
    known = manager.all_tasks
    close = [near for name in unknown for near in difflib.get_close_matches(name, known, n=3)]
    hint = f"Did you mean {code_list(close)}? " if close else ""
    raise ConfigError(
        f"lm-eval has no task {code_list(unknown)}.",
        f"{hint}`lm-eval ls tasks` lists its tasks; `include_path` adds a folder of others.",
        code="task-unknown",
    )


def _files_of_users(index: Mapping[str, Any], names: Iterable[str]) -> list[Path]:
    """The files of tasks and their members that are not of the package."""
    files = (Path(one.yaml_path) for one in _reachable(index, names)[0] if one.yaml_path)
    return sorted(file for file in files if not _is_shipped(file))


def _reachable(index: Mapping[str, Any], names: Iterable[str]) -> tuple[list[Any], list[str]]:
    """The entries of names and of all their members, and the names that are not in the index."""
    queue, found = list(names), {}
    missing: list[str] = []
    while queue:
        name = queue.pop()
        if name in found:
            continue
        if name not in index:
            missing.append(name)
            continue
        entry = found[name] = index[name]
        if entry.kind.name == "TAG":
            queue += entry.tags
        elif entry.kind.name == "GROUP":
            queue += _members((entry.cfg or {}).get("task"), index)
    return list(found.values()), missing


def _members(items: Any, index: Container[str]) -> Iterator[str]:
    """The names in the `task` list of a group, those of groups within it included."""
    for item in [items] if isinstance(items, str) else items or ():
        if isinstance(item, str):
            yield item
        elif "group" in item and item["group"] not in index:
            yield from _members(item.get("task"), index)
        else:
            yield item.get("group", item.get("task"))


def _is_shipped(file: Path) -> bool:
    """Whether a task file belongs to the package lm-eval."""
    tasks = Path(import_module("lm_eval.tasks.manager").__file__ or "").parent
    return file.resolve().is_relative_to(tasks.resolve())


def _compose(file: Path) -> Any:
    """The nodes of a YAML file, of which nothing is constructed.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return yaml.compose(file.read_text("utf-8"), Loader=yaml.SafeLoader)
    except (OSError, ValueError, yaml.YAMLError) as error:
        problem = " ".join(str(error).split())
        raise DataError(f"{file} cannot be read: {problem}.", code="task-unreadable") from None


def _check_code(files: Iterable[Path]) -> None:
    """Check that task files run no code.

    Raises:
        ConfigError: one does.
        DataError: a file that one includes cannot be read.
    """
    import_module("lm_eval.api.metrics")  # registers lm-eval's own metrics
    metrics = import_module("lm_eval.api.registry").metric_registry
    seen: set[Path] = set()
    if code := next((one for file in files for one in _code_in(file, metrics, seen)), None):
        message = f"A task file would run code: {code}."
        hint = "Read the code, and pass `trust_remote_code=True` if you trust it."
        raise ConfigError(message, hint, code="task-code")


def _code_in(file: Path, metrics: Container[str], seen: set[Path]) -> Iterator[str]:
    """What a task file, and the files that it includes, would run as code."""
    file = file.resolve()
    if file in seen or _is_shipped(file):
        return
    seen.add(file)
    root = _compose(file)
    for node in _nodes(root, set()):
        line = f"{file}:{node.start_mark.line + 1}"
        tag = node.tag.removeprefix("tag:yaml.org,2002:")
        if tag == node.tag or tag.startswith("python"):
            yield f"`{node.tag}` in {line}"
        pairs = node.value if isinstance(node, yaml.MappingNode) else ()
        for key, value in ((key.value, value) for key, value in pairs):
            scalar = str(value.value) if isinstance(value, yaml.ScalarNode) else ""
            if key in ("custom_generate", "hf_evaluate", "trust_remote_code"):
                if scalar.lower() not in ("false", "no", "off", "null", "~"):
                    yield f"`{key}` in {line}"
            elif key == "dataset_path" and scalar == "pandas":
                yield f"pickled data in {line}"
            elif key == "metric_list" and isinstance(value, yaml.SequenceNode):
                for name in _scalars(value, "metric"):
                    if name not in metrics:
                        yield f"the metric {name}, which lm-eval would load as a script, in {line}"
            elif key == "include" and node is root:
                included = value.value if isinstance(value, yaml.SequenceNode) else [value]
                for one in included:
                    yield from _code_in(file.parent / str(one.value), metrics, seen)


def _nodes(node: Any, seen: set[int]) -> Iterator[Any]:
    """A YAML node and all nodes in it, each once."""
    if node is None or id(node) in seen:
        return
    seen.add(id(node))
    yield node
    for child in node.value if isinstance(node.value, list) else ():
        for one in child if isinstance(child, tuple) else (child,):
            yield from _nodes(one, seen)


def _scalars(sequence: Any, key: str) -> Iterator[str]:
    """The values of a key in a sequence of mappings."""
    for item in sequence.value:
        for name, value in item.value if isinstance(item, yaml.MappingNode) else ():
            if name.value == key and isinstance(value, yaml.ScalarNode):
                yield value.value


def _load_tasks(manager: Any, names: Sequence[str], progress: Progress) -> list[Any]:
    """lm-eval's tasks and groups with their data.

    Raises:
        DataError: the data cannot be loaded, or a file is wrong.
        ConfigError: a task needs images or sound, or runs code that the model writes.
    """
    items: list[Any] = []
    for done, name in enumerate(names):
        progress("lm-eval: loading tasks", done, len(names))
        try:
            found = manager.load([name])
        except Exception as error:  # a task's own functions can raise anything
            problem = _first_line(error)
            raise DataError(
                f"The task `{name}` cannot be loaded: {problem}.",
                "Its data is downloaded on first use; the documentation of lm-eval describes its "
                "file.",
                code="task-unloadable",
            ) from error
        group = found["groups"].get(name)
        items += [group] if group is not None else found["tasks"].values()
    for task in _leaf_tasks(items).values():
        if getattr(task, "UNSAFE_CODE", False):
            message = f"The task `{task.task_name}` runs code that the model writes."
            hint = "Run it with lm-eval's own command, in a sandbox."
            raise ConfigError(message, hint, code="task-unsafe")
        if getattr(task, "MULTIMODAL", False):
            message = f"The task `{task.task_name}` needs images or sound."
            raise ConfigError(message, "Only text is supported.", code="task-multimodal")
    return items


def _leaf_tasks(items: Iterable[Any]) -> dict[str, Any]:
    """The tasks by name, those in groups included."""
    leaves = (
        task
        for item in items
        for task in (item.get_all_tasks() if hasattr(item, "get_all_tasks") else (item,))
    )
    return {task.task_name: task for task in leaves}


# --- running --------------------------------------------------------------------------------------


def _run(editable: EditableModel, items: list[Any], manager: Any, options: Any) -> Results:
    """Evaluate the model as it is now.

    Raises:
        RunError: lm-eval stopped with an error.
    """
    model_type = import_module("lm_eval.models.huggingface").HFLM
    tracker = import_module("lm_eval.loggers").EvaluationTracker()
    try:
        model = model_type(
            pretrained=editable.model,
            tokenizer=copy.deepcopy(editable.tokenizer),  # it gets another padding side
            backend="causal",
            batch_size=options["batch_size"],
        )
        model._device = editable.device  # the first weight may be offloaded
        found = import_module("lm_eval.evaluator").simple_evaluate(
            model, tasks=items, task_manager=manager, evaluation_tracker=tracker, **options
        )
    except Exception as error:  # a task's own functions can raise anything
        if is_out_of_memory(error):
            raise
        message = f"lm-eval stopped: {_first_line(error)}."
        raise RunError(message, "Check the task and its options.", code="tasks-failed") from error
    # With a launcher, lm-eval returns its results in the first process alone.
    results: Results = distributed.broadcast(found)
    # What lm-eval's command adds to its file, such as the chat template.
    tracker.general_config_tracker.log_end_time()
    return results | asdict(tracker.general_config_tracker)


def _first_line(error: BaseException) -> str:
    text = str(error).strip().partition("\n")[0].rstrip(".")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _to_json(results: Results) -> bytes:
    """A results file, as lm-eval's command writes it."""
    convert = import_module("lm_eval.utils").handle_non_serializable
    text = json.dumps(results, indent=2, default=convert, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace")  # half a surrogate pair becomes its escape


class _Bars:
    """Reports lm-eval's progress bars; called in place of tqdm.

    Consecutive bars with the same description are parts of one whole of unknown size.
    """

    def __init__(self, progress: Progress) -> None:
        self.model = ""
        self._progress, self._current, self._done, self._total = progress, "", 0, 0

    def __call__(self, iterable: Any = None, *, total: int = 0, desc: str = "", **_: Any) -> Any:
        if iterable is not None:  # prompts are built in a moment
            return iter(iterable)
        description = f"lm-eval, {self.model} model: {desc.removeprefix('Running ').lower()}"
        if description == self._current:
            self._total = 0
        else:
            self._current, self._done, self._total = description, 0, total
        return self

    def update(self, count: int = 1) -> None:
        self._done += count
        self._progress(self._current, self._done, self._total)

    def close(self) -> None:
        """A bar is removed by the next one."""


# In warnings of what is intended: a model in memory, and metrics as lm-eval defines them.
_EXPECTED = ("`pretrained`", "using default")


class _WarningHandler(logging.Handler):
    """Keeps each warning once, whatever the numbers in it."""

    def __init__(self, messages: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._messages, self._seen = messages, set[str]()

    def emit(self, record: logging.LogRecord) -> None:
        message = " ".join(record.getMessage().split())
        kind = re.sub(r"\d+", "#", message)
        expected = any(text in message for text in _EXPECTED)
        if kind not in self._seen and not expected:
            self._seen.add(kind)
            self._messages.append(message)


@contextmanager
def _contained(editable: EditableModel, warnings: list[str], progress: Progress) -> Iterator[_Bars]:
    """Collect lm-eval's bars and warnings, and restore loggers and random states on exit."""
    bars, handler, logger = _Bars(progress), _WarningHandler(warnings), logging.getLogger("lm_eval")
    metrics, datasets = import_module("lm_eval.api.metrics"), import_module("datasets")
    with ExitStack() as stack:
        for name in ("lm_eval.api.task", "lm_eval.api.model", "lm_eval.models.huggingface"):
            stack.enter_context(_attribute(import_module(name), "tqdm", bars))
        quiet = _without_output(metrics.bootstrap_stderr)
        stack.enter_context(_attribute(metrics, "bootstrap_stderr", quiet))
        stack.enter_context(_attribute(logger, "propagate", False))
        logger.addHandler(handler)
        stack.callback(logger.removeHandler, handler)
        if not datasets.are_progress_bars_disabled():
            datasets.disable_progress_bars()
            stack.callback(datasets.enable_progress_bars)
        stack.callback(random.setstate, random.getstate())
        stack.callback(np.random.set_state, np.random.get_state())
        devices = [editable.device] if editable.device.type == "cuda" else []
        stack.enter_context(torch.random.fork_rng(devices=devices))
        stack.enter_context(redirect_stdout(sys.stderr))  # stdout may be a JSON document
        yield bars


@contextmanager
def _attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Set an attribute inside the context."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _without_output(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function without what it prints."""

    def call(*args: Any, **options: Any) -> Any:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            return function(*args, **options)

    return call


def _sandboxed_templates() -> AbstractContextManager[None]:
    """Evaluate the templates of tasks in Jinja's sandbox, which denies access to Python's types."""
    from jinja2.sandbox import SandboxedEnvironment

    utils = import_module("lm_eval.utils")
    sandbox = SandboxedEnvironment(
        loader=utils.env.loader,
        undefined=utils.env.undefined,
        keep_trailing_newline=utils.env.keep_trailing_newline,
    )
    sandbox.filters |= utils.env.filters
    return _attribute(utils, "env", sandbox)


# --- scores ---------------------------------------------------------------------------------------

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


class _Scoring:
    """Computes records, document values and paired tests from the results of one or two models."""

    def __init__(self, results: Sequence[Results], seed: int, warnings: list[str]) -> None:
        self._results, self._seed, self._warnings = results, seed, warnings
        self._records: dict[MetricKey, Record] = {}
        self._values: list[dict[MetricKey, ExampleValues]] = [{} for _ in results]
        self.p_values: dict[MetricKey, float] = {}

    def evaluation(self, items: Sequence[Any]) -> Evaluation:
        """Score tasks and groups; the records of groups come first.

        Raises:
            RunError: base and edited model got different prompts.
        """
        for name, task in _leaf_tasks(items).items():
            self._score_task(name, task)
        tasks, self._records = self._records, {}
        parents = [item for item in items if hasattr(item, "get_all_groups")]
        for group in (one for parent in parents for one in (parent, *parent.get_all_groups())):
            self._score_group(group)
        records = [*self._records.values(), *tasks.values()]
        return Evaluation(Metrics(records), [], self._values[-1], self._values[0])

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
                text = f"{name}: {metric} has no record: {_first_line(error)}."
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
        if len(ratios) == 2 and binary:
            p = mcnemar(ratios[0].sums, ratios[1].sums)
        elif len(ratios) == 2:
            p = paired_bootstrap(ratios[1:], ratios[:1], self._seed)[1]
        self._add(one, scores, p, "rate" if share else "")
        for values, part in zip(self._values, ratios, strict=True):
            values[one.key] = part

    def _add(self, one: _Metric, scores: Sequence[Score], p: float | None, unit: str = "") -> None:
        if not all(math.isfinite(x) for s in scores for x in (s.value, s.low, s.high)):
            raise ValueError("it is not finite")
        self._records[one.key] = Record(*one.key, unit, one.better, *scores)
        if p is not None:
            self.p_values[one.key] = p


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
