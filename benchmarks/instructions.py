"""Measure edits made from one sentence: what share of the prompted model's rate they reach.

    python -m benchmarks.instructions --data-dir DIR [--seeds N] [--only french]

For each instruction an edit is made by `retouch edit MODEL --instruction SENTENCE`, unless its run
exists. Then the base, the base with the instruction in the prompt and the edited model without it
respond greedily to harmless instructions that the edit never saw. Rules decide whether a response
follows the instruction. The share is the edited model's rate as a part of the prompted model's;
its interval is a bootstrap over the prompts. The instruction is in the prompt as the edit's concept
has it. The divergence elsewhere is KL(base || edited) in nats a token: on the base's own responses
to the concept's test prompts with another instruction or a given text, and on passages of
WikiText-2, which contain no request.

DIR holds the files of the suites `alpaca-harmless` and `wikitext` (`retouch.suites`).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import (
    add_load_options,
    argument_parser,
    describe_machine,
    load_config,
    machine_text,
    parse_names,
    retouch_command,
)
from benchmarks.figures import Figure, FigureResult, figures_table
from retouch.concepts.chat import TokenizedChat, prompt_ids, tokenize_chat
from retouch.concepts.concept import Example
from retouch.concepts.registry import load_concept_file
from retouch.core.atomic import atomic_write
from retouch.core.config import LoadConfig
from retouch.core.errors import DataError, RetouchError
from retouch.core.run_dir import RunDir
from retouch.core.types import Progress, Score
from retouch.evaluation.instruction_rules import find_rule, follows
from retouch.evaluation.response_classifier import is_degenerate
from retouch.evaluation.statistics import ExampleValues, bootstrap, wilson
from retouch.models.base_responses import cached_base_responses
from retouch.models.editable_model import EditableModel
from retouch.models.generate import Response, generate_responses
from retouch.models.load import adapter_added, load
from retouch.representations.divergence import token_kl
from retouch.suites.registry import load_suite_concept
from retouch.suites.sources import evenly

HARMLESS, COUNT = "alpaca-harmless", 100
WIKITEXT = "wikitext"
PASSAGES, PASSAGE_TOKENS = 64, 128
KL_BATCH_SIZE = 32
MIN_SHARE, MAX_KL = 0.95, 0.01

# Sentences that SmolLM2-135M-Instruct follows when they are in its prompt.
INSTRUCTIONS = {
    "sentence": "Answer in one short sentence.",
    "french": "Answer in French.",
    "bullets": "Answer with a list of bullet points.",
}


@dataclass(frozen=True)
class Responses:
    """The responses of the base, of the prompted base, and of each edited model."""

    base: Sequence[Response]
    prompted: Sequence[Response]
    edited: Sequence[Sequence[Response]]


def read_passages(folder: Path, editable: EditableModel) -> list[TokenizedChat]:
    """Passages of WikiText-2, evenly spaced, that are compared at every token but the first.

    Raises:
        DataError: the file cannot be read or is too short.
    """
    concept = load_suite_concept(WIKITEXT, folder)
    text = "\n".join(one.response or "" for one in concept.examples["test"])
    ids = editable.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    starts = range(0, len(ids) - PASSAGE_TOKENS + 1, PASSAGE_TOKENS)
    if not starts:
        message = f"The suite {WIKITEXT} has fewer than {PASSAGE_TOKENS} tokens."
        raise DataError(message, "Use the published file.", code="benchmark-data-invalid")
    return [TokenizedChat(tuple(ids[i : i + PASSAGE_TOKENS]), 1) for i in evenly(starts, PASSAGES)]


def make_run(model: str, name: str, seed: int, folder: Path, config: LoadConfig) -> Path:
    """The run of an edit from an instruction; a finished one is reused, another one is resumed."""
    path = folder / f"{name}-seed{seed}"
    if not (path.exists() and RunDir.open(path).finished):
        words = ["edit", model, "--instruction", INSTRUCTIONS[name], "--seed", str(seed)]
        words += ["--device", config.device, "--dtype", config.dtype]
        words += ["--suites", "none", "--quiet", "--out", str(path)]
        if path.exists():
            words = ["edit", "--resume", str(path)]
        subprocess.run(retouch_command(*words), check=True, stdout=subprocess.DEVNULL)
    return path


def make_lines(
    name: str, found: Responses, kl: Mapping[str, Sequence[ExampleValues]]
) -> list[FigureResult]:
    """The lines of an instruction.

    Args:
        name: of the instruction.
        found: the responses.
        kl: the divergence of each edited model, by the name of the texts.
    """
    rule = find_rule(INSTRUCTIONS[name])

    def hits(responses: Sequence[Response]) -> tuple[float, ...]:
        return tuple(float(follows(rule, one.text)) for one in responses)

    def rate(responses: Sequence[Response]) -> Score:
        return wilson(int(sum(hits(responses))), len(responses))

    def loops(responses: Sequence[Response]) -> Score:
        return wilson(sum(is_degenerate(one.text) for one in responses), len(responses))

    base, edited = found.base, found.edited
    lines = [
        FigureResult(Figure(f"{name}: follows, prompted"), rate(found.prompted), ()),
        FigureResult(Figure(f"{name}: follows"), rate(base), tuple(map(rate, edited))),
        FigureResult(
            Figure(f"{name}: degenerate", higher=False), loops(base), tuple(map(loops, edited))
        ),
    ]
    reference = hits(found.prompted)
    if any(reference):
        shares = tuple(bootstrap(ExampleValues(hits(one), reference)) for one in edited)
        lines.append(
            FigureResult(Figure(f"{name}: share of the prompted rate", MIN_SHARE), None, shares)
        )
    for where, values in kl.items():
        figure = Figure(f"{name}: KL elsewhere, {where}", MAX_KL, higher=False)
        lines.append(FigureResult(figure, None, tuple(map(bootstrap, values))))
    return lines


def measure(
    editable: EditableModel,
    runs: Mapping[str, Sequence[Path]],
    data: Path,
    max_new_tokens: int,
) -> dict[str, list[FigureResult]]:
    """Measure the edits of each instruction.

    Args:
        editable: the base model.
        runs: the runs of each instruction, one for each seed.
        data: the folder with the published files.
        max_new_tokens: maximum length of a response.
    """
    questions = list(load_suite_concept(HARMLESS, data, COUNT).examples["test"])
    passages = read_passages(data, editable)

    def respond(examples: Sequence[Example], label: str, *, base: bool = True) -> list[Response]:
        prompts = [prompt_ids(editable.tokenizer, one.prompt, one.prefill) for one in examples]
        generate = cached_base_responses if base else generate_responses
        progress = reporter(f"{label}, responses")
        return generate(editable, prompts, max_new_tokens=max_new_tokens, progress=progress)

    base = respond(questions, "base")
    lines = {}
    for name, paths in runs.items():
        concept = load_concept_file(RunDir.open(paths[0]).concept)
        direction = concept.directions["raise"]
        if direction.context is None:
            message = f"The concept of {paths[0]} has no context, so it is of no instruction."
            raise DataError(message, "Remove the run, to make it again.", code="context-missing")
        reference = respond(
            [direction.context.apply(one) for one in questions], f"{name}, prompted"
        )
        kept = concept.select("test", direction.retain)
        own = respond(kept, f"{name}, elsewhere")
        texts = {
            "other prompts": [
                tokenize_chat(editable.tokenizer, one.prompt, response.text, one.prefill)
                for one, response in zip(kept, own, strict=True)
            ],
            "WikiText-2": passages,
        }
        edited: list[list[Response]] = []
        kl: dict[str, list[ExampleValues]] = {where: [] for where in texts}
        for path in paths:
            with adapter_added(editable, path):
                edited.append(respond(questions, str(path), base=False))
                for where, chats in texts.items():
                    progress = reporter(f"{path}, divergence, {where}")
                    found = token_kl(editable, chats, KL_BATCH_SIZE, progress)
                    sums = tuple(one.response_total for one in found)
                    counts = tuple(float(one.response_count) for one in found)
                    kl[where].append(ExampleValues(sums, counts))
        lines[name] = make_lines(name, Responses(base, reference, edited), kl)
    return lines


def reporter(label: str) -> Progress:
    """Prints to stderr how much is done."""
    return lambda _, done, total: print(f"{label}: {done} of {total}", file=sys.stderr, flush=True)


def main(words: Sequence[str] | None = None) -> None:
    """Parse the options, make the edits, measure and print."""
    parser = argument_parser(__doc__)
    parser.add_argument("--model", default="smollm2", help="a name, folder or hub id")
    parser.add_argument("--data-dir", type=Path, required=True, help="the published files")
    parser.add_argument("--only", default="", help=f"of {', '.join(INSTRUCTIONS)}")
    parser.add_argument("--seeds", type=int, default=1)
    add_load_options(parser)
    parser.add_argument("--runs", type=Path, default=Path("runs/instructions"))
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--out", type=Path, default=Path("build/real/instructions.json"))
    options = parser.parse_args(words)
    names = parse_names(parser, "--only", options.only, list(INSTRUCTIONS)) or list(INSTRUCTIONS)
    machine, config = describe_machine(options.device), load_config(options)
    try:
        runs = {
            name: [
                make_run(options.model, name, seed, options.runs, config)
                for seed in range(options.seeds)
            ]
            for name in names
        }
        editable = load(options.model, config)
        found = measure(editable, runs, options.data_dir, options.max_new_tokens)
    except RetouchError as error:
        parser.exit(error.exit_code, f"{error}\n")
    print(machine_text(machine))
    lines = [line for name in names for line in found[name]]
    print(figures_table(lines, options.seeds))
    values = {
        "machine": machine,
        "model": options.model,
        "runs": {name: [str(path) for path in paths] for name, paths in runs.items()},
        "figures": [line.plain() for line in lines],
    }
    atomic_write(options.out, json.dumps(values, indent=1, ensure_ascii=False) + "\n")
    print(f"\nWritten to {options.out}.")


if __name__ == "__main__":
    main()
