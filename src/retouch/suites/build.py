"""A suite as a concept with a test split and metrics, so that `evaluate` measures it as any other.

| kind | examples | metrics |
|---|---|---|
| requests | one prompt for each row, or for each template and row | each scorer |
| choices | one for each choice, with the choice as the response, paired by question | by name |
| pairs | one for each text, without a prompt, paired | `stereotype_share`, `stereotype_log_odds` |
| text | one for each passage, without a prompt | `perplexity` |
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from retouch.concepts.concept import Concept, Example, MetricSpec
from retouch.core.errors import DataError
from retouch.core.types import Message
from retouch.suites.sources import Row, explode, read_rows, sample
from retouch.suites.suite import (
    ChoiceSet,
    ChoiceSuite,
    PairSuite,
    RequestSuite,
    Suite,
    Templates,
    TextSuite,
)

REQUEST = "request"
TEXT = "text"
MORE, LESS = "more", "less"
TRUE, FALSE = "true", "false"

UNITS = {"kl_responses": "nats", "kl_tokens": "nats"}


def build_concept(
    suite: Suite, folders: Sequence[Path] = (), limit: int | None = None, origin: str = ""
) -> Concept:
    """Read the rows of a suite, and make them the test split of a concept.

    Args:
        suite: the suite.
        folders: the folders in which its files are searched, in this order.
        limit: maximum number of rows, evenly spaced (default: all that the suite uses).
        origin: the suite's file.

    Raises:
        DataError: no source is at hand, or a row lacks a column or has a wrong value.
        ConfigError: a library is missing.
    """
    rows = explode(read_rows(suite.sources, suite.name, folders), suite.explode)
    examples: Iterable[Example]
    if isinstance(suite, RequestSuite):
        examples = _requests(suite, sample(rows, suite.sample, limit), folders)
        metrics = _request_metrics(suite)
    elif isinstance(suite, ChoiceSuite):
        examples = _choices(suite, sample(rows, suite.sample, limit))
        metrics = [
            MetricSpec(suite.name, name, _labels(name), one.scorer, better="higher")
            for name, one in suite.metrics.items()
        ]
    elif isinstance(suite, PairSuite):
        examples = _pairs(suite, rows, limit)
        labels = (MORE, LESS)
        metrics = [
            MetricSpec(suite.name, "stereotype_share", labels, "likelier", "rate"),
            MetricSpec(suite.name, "stereotype_log_odds", labels, "log_odds", "nats"),
        ]
    else:
        examples = _passages(suite, rows, limit)
        metrics = [MetricSpec(suite.name, "perplexity", (TEXT,), "perplexity", "", "lower")]
    return Concept(
        name=suite.name,
        title=suite.title,
        description=f"{suite.title} ({suite.url}), licence: {suite.licence}.",
        examples={"train": (), "validation": (), "test": tuple(examples)},
        directions={},
        metrics=tuple(metrics),
        source=origin,
    )


def _turns(row: Row, prompt: str, system: str) -> tuple[Message, ...]:
    """The turns of a row's prompt; a source may have texts of its own."""
    source = row.source
    # Some published files end every prompt with a line end.
    text = row.render(prompt if source.prompt is None else source.prompt).strip()
    instruction = row.render(system if source.system is None else source.system).strip()
    before = (Message("system", instruction),) if instruction else ()
    return (*before, Message("user", text))


# --- requests ----------------------------------------------------------------------------------


def _requests(suite: RequestSuite, rows: list[Row], folders: Sequence[Path]) -> Iterator[Example]:
    wrappers = [one for each in suite.templates for one in _wrappers(suite, each, folders)]
    for group, template, slot in wrappers or [("", "", "")]:
        for row in rows:
            *before, last = _turns(row, suite.prompt, suite.system)
            request = last.content
            if template:
                last = Message("user", template.replace(slot, request))
            yield Example(
                prompt=(*before, last),
                label=REQUEST,
                prefill=suite.prefill,
                accept=(row.render(suite.accept),) if suite.accept else (),
                group=group or row.render(suite.group),
                entity=row.id,
                request=request if template else "",
            )


def _wrappers(
    suite: RequestSuite, templates: Templates, folders: Sequence[Path]
) -> Iterator[tuple[str, str, str]]:
    """The templates: the name of each, its text and its slot."""
    for row in read_rows(templates.sources, suite.name, folders):
        text = row.render(templates.template)
        if templates.slot not in text:
            message = f"the template has no slot {templates.slot}."
            hint = "Leave it out with `where`, or correct `slot`."
            raise row.location.error("template-slot", message, hint)
        yield f"{Path(row.source.file or row.source.dataset).stem}-{row.id}", text, templates.slot


def _request_metrics(suite: RequestSuite) -> list[MetricSpec]:
    return [
        MetricSpec(
            suite.name,
            scorer,
            (REQUEST,),
            scorer,
            unit=UNITS.get(scorer, "rate"),
            better=suite.better if i == 0 else "lower",
            max_new_tokens=suite.max_new_tokens,
        )
        for i, scorer in enumerate(suite.scorers)
    ]


# --- choices -----------------------------------------------------------------------------------


def _labels(metric: str) -> tuple[str, str]:
    return f"{metric}-{TRUE}", f"{metric}-{FALSE}"


def _choices(suite: ChoiceSuite, rows: list[Row]) -> Iterator[Example]:
    for number, row in enumerate(rows):
        prompt = _turns(row, suite.prompt, suite.system)
        for name, chosen in suite.metrics.items():
            true, false = _labels(name)
            texts = _texts(row, chosen)
            for text, correct in zip(texts, _correct(row, chosen, texts), strict=True):
                yield Example(
                    prompt=prompt,
                    label=true if correct else false,
                    response=text,
                    pair=str(number),
                    entity=row.id,
                )


def _texts(row: Row, chosen: ChoiceSet) -> list[str]:
    if isinstance(chosen.choices, tuple):
        return list(chosen.choices)
    found = row.find(chosen.choices)
    if not isinstance(found, list | tuple) or len(found) < 2:
        message = f"`{chosen.choices}` is no list of two or more choices."
        raise row.location.error("choices-invalid", message, "Use the published file.")
    return [str(text) for text in found]


def _correct(row: Row, chosen: ChoiceSet, texts: Sequence[str]) -> list[bool]:
    """Whether each choice is correct: by a list of 0 and 1, an index, or the text of one."""
    found: Any = row.find(chosen.correct)
    if isinstance(found, list | tuple) and len(found) == len(texts):
        correct = [bool(one) for one in found]
    elif isinstance(found, int) and not isinstance(found, bool) and 0 <= found < len(texts):
        correct = [i == found for i in range(len(texts))]
    else:
        correct = [text == str(found).strip() for text in texts]
    if not any(correct) or all(correct):
        message = f"`{chosen.correct}` is {found!r}, which tells no correct choice from the others."
        hint = f"The choices are: {', '.join(map(repr, texts))}."
        raise row.location.error("choices-invalid", message, hint)
    return correct


# --- pairs -------------------------------------------------------------------------------------


def _pairs(suite: PairSuite, rows: list[Row], limit: int | None) -> Iterator[Example]:
    pairs = list(_two_rows(suite, rows) if suite.side else _two_columns(suite, rows))
    if not pairs:
        message = f"The suite {suite.name}: no pair has both texts."
        hint = f"Check `side`, `more` ({suite.more!r}), `less` ({suite.less!r}) and `pair`."
        raise DataError(message, hint, code="suite-empty")
    for number, (row, more, less) in enumerate(sample(pairs, suite.sample, limit)):
        for label, text in ((MORE, more), (LESS, less)):
            yield Example(
                prompt=(),
                label=label,
                response=text,
                pair=str(number),
                group=row.render(suite.group),
                entity=row.id,
            )


def _two_columns(suite: PairSuite, rows: list[Row]) -> Iterator[tuple[Row, str, str]]:
    for row in rows:
        yield row, row.render(suite.more), row.render(suite.less)


def _two_rows(suite: PairSuite, rows: list[Row]) -> Iterator[tuple[Row, str, str]]:
    """The pairs whose two rows are there, in the order of the first of them."""
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        found.setdefault(row.render(suite.pair), {}).setdefault(str(row.find(suite.side)), row)
    for pair in found.values():
        if suite.more in pair and suite.less in pair:
            more, less = pair[suite.more], pair[suite.less]
            yield more, more.render(suite.text), less.render(suite.text)


# --- text --------------------------------------------------------------------------------------


def _passages(suite: TextSuite, rows: list[Row], limit: int | None) -> Iterator[Example]:
    passages: list[str] = []
    lines: list[str] = []
    for row in rows:
        lines.append(row.render(suite.text).rstrip("\n"))
        if sum(map(len, lines)) >= suite.passage:
            passages.append("\n".join(lines))
            lines = []
    # What is left is shorter, but part of the text.
    rest = "\n".join(lines)
    passages += [rest] if rest.strip() else []
    for i, text in enumerate(sample(passages, suite.sample, limit)):
        yield Example(prompt=(), label=TEXT, response=text, entity=str(i))
