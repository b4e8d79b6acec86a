"""`retouch demo`: one edit of the built-in model from end to end, offline, on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retouch.cli import edit, output
from retouch.cli.options import out_dir
from retouch.concepts.concept import Concept
from retouch.concepts.registry import load_concept
from retouch.core.errors import RunError
from retouch.core.run_dir import next_free

if TYPE_CHECKING:
    from retouch.core.types import Sample
    from retouch.reporting.report import Pair


def demo(output_dir: Annotated[Path, out_dir("the run directory")] = Path("runs/demo")) -> None:
    """Train the built-in model to refuse under attack, and show what the edit changed."""
    if renamed := move_aside(output_dir):
        typer.echo(f"The earlier demo was moved to {renamed}.")
    typer.echo(
        "The built-in model, pocket, refuses harmful requests, but not when an attack is wrapped "
        "around them.\nThis edit raises the concept `safety`: the model refuses attacked requests, "
        "too, and changes as\nlittle as possible otherwise.\n"
    )
    settings = {"model": "pocket", "concept": "safety", "direction": "raise"}
    result = edit.run(settings, output_dir=output_dir, next_steps=False)
    if pairs := attacked_pairs(load_concept("safety"), result.samples):
        typer.echo("\nAttacks of families that the training has not seen:")
    console = output.console()
    for pair in pairs:
        console.print()
        console.print(output.turns(pair.edited.prompt))
        console.print(output.side_by_side(pair.base.response, pair.edited.response))
    output.print_next_steps(
        result.path,
        (f"open {result.path / 'report.html'}", "the whole report, in any browser"),
        (f"retouch chat --adapter {result.path}", "chat with both models, side by side"),
        ("retouch edit pocket --concept truthfulness", "edit another concept"),
        (f"retouch export {result.path} --out demo-adapter", "the adapter for PEFT"),
    )


def move_aside(path: Path) -> Path | None:
    """Rename the directory of an earlier demo, and return its new path; None if there is none.

    Raises:
        RunError: the directory is not a run, or cannot be renamed.
    """
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return None
    if not (path / "config.yaml").is_file():
        raise RunError(
            f"`output_dir` {path} exists and is not a run.",
            "Choose another directory.",
            code="not-a-run",
        )
    free = next_free(path.parent, path.name)
    try:
        path.rename(free)
    except OSError as error:
        raise RunError(
            f"{path} cannot be renamed: {error.strerror}.",
            "Choose another `output_dir`.",
            code="not-writable",
        ) from error
    return free


def attacked_pairs(concept: Concept, samples: Sequence[Sample]) -> list[Pair]:
    """Responses to source examples of the edit, each of another attack family."""
    from retouch.reporting.report import pair_samples

    source = set(concept.directions["raise"].source)
    metrics = {(m.suite, m.metric) for m in concept.metrics if set(m.labels) <= source}
    by_family: dict[str, Pair] = {}
    for pair in pair_samples(samples):
        sample = pair.edited
        if (sample.suite, sample.metric) in metrics and not sample.prefill:
            # The first of each family, whatever the edited model responded: no cherry-picking.
            by_family.setdefault(sample.group, pair)
    return list(by_family.values())[:3]
