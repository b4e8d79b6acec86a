"""The audit of a contrast set that a model made: counts, what decided, and what to read by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from retouch.core.atomic import atomic_write
from retouch.core.formatting import show_score
from retouch.core.serialization import to_json, to_plain
from retouch.core.types import SPLITS, Score, Split
from retouch.evaluation.built_in_scorers import MARGIN
from retouch.evaluation.instruction_rules import describe_rule
from retouch.evaluation.statistics import wilson
from retouch.instruction.candidates import REASONS, Candidate, Probe

NUM_LISTED = 10  # kept candidates, and dropped ones of each reason
NUM_DOUBTFUL = 5  # of each kind that is to be read by hand


@dataclass(frozen=True)
class InstructionAudit:
    """How a contrast set was made.

    Attributes:
        instruction: the instruction.
        model: the name of the model that made the responses.
        fingerprint: that of its weights.
        rule: the rule that decided whether a response follows; empty: its likelihood did.
        probes: both forms of the instruction on a few prompts; the first one was used.
        candidates: all prompts with both responses.
    """

    instruction: str
    model: str
    fingerprint: str
    rule: str
    probes: tuple[Probe, ...]
    candidates: tuple[Candidate, ...]

    @property
    def rule_text(self) -> str:
        """What decided whether a response follows, in words."""
        if self.rule:
            return f"automatic check of the form: {describe_rule(self.rule)} (`{self.rule}`)"
        return (
            "likelihood: a response follows where the instruction makes it more than "
            f"{MARGIN} nats a token likelier under the base model"
        )

    def rates(self, splits: Sequence[Split] = SPLITS) -> tuple[Score, Score]:
        """Shares of responses that follow the instruction: without it and with it."""
        chosen = [one for one in self.candidates if one.split in splits]
        counts = [sum(one.plain_follows for one in chosen), sum(one.follows for one in chosen)]
        plain, prompted = (wilson(count, len(chosen)) for count in counts)
        return plain, prompted

    def kept(self, split: Split) -> list[Candidate]:
        """The candidates of a split that passed every filter."""
        return [one for one in self.candidates if one.split == split and one.dropped is None]

    def write(self, folder: Path) -> None:
        """Write `audit.json`, with every candidate, and `audit.md`, to read.

        Raises:
            RunError: the folder cannot be written.
        """
        values = to_plain(self) | {"rule_text": self.rule_text, "counts": self._counts()}
        atomic_write(folder / "audit.json", to_json(values, indent=1) + "\n")
        atomic_write(folder / "audit.md", "\n".join(self._lines()) + "\n")

    def _counts(self) -> dict[Split, dict[str, int]]:
        """For each split the number of candidates, kept ones, and dropped ones by reason."""
        counts: dict[Split, dict[str, int]] = {}
        for split in SPLITS:
            chosen = [one.dropped or "kept" for one in self.candidates if one.split == split]
            counts[split] = {"candidates": len(chosen), **Counter[str](chosen)}
        return counts

    def _lines(self) -> Iterator[str]:
        yield from (f"# Contrast set of an instruction: {self.instruction}", "")
        yield f"Made by {self.model} (weights {self.fingerprint[:12]}), greedily, without labels."
        yield from ("", f"Whether a response follows is decided by: {self.rule_text}.", "")
        forms = {"system": "system turn", "user": "text after the user's turn"}
        for one in self.probes:
            yield (
                f"- as a {forms[one.form]}: {one.follows:.0%} of {one.n} responses follow, "
                f"{one.changed:.0%} of the words change"
            )
        yield from (f"The first form is used: {forms[self.probes[0].form]}.", "", "## Counts", "")
        columns = ["candidates", "kept", *REASONS]
        yield f"| split | {' | '.join(columns)} | follow without | follow with |"
        yield f"|---|{'---|' * (len(columns) + 2)}"
        for split, counts in self._counts().items():
            rates = ["-", "-"]
            if counts["candidates"]:
                rates = [show_score(score, "rate") for score in self.rates([split])]
            numbers = [str(counts.get(name, 0)) for name in columns]
            yield f"| {split} | {' | '.join([*numbers, *rates])} |"
        yield from (
            "",
            "The test split is measured whole, kept or dropped; its two rates are what the edited "
            "model starts from and what the prompted model reaches.",
            "",
            "## Read by hand",
            "",
            "No rule reads the content. Kept responses that are closest to a limit come first: "
            "check that they follow the instruction, answer the prompt and say nothing wrong.",
        )
        kept = [one for one in self.candidates if one.dropped is None and one.split != "test"]
        doubtful = {
            "closest to off-topic": sorted(kept, key=lambda one: one.topic),
            "least changed": sorted(kept, key=lambda one: -one.similarity),
        }
        for name, some in doubtful.items():
            yield from ("", f"### Kept, {name}", *_listed(some[:NUM_DOUBTFUL]))
        yield from ("", "## Kept", *_listed(_spread(kept)))
        for reason, description in REASONS.items():
            dropped = [one for one in self.candidates if one.dropped == reason]
            if dropped:
                yield from ("", f"## Dropped: {reason}", "", f"{description.capitalize()}.")
                yield from _listed(_spread(dropped))


def _spread(candidates: Sequence[Candidate]) -> list[Candidate]:
    """At most `NUM_LISTED` candidates, evenly from the whole list."""
    count = min(NUM_LISTED, len(candidates))
    return [candidates[i * len(candidates) // count] for i in range(count)]


def _listed(candidates: Sequence[Candidate]) -> Iterator[str]:
    for one in candidates:
        yield ""
        yield f"- **{_line(one.example.last_turn)}** ({one.split}, topic {one.topic:.2f})"
        yield f"  - without: {_line(one.plain)}"
        yield f"  - with: {_line(one.instructed)}"


def _line(text: str, limit: int = 300) -> str:
    """A text in one line of Markdown."""
    line = " ".join(text.split())
    for mark in "\\`*_<[|":
        line = line.replace(mark, f"\\{mark}")
    return line if len(line) <= limit else f"{line[:limit].rstrip()} ..."
