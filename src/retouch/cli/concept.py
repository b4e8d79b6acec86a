"""`retouch concept`: the built-in concepts, and checks of a concept's data."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retouch.cli import output
from retouch.cli.loading import resolve_with_model
from retouch.cli.options import LOAD, Command, MaxNewTokens, configured, option, out_dir
from retouch.concepts.concept import Concept
from retouch.concepts.pack import save_pack
from retouch.concepts.registry import builtin_names, load_concept
from retouch.concepts.validate import validate
from retouch.core.atomic import atomic_folder
from retouch.core.config import MAX_SEED
from retouch.core.errors import ConfigError, DataError
from retouch.core.formatting import show_score
from retouch.core.run_dir import check_free
from retouch.core.types import DIRECTIONS, SPLITS

if TYPE_CHECKING:
    from retouch.instruction.audit import InstructionAudit

app = typer.Typer(
    help="List the built-in concepts, show one, or check your own.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME|FILE",
        help="a built-in concept, or a file: CSV, TSV, JSON, JSONL, Parquet, Arrow or YAML",
    ),
]


@app.command("list", cls=Command, short_help="List the built-in concepts.")
def list_() -> None:
    """List the built-in concepts."""
    concepts = [load_concept(name) for name in builtin_names()]
    rows = [(c.name, c.title, ", ".join(c.directions) or "none (metrics only)") for c in concepts]
    output.console().print(output.plain(("concept", "title", "directions"), rows))


@app.command("show", cls=Command, short_help="Show a concept's directions, examples and metrics.")
def show(name: Name) -> None:
    """Show a concept: directions, number of examples, metrics, and one example of each label."""
    concept = load_concept(name)
    console = output.console()
    console.print(f"{concept.name}: {concept.title}", style="bold")
    console.print(concept.description, soft_wrap=True)
    if concept.models:
        console.print(f"For the model {' or '.join(concept.models)}.")
    rows: list[tuple[object, ...]] = []
    for direction in DIRECTIONS:
        if spec := concept.directions.get(direction):
            labels = (", ".join(part) for part in (spec.source, spec.target, spec.retain))
            note = "weakens safety" if direction == concept.weakens else ""
            rows.append((direction, *labels, note))
    console.print(output.plain(("direction", "source", "target", "retain", ""), rows))
    counts = [Counter(example.label for example in concept.examples[split]) for split in SPLITS]
    rows = [(label, *(count[label] for count in counts)) for label in sum(counts, Counter())]
    console.print(output.plain(("examples", *SPLITS), rows))
    if concept.metrics:
        heads = ("suite", "metric", "scorer", "labels", "better")
        rows = [
            (one.suite, one.metric, one.scorer, ", ".join(one.labels), one.better)
            for one in concept.metrics
        ]
        console.print(output.plain(heads, rows))
    seen: set[str] = set()
    for example in concept.examples["train"]:
        if example.label not in seen:
            seen.add(example.label)
            console.print(
                output.styled((f"{example.label}: ", "dim")) + output.turns(example.prompt)
            )
            if example.response:
                console.print(f"  -> {example.response}")
    output.print_findings(concept.notes)
    console.print(f"data, SHA-256: {concept.hash}", style="dim", soft_wrap=True)


@app.command("create", cls=Command, short_help="Make a concept from an instruction.")
@configured(*LOAD)
def create(
    settings: dict[str, Any],
    instruction: Annotated[
        str, option("TEXT", "what the edited model shall do without being told")
    ],
    output_dir: Annotated[Path, out_dir("the new folder of the concept")],
    prompts: Annotated[
        Path | None,
        option("FILE", "prompts: .txt with one on each line, CSV or JSONL (default: built-in)"),
    ] = None,
    name: Annotated[
        str, option("NAME", "name of the concept (default: the instruction's words)")
    ] = "",
    num_prompts: Annotated[
        int, option("N", "maximum number of prompts; half of them train", min=20)
    ] = 800,
    max_new_tokens: MaxNewTokens = 64,
    seed: Annotated[
        int, option("N", "random seed of the choice of prompts", min=0, max=MAX_SEED)
    ] = 0,
) -> None:
    """Make a concept from an instruction that the model follows when it is prompted with it."""
    example = 'retouch concept create pocket --instruction "Answer in French." --out french'
    config = resolve_with_model(settings, example)
    with output.show_progress() as progress:
        from retouch.instruction import build

        build.check_folder(output_dir)
        concept, audit = build.concept_from_instruction(
            config.model,
            instruction,
            prompts=prompts,
            name=name,
            num_prompts=num_prompts,
            max_new_tokens=max_new_tokens,
            seed=seed,
            load_config=config.load,
            on_event=progress,
        )
        build.save(concept, audit, output_dir)
    print_audit(audit)
    output.print_next_steps(
        output_dir,
        (f"open {output_dir / 'audit.md'}", "what was kept and dropped, and what to read"),
        (f"retouch edit {config.model} --concept {output_dir}", "make the edit"),
        noun="concept",
    )


@app.command("import", cls=Command, short_help="Make a concept from a file or a dataset.")
def import_(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="a data file, a folder of data, or the hub id of a dataset"
        ),
    ],
    output_dir: Annotated[Path, out_dir("the new folder of the concept")],
    split: Annotated[
        str | None, option("NAME", "the split of the dataset to use (default: all of them)")
    ] = None,
    columns: Annotated[
        str,
        option("OLD=NEW,...", "names of known columns by those in the data; OLD= ignores a column"),
    ] = "",
    config_name: Annotated[
        str | None, option("NAME", "the configuration of the dataset, if it has several")
    ] = None,
    revision: Annotated[
        str | None, option("NAME", "branch, tag or commit of the dataset on the hub")
    ] = None,
    name: Annotated[str, option("NAME", "name of the concept (default: that of the source)")] = "",
) -> None:
    """Make a concept from a file or a dataset, whose columns may have other names."""
    check_free(output_dir)
    mapping = _parse_columns(columns)
    if Path(source).is_file():
        if split or config_name or revision:
            message = "`split`, `config_name` and `revision` are for a dataset, not for a file."
            raise ConfigError(message, "Leave them out.", code="options-exclusive")
        concept = Concept.from_file(source, columns=mapping)
        concept = replace(concept, name=name or concept.name, hash="")
    else:
        concept = Concept.from_dataset(
            source,
            split=split,
            columns=mapping,
            config_name=config_name,
            revision=revision,
            name=name or Path(source).name,
            description=f"Examples of {source}.",
        )
    with atomic_folder(output_dir) as staged:
        save_pack(concept, staged)
    output.print_findings(concept.notes)
    output.print_next_steps(
        output_dir,
        (f"retouch concept check {output_dir}", "check its data"),
        (f"retouch edit MODEL --concept {output_dir}", "make the edit"),
        noun="concept",
    )


def _parse_columns(text: str) -> dict[str, str]:
    """The mapping of `OLD=NEW,...`."""
    parts = [part.partition("=") for part in text.split(",") if part.strip()]
    for old, sign, _ in parts:
        if not sign or not old.strip():
            raise ConfigError(
                f"`columns` must have the form OLD=NEW,..., got {text!r}.",
                "For example question=prompt,answer=target_response.",
                code="columns-invalid",
            )
    return {old.strip(): new.strip() for old, _, new in parts}


def print_audit(audit: InstructionAudit) -> None:
    """Print how often the instruction is followed, and how many responses were kept."""
    plain, prompted = audit.rates()
    rows = [
        ("responses that follow it, without the instruction", show_score(plain, "rate")),
        ("with the instruction", show_score(prompted, "rate")),
        *((f"kept, {split}", str(len(audit.kept(split)))) for split in ("train", "validation")),
    ]
    console = output.console()
    console.print(f"Decided by {audit.rule_text}.", soft_wrap=True)
    console.print(output.plain(("", ""), rows))


@app.command("check", cls=Command, short_help="Check a concept's data.")
def check(name: Name) -> None:
    """Report problems of a concept's data; the exit code is 3 where there is an error."""
    concept = load_concept(name)
    findings = validate(concept)
    output.print_findings(findings)
    errors = sum(finding.level == "error" for finding in findings)
    if errors:
        raise DataError(
            f"{concept.name} has {errors} error{'s' if errors > 1 else ''}, listed above.",
            "Correct its examples and check again.",
            code="concept-invalid",
        )
    total = sum(len(examples) for examples in concept.examples.values())
    warnings = sum(finding.level == "warning" for finding in findings)
    noted = f"can be used, with {warnings} warning{'s' if warnings > 1 else ''} listed above"
    output.echo(f"{concept.name} {noted if warnings else 'is valid'}: {total} examples.")
