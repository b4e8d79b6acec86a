"""Compare Retouch on a real model with what a user would do instead, on public data.

    python -m benchmarks.alternatives --data-dir DIR [--only safety,gender-bias] [--results-only]

Writes docs/results/smollm2/: for each study the tables and the plot of `retouch compare`, thirty
responses of every method side by side, and for safety the picture of what it refuses beside what it
costs, and the capability before and after. Every method has the same examples and the settings that
`retouch tune` found on the validation split (`comparison/tuned/safety-raise.yaml`); the further
studies use the same, but truthfulness has its own in `benchmarks/tuned/`. All methods run with one
seed, then Retouch and the two best others with three. Points whose result lies under --out are not
run again: the command can be stopped and repeated, on another machine too.

DIR holds the published files that the built-in suites name (`retouch.suites`).
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar

from benchmarks import public_truthfulness, unseen_occupations
from benchmarks.common import (
    add_load_options,
    argument_parser,
    describe_machine,
    load_config,
    machine_text,
    parse_names,
)
from benchmarks.figures import table
from benchmarks.front import on_front, render_front
from benchmarks.overview import Columns, failures, overview
from benchmarks.saved_records import saved_records
from benchmarks.strengths import curves, strengths_table
from retouch.comparison.compare import Comparison, compare
from retouch.comparison.grid import GridPoint
from retouch.concepts.concept import Concept
from retouch.concepts.registry import load_concept, load_concept_file
from retouch.core.atomic import atomic_write
from retouch.core.errors import RetouchError
from retouch.core.formatting import show_score
from retouch.core.metrics import Metrics
from retouch.core.types import Direction
from retouch.instruction.build import concept_from_instruction, save
from retouch.methods.registry import register_method
from retouch.methods.retouch import Retouch
from retouch.models.editable_model import EditableModel
from retouch.models.load import load
from retouch.pipeline import evaluate

SENTENCE = "Answer in one short sentence."
SAMPLES = 30
MAX_NEW_TOKENS = 32  # a refusal shows in the first words
BEST_OTHERS, SEEDS = 2, 3
RETOUCH, BASE = "retouch", "none"

HARMLESS = "alpaca-harmless:100"
REFUSED = ("jailbreakbench", "harmbench", "jailbreak-templates")
COST = "alpaca-harmless"
FEW_SUITES = ("jailbreakbench", "harmbench:100", "jailbreak-templates:17", HARMLESS)
STRENGTH_SUITES = (*FEW_SUITES, "prefill", "jailbreak-templates-harmless:17")
SAFETY_SUITES = (*STRENGTH_SUITES, "wikitext:40")
CAPABILITY = ("mmlu:200", "gsm8k:100", "wikitext:64")

LABELLED = (
    "steering",
    "lorra",
    "circuit-breaker",
    "paired-matching",
    "lora-sft",
    "lora-sft-kl",
    "dpo",
)
ALL = (BASE, "self-reminder", "in-context-defense", *LABELLED, "are-original", RETOUCH)
# Those whose adapters refuse enough to be compared at lower strengths.
SCALED = ("lorra", "paired-matching", "lora-sft", "lora-sft-kl", "dpo", RETOUCH)
# For further concepts one of each kind: a prompt, steering, training on states and on responses.
FEW = (BASE, "self-reminder", "steering", "lorra", "lora-sft-kl", RETOUCH)


class Variant(Retouch):
    """Retouch with other settings than the concept's."""

    changed: ClassVar[Mapping[str, Mapping[str, Any]]]

    def defaults(self, concept: Concept, direction: Direction) -> dict[str, Any]:
        """The concept's settings, with the changed ones."""
        found = super().defaults(concept, direction)
        return found | {group: found.get(group, {}) | self.changed[group] for group in self.changed}


def variant(id: str, title: str, **changed: Mapping[str, Any]) -> type[Variant]:
    """A variant's class."""
    return type("Variant", (Variant,), {"id": id, "title": title, "changed": changed})


ABLATIONS = {
    one.id: one
    for one in (
        variant("without-adversarial", "without adversarial", loss={"adversarial_weight": 0}),
        variant("without-matching", "without matching", loss={"matching_weight": 0}),
        variant(
            "without-both",
            "without both (SFT + KL)",
            loss={"adversarial_weight": 0, "matching_weight": 0},
        ),
        variant(
            "without-retain",
            "without the retain loss",
            loss={"kl_weight": 0, "retain_weight": 0},
            train={"max_drift": 10.0, "max_retain_change": 1.0},
        ),
    )
}


@dataclass(frozen=True)
class Inputs:
    """What a study is made from: the loaded model, and the folders of data and of made files."""

    editable: EditableModel
    data_dir: Path
    made: Path


@dataclass(frozen=True)
class Study:
    """One comparison.

    Attributes:
        title: a heading.
        concept: makes the concept.
        methods: their ids.
        suites: public evaluation sets.
        columns: the figures of the overview, as `suite/metric` by their heading.
        direction: of the edit.
        num_examples: labelled source examples.
        metrics: as for `retouch compare`.
        more_seeds: whether Retouch and the best others run with further seeds.
        strength_suites: those of the suites that adapters are measured on at lower strengths.
        tuned: the file of tuned settings in `benchmarks/tuned/` (default: those of safety that
            ship).
    """

    title: str
    concept: Callable[[Inputs], Concept]
    methods: tuple[str, ...]
    suites: tuple[str, ...]
    columns: Columns = field(default_factory=dict)
    direction: Direction = "raise"
    num_examples: int = 128
    metrics: Any = "objective"
    more_seeds: bool = False
    strength_suites: tuple[str, ...] = ()
    tuned: str = ""

    @contextmanager
    def tuned_file(self) -> Iterator[Path]:
        """The file of tuned settings, inside the context."""
        if self.tuned:
            yield Path(__file__).parent / "tuned" / self.tuned
            return
        shipped = resources.files("retouch.comparison") / "tuned" / "safety-raise.yaml"
        with resources.as_file(shipped) as path:
            yield path


def truthfulness(control: bool) -> Callable[[Inputs], Concept]:
    """The concept of TruthfulQA's training questions, or its control; it is written."""

    def make(inputs: Inputs) -> Concept:
        folder = inputs.made / "truthfulness"
        public_truthfulness.write(folder, inputs.data_dir)
        return load_concept_file(folder / ("control" if control else "concept"))

    return make


def gender_bias(inputs: Inputs) -> Concept:
    """The built-in pack; its held-out suites are written."""
    unseen_occupations.write(inputs.made / "occupations", inputs.data_dir)
    return load_concept("gender-bias")


def sentence(inputs: Inputs) -> Concept:
    """The concept of an instruction, with what the base model responds under it."""
    folder = inputs.made / "sentence"
    if not folder.exists():
        made = concept_from_instruction(inputs.editable, SENTENCE, name="one-short-sentence")
        save(*made, folder)
    return load_concept_file(folder)


def safety(_: Inputs) -> Concept:
    """The built-in pack."""
    return load_concept("safety")


FEW_COLUMNS = {
    "JailbreakBench": "jailbreakbench/refusal",
    "HarmBench": "harmbench/refusal",
    "in templates": "jailbreak-templates/refusal",
    "harmless": f"{COST}/refusal",
    "KL, harmless": f"{COST}/kl_responses",
}
SAFETY_COLUMNS = {
    **FEW_COLUMNS,
    "harmless in templates": "jailbreak-templates-harmless/refusal",
    "after a prefill": "prefill/refusal",
    "perplexity": "wikitext/perplexity",
}
TRUTH_COLUMNS = {
    "MC1": f"{public_truthfulness.UNSEEN}/mc1",
    "MC2": f"{public_truthfulness.UNSEEN}/mc2",
    "KL, harmless": f"{COST}/kl_responses",
    "perplexity": "wikitext/perplexity",
}
BIAS_COLUMNS = {
    "WinoBias, share": f"{unseen_occupations.WINOBIAS}/stereotype_share",
    "WinoBias, log-odds": f"{unseen_occupations.WINOBIAS}/stereotype_log_odds",
    "CrowS-Pairs, share": f"{unseen_occupations.CROWS}/stereotype_share",
    "CrowS-Pairs, log-odds": f"{unseen_occupations.CROWS}/stereotype_log_odds",
    "KL, harmless": f"{COST}/kl_responses",
    "perplexity": "wikitext/perplexity",
}
TRUTH_SUITES = (
    f"{{made}}/truthfulness/{public_truthfulness.UNSEEN}.yaml:150",
    HARMLESS,
    "wikitext:40",
)
STUDIES = {
    "safety": Study(
        "Safety, 128 labels",
        safety,
        (*ALL, *ABLATIONS),
        SAFETY_SUITES,
        SAFETY_COLUMNS,
        more_seeds=True,
        strength_suites=STRENGTH_SUITES,
    ),
    "safety-16": Study(
        "Safety, 16 labels",
        safety,
        (BASE, "lorra", "paired-matching", "lora-sft", "lora-sft-kl", "dpo", RETOUCH),
        FEW_SUITES,
        FEW_COLUMNS,
        num_examples=16,
        strength_suites=FEW_SUITES,
    ),
    "sentence": Study(
        f'From a sentence: "{SENTENCE}"',
        sentence,
        FEW,
        (),
        num_examples=256,
        metrics="concept",
    ),
    "truthfulness": Study(
        "Truthfulness, 400 questions of TruthfulQA",
        truthfulness(False),
        (*FEW, "dpo"),
        TRUTH_SUITES,
        TRUTH_COLUMNS,
        num_examples=400,
        metrics="concept",
        tuned="truthfulness.yaml",
    ),
    "truthfulness-control": Study(
        "Truthfulness, the control: answers of other questions",
        truthfulness(True),
        (BASE, RETOUCH),
        TRUTH_SUITES,
        TRUTH_COLUMNS,
        num_examples=400,
        metrics="concept",
        tuned="truthfulness.yaml",
    ),
    "gender-bias": Study(
        "Gender bias lowered",
        gender_bias,
        FEW,
        (
            f"{{made}}/occupations/{unseen_occupations.WINOBIAS}.yaml:1230",
            f"{{made}}/occupations/{unseen_occupations.CROWS}.yaml:262",
            HARMLESS,
            "wikitext:40",
        ),
        BIAS_COLUMNS,
        direction="lower",
        metrics="concept",
    ),
}


def run_study(name: str, inputs: Inputs, out: Path) -> Comparison:
    """Run what is missing of a study."""
    study = STUDIES[name]
    concept = study.concept(inputs)

    def run(more_seeds: Mapping[str, int]) -> Comparison:
        with study.tuned_file() as tuned:
            return compare(
                inputs.editable,
                concept=concept,
                direction=study.direction,
                methods=study.methods,
                seeds=1,
                more_seeds=more_seeds,
                num_examples=study.num_examples,
                tuned=tuned,
                metrics=study.metrics,
                suites=[one.format(made=inputs.made) for one in study.suites],
                data_dir=inputs.data_dir,
                limit=100,
                max_new_tokens=MAX_NEW_TOKENS,
                samples=SAMPLES,
                save_adapters=True,
                allow_weakening="adapters of compared methods, which are measured here",
                output_dir=out / name,
            )

    found = run({})
    if not study.more_seeds:
        return found
    repeated = [RETOUCH, *best_others(found)]
    return run({id: SEEDS for id in found.grid.methods if id in repeated})


def refused(metrics: Mapping[str, Any]) -> float:
    """The mean share of harmful requests that are refused, over the suites."""
    return statistics.fmean(metrics[f"{suite}/refusal"].mean for suite in REFUSED)


def best_others(found: Comparison) -> list[str]:
    """The alternatives that refuse most more of harmful than of harmless requests."""
    rows = {row.method: row.metrics for row in found.rows if row.metrics}
    left = set(rows) - {BASE, RETOUCH, *ABLATIONS}
    ranked = sorted(
        left, key=lambda id: refused(rows[id]) - rows[id][f"{COST}/refusal"].mean, reverse=True
    )
    return ranked[:BEST_OTHERS]


def capability(inputs: Inputs, found: Comparison) -> str:
    """The table of MMLU, GSM8K and perplexity before and after the safety edit of seed 0."""
    point = GridPoint(RETOUCH, STUDIES["safety"].num_examples, 0)
    file = found.path / "capability.json"
    identity = {**found.grid.identity(point), "suites": list(CAPABILITY)}
    adapter = found.path / "adapters" / point.name

    def measure() -> Metrics:
        return evaluate(
            inputs.editable, adapter=adapter, suites=CAPABILITY, data_dir=inputs.data_dir
        ).metrics

    rows = [["figure", "n", "base", "edited"]]
    for record in saved_records(file, identity, measure) or ():
        scores = [record.before, record.after or record.before]
        texts = [show_score(score, record.unit) for score in scores]
        rows.append([f"{record.suite}: {record.metric}", str(record.before.n), *texts])
    return table(rows)


def scaled_methods(study: Study, inputs: Inputs, found: Comparison) -> str:
    """The section about adapters at lower strengths."""
    cost = f"{COST}/refusal"
    by_method = curves(
        inputs.editable,
        found,
        [id for id in found.grid.methods if id in SCALED],
        study.strength_suites,
        inputs.data_dir,
        MAX_NEW_TOKENS,
        cost,
        RETOUCH,
    )
    if RETOUCH not in by_method:
        return ""
    names = {suite.partition(":")[0] for suite in study.strength_suites}
    columns = {head: key for head, key in study.columns.items() if key.partition("/")[0] in names}
    return (
        "### At the over-refusal of Retouch\n\n"
        "Each adapter at the strength at which harmless requests are refused as often as with "
        "Retouch, interpolated between measured strengths; at strength 1 where it refuses no more "
        "of them. The figures are means over seeds.\n\n"
        f"{strengths_table(found, by_method, columns, cost, RETOUCH)}\n"
    )


def write_study(name: str, found: Comparison, out: Path) -> str:
    """Write the pages of a study; the section of the index about it."""
    study = STUDIES[name]
    parts = [f"## {study.title}\n", f"{overview(found, study.columns)}\n"]
    parts += [f"- {failure}\n" for failure in failures(found.rows)]
    links = f"[All metrics]({name}/compare.md), [responses side by side]({name}/samples.md)."
    if study.strength_suites:
        best = (found.titles[id] for id in on_front(found.rows, refused, f"{COST}/refusal"))
        parts.append(
            "On the Pareto front of harmful requests refused (the mean of JailbreakBench, "
            "HarmBench and the templates), harmless requests refused, and KL on harmless requests: "
            f"{', '.join(best)}.\n"
        )
    if name == "safety":
        picture = render_front(found.rows, found.titles, refused, f"{COST}/refusal")
        atomic_write(out / name / "front.png", picture)
        parts.append(f"![Refused beside its costs]({name}/front.png)\n")
    return "\n".join([*parts, f"{links}\n"])


def introduction(model: str, machine: Mapping[str, Any]) -> str:
    """The beginning of the index."""
    return (
        f"# Alternatives on {model}\n\n"
        "`python -m benchmarks.alternatives --data-dir DIR` writes this page and those below it. "
        f"{machine_text(machine).strip()}\n\n"
        f"Greedy responses of up to {MAX_NEW_TOKENS} tokens. Every method of a study is trained on "
        "the same examples. A method with several seeds has its mean, and the worst seed in "
        "brackets. A star marks a difference from Retouch with p < 0.05, a paired bootstrap over "
        "prompts and seeds with Holm's correction. KL is in nats a token.\n"
    )


def main(words: Sequence[str] | None = None) -> None:
    """Parse the options, run the studies and write the pages."""
    parser = argument_parser(__doc__)
    parser.add_argument("--model", default="smollm2", help="a name, folder or hub id")
    parser.add_argument("--data-dir", type=Path, required=True, help="the published files")
    parser.add_argument("--only", default="", help=f"of {', '.join(STUDIES)}")
    parser.add_argument("--made", type=Path, default=Path("runs/alternatives"), help="made data")
    parser.add_argument("--out", type=Path, default=Path("docs/results/smollm2"))
    add_load_options(parser)
    options = parser.parse_args(words)
    for ablation in ABLATIONS.values():
        register_method(ablation)
    names = parse_names(parser, "--only", options.only, list(STUDIES)) or list(STUDIES)
    machine = describe_machine(options.device)
    try:
        editable = load(options.model, load_config(options))
        inputs = Inputs(editable, options.data_dir, options.made)
        sections = [introduction(options.model, machine)]
        for name in names:
            print(f"{STUDIES[name].title}", file=sys.stderr, flush=True)
            found = run_study(name, inputs, options.out)
            sections.append(write_study(name, found, options.out))
            if STUDIES[name].strength_suites:
                sections.append(scaled_methods(STUDIES[name], inputs, found))
            if name == "safety":
                sections.append("### Capability before and after the edit\n")
                sections.append(f"{capability(inputs, found)}\n")
            atomic_write(options.out / "index.md", "\n".join(sections))
    except RetouchError as error:
        parser.exit(error.exit_code, f"{error}\n")
    print(f"Written to {options.out}.")


if __name__ == "__main__":
    main()
