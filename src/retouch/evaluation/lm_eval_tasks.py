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
import io
import json
import logging
import random
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import (
    ExitStack,
    contextmanager,
    nullcontext,
    redirect_stderr,
    redirect_stdout,
)
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from retouch.core.atomic import atomic_write, check_output_file
from retouch.core.chat_template import template_arguments
from retouch.core.errors import ConfigError, RunError
from retouch.core.plugins import import_library
from retouch.core.types import Progress, no_progress
from retouch.evaluation.evaluate import Evaluation, evaluation_mode
from retouch.evaluation.lm_eval_files import (
    attribute,
    check_code,
    files_of_users,
    find_tasks,
    first_line,
    load_tasks,
    sandboxed_templates,
)
from retouch.evaluation.lm_eval_scores import Results, TaskScores
from retouch.models import distributed
from retouch.models.editable_model import EditableModel
from retouch.models.interventions import Intervention
from retouch.models.oom import is_out_of_memory

BATCH_SIZE = 8
BASE_FILE, EDITED_FILE = "lm-eval-base.json", "lm-eval-edited.json"


@dataclass(frozen=True)
class TaskResults:
    """The results of tasks on the base and, if anything acts on it, on the edited model.

    Attributes:
        evaluation: a record for each metric of each task and group, with 95 % intervals: suite
            `lm-eval/TASK`, metric `acc`, or `exact_match,FILTER` where the task has filters. A
            figure that is not finite has none. The values of the documents are there for metrics
            that are a ratio of sums, nats for a perplexity.
        base: lm-eval's results of the base model, with its samples.
        edited: those of the edited model; None where nothing acts on the base.
        warnings: what lm-eval warned of, such as truncated prompts.
    """

    evaluation: Evaluation
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
    if out is not None:
        for file in (BASE_FILE, EDITED_FILE):
            check_output_file(out / file, lambda text: "results" in json.loads(text))
    warnings: list[str] = []
    with ExitStack() as stack:
        bars = stack.enter_context(_contained(editable, warnings, progress))
        progress("lm-eval: reading task files", 0, 0)
        manager, names = find_tasks(tasks, folder, source)
        own_files = files_of_users(manager.task_index, names)
        if own_files and not trust_remote_code:
            check_code(own_files)
            stack.enter_context(sandboxed_templates())
        items = load_tasks(manager, names, progress)
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
        scoring = TaskScores(results, seed or 0, warnings)
        evaluation = scoring.evaluation(items)
    edited = results[1] if len(results) > 1 else None
    return TaskResults(evaluation, results[0], edited, tuple(warnings))


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
            chat_template_args=template_arguments(editable.tokenizer),
        )
        model._device = editable.device  # the first weight may be offloaded
        found = import_module("lm_eval.evaluator").simple_evaluate(
            model, tasks=items, task_manager=manager, evaluation_tracker=tracker, **options
        )
    except Exception as error:  # a task's own functions can raise anything
        if is_out_of_memory(error):
            raise
        message = f"lm-eval stopped: {first_line(error)}."
        raise RunError(message, "Check the task and its options.", code="tasks-failed") from error
    # With a launcher, lm-eval returns its results in the first process alone.
    results: Results = distributed.broadcast(found)
    # What lm-eval's command adds to its file, such as the chat template.
    tracker.general_config_tracker.log_end_time()
    return results | asdict(tracker.general_config_tracker)


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
            stack.enter_context(attribute(import_module(name), "tqdm", bars))
        quiet = _without_output(metrics.bootstrap_stderr)
        stack.enter_context(attribute(metrics, "bootstrap_stderr", quiet))
        stack.enter_context(attribute(logger, "propagate", False))
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


def _without_output(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function without what it prints."""

    def call(*args: Any, **options: Any) -> Any:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            return function(*args, **options)

    return call
