"""`retouch edit`: its options are the fields of `EditConfig`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retouch.cli import output
from retouch.cli.loading import quiet_libraries, resolve_with_model
from retouch.cli.options import CONFIG, FLAGS, ConfigFile, configured, option, out_dir
from retouch.concepts.registry import load_concept
from retouch.core.config_file import CALLER_ONLY, resolve
from retouch.core.errors import ConfigError
from retouch.core.options import flatten
from retouch.core.process import launched_rank
from retouch.core.run_dir import RunDir, check_free
from retouch.core.serialization import to_plain
from retouch.core.types import Event, OnEvent, StageEvent

if TYPE_CHECKING:
    from retouch.concepts.concept import Concept
    from retouch.core.config import LoadConfig
    from retouch.instruction.audit import InstructionAudit
    from retouch.models.editable_model import EditableModel
    from retouch.result import EditResult

FAILED = 3  # the exit code of an edit that failed, with `--strict`


@configured(*CONFIG)
def edit(
    settings: dict[str, Any],
    config: ConfigFile = None,
    output_dir: Annotated[
        Path | None, out_dir("the run directory (default: runs/CONCEPT-DIRECTION-NUMBER)")
    ] = None,
    instruction: Annotated[
        str | None,
        option("TEXT", "in place of a concept: what the edited model shall do without being told"),
    ] = None,
    prompts: Annotated[
        Path | None,
        option("FILE", "prompts for --instruction, one on each line (default: built-in)"),
    ] = None,
    resume: Annotated[Path | None, option("RUN", "continue a run that was interrupted")] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="print only the path of the run")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="print one JSON object per event, then the metrics")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="exit with code 3 if the edit does not work")
    ] = False,
) -> None:
    """Edit one concept inside a model and measure what changed.

    The first line of the result is the outcome: whether the effect moved as declared.
    """
    if quiet and as_json:
        raise ConfigError("`quiet` and `as_json` exclude each other.", code="options-exclusive")
    if resume is not None:
        extra = [FLAGS[path] for path in flatten(settings) if path not in CALLER_ONLY]
        own = {"config": config, "out": output_dir, "instruction": instruction, "prompts": prompts}
        extra += [f"--{name}" for name, value in own.items() if value]
        if extra:
            raise ConfigError(
                "`resume` continues a run with the settings that it was started with.",
                f"Leave out {', '.join(extra)}.",
                code="options-exclusive",
            )
    else:
        # Errors in the options are reported before the seconds that importing the libraries takes.
        example = "retouch edit pocket --concept pocket-safety, or retouch edit pocket --resume RUN"
        resolve_with_model(settings, example)
    if instruction is not None and "concept" in settings:
        raise ConfigError(
            "`instruction` and `concept` exclude each other.",
            "Give one of them.",
            code="options-exclusive",
        )
    if prompts is not None and instruction is None:
        raise ConfigError(
            "`prompts` are for an instruction.", "Give --instruction.", code="options-exclusive"
        )
    result = run(
        settings,
        config,
        output_dir,
        resume,
        instruction=instruction,
        prompts=prompts,
        quiet=quiet,
        as_json=as_json,
    )
    if strict and result.outcome is not None and result.outcome.status == "failed":
        raise typer.Exit(FAILED)


def run(
    settings: dict[str, Any],
    config: Path | None = None,
    output_dir: Path | None = None,
    resume: Path | None = None,
    *,
    instruction: str | None = None,
    prompts: Path | None = None,
    quiet: bool = False,
    as_json: bool = False,
    next_steps: bool = True,
) -> EditResult:
    """Make or resume an edit and show its progress and its result."""
    from retouch.cli.progress import EditProgress

    silent = launched_rank() > 0
    console = output.console(quiet=quiet or as_json or silent)
    progress = EditProgress(console)

    def on_event(event: Event) -> None:
        if as_json and not silent:
            kind = "stage" if isinstance(event, StageEvent) else "round"
            output.echo_json({"event": kind, **to_plain(event)})
        else:
            progress(event)

    quiet_libraries()
    from retouch import pipeline

    path = resume
    try:
        with progress:
            if path is not None:
                given = resolve(settings, where="the options")
                result = pipeline.resume(
                    path,
                    given.model if "model" in settings else None,
                    direction=given.direction,
                    allow_weakening=given.allow_weakening,
                    load_config=given.load,
                    on_event=on_event,
                )
            else:
                resolved = pipeline.configure(settings, config)
                if instruction is not None:
                    if output_dir is not None:
                        check_free(output_dir)
                    editable, concept, audit = _from_instruction(
                        (resolved.model, resolved.load, resolved.seed),
                        instruction,
                        prompts,
                        on_event,
                    )
                    resolved = pipeline.configure(settings, config, concept=concept)
                    path = output_dir or pipeline.choose_path(resolved)
                    try:
                        result = pipeline.run_edit(
                            resolved, concept, path, editable, on_event=on_event
                        )
                    finally:
                        if (path / "concept").is_dir() and not silent:
                            audit.write(path / "concept")
                else:
                    path = output_dir or pipeline.choose_path(resolved)
                    concept = load_concept(resolved.concept)  # `run_edit` fits it to the model
                    result = pipeline.run_edit(resolved, concept, path, on_event=on_event)
    except KeyboardInterrupt:
        message = "Interrupted before anything was written."
        if path is not None and (path / "config.yaml").exists():
            command = _resume_command(RunDir.open(path).config().model_dump(), path)
            message = f"Interrupted. Continue with: {command}"
        raise KeyboardInterrupt(message) from None
    if as_json and not silent:
        plain = {"run": result.path, "outcome": result.outcome, "metrics": result.metrics}
        output.echo_json(plain)
    elif quiet and not silent:
        output.echo(str(result.path))
    elif not silent:
        console.print()
        if result.outcome is not None:
            style = output.OUTCOME_STYLES[result.outcome.status]
            console.print(output.styled((result.outcome.text, style)), soft_wrap=True)
        if result.metrics:
            console.print(output.scores(result.metrics))
        if next_steps:
            path = result.path
            chat = f"retouch chat {result.config.model} --adapter {path}"
            output.print_next_steps(
                path,
                (chat, "chat with both models, side by side"),
                (f"open {path / 'report.html'}", "the report, in any browser"),
                (f"retouch export {path} --out {path.name}-adapter", "the adapter for PEFT"),
            )
    return result


def _resume_command(settings: Mapping[str, Any], path: Path) -> str:
    """The command that continues a run, with what only a caller decides."""
    words = ["retouch", "edit", settings["model"]]
    values, defaults = flatten(settings), flatten(resolve().model_dump())
    for name in CALLER_ONLY[1:]:
        value = values[name]
        if value != defaults[name]:
            words += [FLAGS[name]] if value is True else [FLAGS[name], str(value)]
    return shlex.join([*words, "--resume", str(path)])


def _from_instruction(
    source: tuple[str, LoadConfig, int],
    instruction: str,
    prompts: Path | None,
    on_event: OnEvent,
) -> tuple[EditableModel, Concept, InstructionAudit]:
    """The model of a name, load options and a seed, and its concept of an instruction."""
    from retouch.instruction.build import concept_from_instruction
    from retouch.run_record import load_model

    name, load_config, seed = source
    editable = load_model(name, load_config, on_event)
    concept, audit = concept_from_instruction(
        editable, instruction, prompts=prompts, seed=seed, on_event=on_event
    )
    return editable, concept, audit
