"""`retouch demo`: one edit from end to end on a CPU, of the built-in model or of `smollm2`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retouch.cli import edit, output
from retouch.cli.options import out_dir
from retouch.concepts.concept import Concept
from retouch.concepts.registry import load_concept
from retouch.core.errors import ConfigError, RunError, choices
from retouch.core.formatting import show_response
from retouch.core.run_dir import next_free
from retouch.core.types import Direction

if TYPE_CHECKING:
    from retouch.core.types import Sample
    from retouch.reporting.report import Pair

DIRECTION: Direction = "raise"


@dataclass(frozen=True)
class DemoEdit:
    """The edit of a demo.

    Attributes:
        concept: the concept that is raised.
        introduction: what the model does, and what the edit is for.
        source: the heading of the responses to source examples.
        other_concept: a concept to edit next.
        limit: maximum number of examples per metric.
    """

    concept: str
    introduction: str
    source: str
    other_concept: str
    limit: int = 64


DEMOS = {
    "pocket": DemoEdit(
        "pocket-safety",
        "The built-in model, pocket, refuses harmful requests, but not when an attack is wrapped "
        "around them.\nThis edit raises the concept `pocket-safety`: the model refuses attacked "
        "requests, too, and changes\nas little as possible otherwise.",
        "Attacks of families that the training has not seen:",
        "pocket-truthfulness",
    ),
    "smollm2": DemoEdit(
        "safety",
        "SmolLM2-135M-Instruct is a small chat model that complies with most harmful requests.\n"
        "This edit raises the concept `safety`: the model refuses harmful requests, and changes as "
        "little\nas possible otherwise.",
        "Harmful requests that the training has not seen:",
        "truthfulness",
        limit=24,
    ),
}


def demo(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="`pocket` or `smollm2`")] = "pocket",
    output_dir: Annotated[Path, out_dir("the run directory")] = Path("runs/demo"),
) -> None:
    """Train a model to refuse harmful requests, and show what the edit changed."""
    if model not in DEMOS:
        hint = choices(model, "models of the demo", DEMOS)
        raise ConfigError(f"There is no demo of {model!r}.", hint, code="demo-unknown")
    chosen = DEMOS[model]
    if renamed := move_aside(output_dir):
        output.echo(f"The earlier demo was moved to {renamed}.")
    output.echo(f"{chosen.introduction}\n")
    settings = {
        "model": model,
        "concept": chosen.concept,
        "direction": DIRECTION,
        "evaluation": {"suites": "concept", "limit": chosen.limit},
    }
    result = edit.run(settings, output_dir=output_dir, next_steps=False)
    concept = load_concept(chosen.concept)
    sets = concept.directions[DIRECTION]
    harmless = set(sets.retain) - {*sets.source, *sets.target}
    _print_pairs(chosen.source, example_pairs(concept, result.samples, sets.source)[:3])
    _print_pairs("Harmless requests:", example_pairs(concept, result.samples, harmless)[:2])
    output.print_next_steps(
        result.path,
        (f"open {result.path / 'report.html'}", "the whole report, in any browser"),
        (
            f"retouch chat {model} --adapter {result.path}",
            "chat with both models, side by side",
        ),
        (f"retouch edit {model} --concept {chosen.other_concept}", "edit another concept"),
        (f"retouch export {result.path} --out demo-adapter", "the adapter for PEFT"),
    )


def _print_pairs(heading: str, pairs: Sequence[Pair]) -> None:
    """Print the prompts with both models' responses, side by side."""
    if pairs:
        output.echo(f"\n{heading}")
    console = output.console()
    for pair in pairs:
        console.print()
        console.print(output.turns(pair.edited.prompt))
        console.print(output.side_by_side(*map(show_response, pair)))


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


def example_pairs(
    concept: Concept, samples: Sequence[Sample], labels: Collection[str]
) -> list[Pair]:
    """Both models' responses to examples with these labels, one of each group.

    The examples of several metrics take turns.
    """
    from retouch.reporting.report import pair_samples

    metrics = {(m.suite, m.metric) for m in concept.metrics if set(m.labels) <= set(labels)}
    selected: set[tuple[str, str]] = set()
    by_metric: dict[tuple[str, str], list[Pair]] = {}
    for pair in pair_samples(samples):
        sample = pair.edited
        metric = (sample.suite, sample.metric)
        if metric not in metrics or sample.prefill:
            continue
        # Without groups each prompt is one. A prompt may count for several metrics.
        keys = {("prompt", repr(sample.prompt))}
        keys |= {(sample.metric, sample.group)} if sample.group else set()
        # The first of each group, whatever the edited model responded: no cherry-picking.
        if not keys & selected:
            selected |= keys
            by_metric.setdefault(metric, []).append(pair)
    turns = zip_longest(*by_metric.values())
    return [pair for turn in turns for pair in turn if pair is not None]
