"""`retouch evaluate`: the metrics of a model, or of a model before and after an edit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from retouch.cli import output
from retouch.cli.loading import resolve_base
from retouch.cli.options import (
    LOAD,
    Adapter,
    AsJson,
    DataDir,
    MaxNewTokens,
    OutFile,
    Suites,
    configured,
    option,
    split_names,
)
from retouch.core.errors import ConfigError
from retouch.core.types import SPLITS, Split


@configured(*LOAD)
def evaluate(
    settings: dict[str, Any],
    adapter: Adapter = None,
    concept: Annotated[
        list[str] | None,
        option(
            "NAME|FILE",
            "a concept; may be repeated (default, without suites: all for the model)",
        ),
    ] = None,
    suite: Suites = None,
    data_dir: DataDir = None,
    tasks: Annotated[
        str, option("NAME,...", "tasks of lm-evaluation-harness, such as truthfulqa_mc2,bbq,mmlu")
    ] = "",
    num_fewshot: Annotated[
        int | None, option("N", "examples in each prompt of a task (default: the task's)", min=0)
    ] = None,
    include_path: Annotated[
        Path | None, option("DIR", "folder with further task files of lm-evaluation-harness")
    ] = None,
    apply_chat_template: Annotated[
        bool, typer.Option("--apply-chat-template", help="write the tasks' prompts as chats")
    ] = False,
    tasks_out: Annotated[
        Path | None, option("DIR", "folder for lm-evaluation-harness's result files")
    ] = None,
    judge: Annotated[
        str | None,
        option("NAME|DIR", "a model that classifies the responses (default: rules)"),
    ] = None,
    judge_format: Annotated[
        str | None,
        option("NAME|FILE", "the judge's prompt format (default: that of its hub id)"),
    ] = None,
    judge_label: Annotated[
        str | None,
        option("LABEL", "a classifier's label of refusals, or LABEL=harmful"),
    ] = None,
    split: Annotated[str, option("test|validation", "the split to measure on")] = "test",
    limit: Annotated[
        int | None,
        option("N", "maximum number of examples per metric, or per suite", min=1),
    ] = None,
    max_new_tokens: MaxNewTokens = 64,
    as_json: AsJson = False,
    output_file: OutFile = None,
) -> None:
    """Measure refusals under attack, over-refusal, truthfulness, bias, tone and drift."""
    if split not in SPLITS or split == "train":
        raise ConfigError(
            f"`split` must be test or validation, got {split!r}.", code="split-unknown"
        )
    if data_dir is not None and not suite:
        raise ConfigError("`data_dir` needs `suite`.", "Give both, or neither.")
    if judge is None and (judge_format or judge_label):
        given = "judge_format" if judge_format else "judge_label"
        raise ConfigError(f"`{given}` needs `judge`.", "Give both, or neither.")
    output.check_metrics_file(output_file)
    folder, config = resolve_base(settings, adapter)
    with output.show_progress(quiet=as_json) as progress:
        from retouch import pipeline

        model = None
        if judge is not None:
            from retouch.evaluation.judge_loading import load_judge

            device = config.load.device
            model = load_judge(judge, format=judge_format, label=judge_label, device=device)
        result = pipeline.evaluate(
            config.model,
            adapter=folder,
            concepts=concept or (),
            suites=suite or (),
            data_dir=data_dir,
            tasks=split_names(tasks),
            task_options={
                "num_fewshot": num_fewshot,
                "include_path": include_path,
                "apply_chat_template": apply_chat_template,
                "out": tasks_out,
            },
            judge=model,
            split=cast(Split, split),
            limit=limit,
            max_new_tokens=max_new_tokens,
            load_config=config.load,
            on_event=progress,
        )
    output.write_json(result.metrics, as_json=as_json, file=output_file)
    if not as_json:
        title = config.model + (f" with {adapter}" if adapter else "")
        output.console().print(output.scores(result.metrics, title, result.p_values))
        for note in result.notes:
            output.console().print(note, markup=False)
