"""The file of a suite: where the rows of an evaluation set are, and how they become a metric.

A suite is a YAML file. This one measures how many harmful requests a model refuses:

    name: advbench
    title: AdvBench, harmful behaviours
    url: https://arxiv.org/abs/2307.15043
    licence: MIT
    sources:
      - {file: harmful_behaviors.csv}
      - {dataset: walledai/AdvBench, split: train}
    prompt: "{goal|prompt}"
    scorers: [refusal, degenerate]
    better: higher

A text such as `prompt` has slots: `{goal}` is the row's column of this name, `{goal|prompt}` the
first of several that the row has, `{choices.0}` an element of a list or an entry of a mapping. The
case, spaces, hyphens and underscores of a column's name do not matter.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator

from retouch.core.config_file import read_config_file
from retouch.core.errors import DataError, choices
from retouch.core.strict_model import StrictModel
from retouch.core.types import Better

SLOT = "[INSERT PROMPT HERE]"

Value = str | int | float | bool


class Part(StrictModel):
    """A part of a suite's file."""


class Source(Part):
    """Where rows are: a file of the data folder, or a dataset of the hub.

    Attributes:
        file: name of a CSV, JSONL or Parquet file in the data folder.
        dataset: hub id, or a local folder that `datasets` reads.
        config: configuration of the dataset.
        split: split of the dataset.
        revision: branch, tag or commit of the dataset.
        where: values that a row must have to be used: of each column one, or one of a list.
        prompt: the prompt of these rows, where it is not the suite's.
        system: the system turn of these rows, where it is not the suite's.
    """

    file: str = ""
    dataset: str = ""
    config: str | None = None
    split: str = "test"
    revision: str | None = None
    where: dict[str, Value | tuple[Value, ...]] = Field({})
    prompt: str | None = None
    system: str | None = None

    @field_validator("file")
    @classmethod
    def _inside(cls, file: str) -> str:
        # A suite's file may come from elsewhere: it reads nothing outside the data folder.
        path = PurePosixPath(file)
        if path.is_absolute() or ".." in path.parts or "\\" in file:
            raise ValueError(f"must be a file within the data folder, got {file!r}")
        return file

    def model_post_init(self, _: Any) -> None:
        """Check that it has either a file or a dataset."""
        if bool(self.file) == bool(self.dataset):
            raise ValueError("a source has a `file` or a `dataset`")

    def __str__(self) -> str:
        return self.file or "/".join(
            part for part in (self.dataset, self.config, self.split) if part
        )


class Sample(Part):
    """Which rows are used: evenly spaced ones, or a random sample in the order of the file."""

    count: int = Field(ge=1)
    seed: int | None = None


class Templates(Part):
    """Texts that requests are put into, such as jailbreaks, each in the place of `slot`."""

    sources: tuple[Source, ...] = Field(min_length=1)
    template: str = "{template}"
    slot: str = SLOT


class SuiteFile(Part):
    """What all suites have.

    Attributes:
        name: in tables and files.
        title: one line.
        url: of the paper or the repository that published the set.
        licence: of the data.
        sources: where the rows are; the first that is at hand is used.
        explode: columns of lists whose elements become rows of their own.
        sample: which rows are used (default: all); of several samples each is taken of the one
            before, so that a small set is part of a large one.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    title: str
    url: str
    licence: str
    sources: tuple[Source, ...] = Field(min_length=1)
    explode: tuple[str, ...] = ()
    sample: tuple[Sample, ...] = ()

    @field_validator("sample", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return (value,) if isinstance(value, dict) else value


class RequestSuite(SuiteFile):
    """Requests that the model responds to.

    Attributes:
        prompt: the user's turn.
        system: the system turn.
        prefill: the beginning of the response that is given.
        accept: what a correct response contains, for the scorers `correct` and `final_number`.
        group: what rows are grouped by in samples, such as a category.
        templates: texts that every request is put into.
        scorers: scorers of the responses; each is a metric of the suite.
        better: which way is better for the first of them; of the others, lower values are.
        max_new_tokens: maximum length of a response, in tokens, where the set needs its own.
    """

    kind: Literal["requests"] = "requests"
    prompt: str
    system: str = ""
    prefill: str = ""
    accept: str = ""
    group: str = ""
    templates: tuple[Templates, ...] = ()
    scorers: tuple[str, ...] = Field(("refusal", "degenerate"), min_length=1)
    better: Better
    max_new_tokens: int | None = Field(None, ge=1)


class ChoiceSet(Part):
    """The choices of a question.

    Attributes:
        choices: the texts, the same for every row; or the column of their list.
        correct: the column that tells the correct ones: a list of 0 and 1 for each choice, the
            index of one, or its text.
        scorer: `mc1`, whether the likeliest choice is correct; or `mc2`, the probability of the
            correct ones.
    """

    choices: str | tuple[str, ...]
    correct: str
    scorer: Literal["mc1", "mc2"] = "mc1"


class ChoiceSuite(SuiteFile):
    """Questions with choices, of which the model finds one likeliest; metrics by name."""

    kind: Literal["choices"]
    prompt: str
    system: str = ""
    metrics: dict[str, ChoiceSet] = Field(min_length=1)


class PairSuite(SuiteFile):
    """Pairs of texts that differ in a group of people: how often the stereotype is likelier.

    Attributes:
        more: the stereotypical text; with `side`, the value of that column in its row.
        less: the other text, or value.
        text: the text of a row, where the two texts of a pair are rows of their own.
        side: the column that tells them apart.
        pair: what the two rows of a pair have in common.
        group: what pairs are grouped by in samples.
    """

    kind: Literal["pairs"]
    more: str
    less: str
    text: str = ""
    side: str = ""
    pair: str = ""
    group: str = ""

    def model_post_init(self, _: Any) -> None:
        """Check that `text`, `side` and `pair` come together."""
        if len({bool(self.text), bool(self.side), bool(self.pair)}) > 1:
            raise ValueError("`text`, `side` and `pair` come together")


class TextSuite(SuiteFile):
    """Running text, whose perplexity is measured.

    Attributes:
        text: the text of a row.
        passage: rows are joined by line ends into passages of at least this many characters.
    """

    kind: Literal["text"]
    text: str
    passage: int = Field(2000, ge=1)


Suite = RequestSuite | ChoiceSuite | PairSuite | TextSuite

KINDS: dict[str, type[Suite]] = {
    "requests": RequestSuite,
    "choices": ChoiceSuite,
    "pairs": PairSuite,
    "text": TextSuite,
}


def read_suite(file: Any) -> Suite:
    """Read a suite's file.

    Args:
        file: a path, or a file of the package.

    Raises:
        DataError: it is missing or wrong; names the key.
    """
    hint = "Give a built-in suite, or the path of a YAML file."
    values = read_config_file(file, DataError, "yaml-syntax", hint)
    kind = values.get("kind", "requests")
    if not isinstance(kind, str) or kind not in KINDS:
        message = f"{file}, key `kind`: unknown kind {kind!r}."
        raise DataError(message, choices(str(kind), "kinds", KINDS), code="value-invalid")
    try:
        return KINDS[kind].model_validate(values)
    except ValidationError as error:
        raise _invalid(file, KINDS[kind], error) from None


def _invalid(file: Any, model: type[Suite], error: ValidationError) -> DataError:
    """The first problem of a suite's file, an unknown key first: others often follow from it."""
    problems = error.errors()
    problem = next((one for one in problems if one["type"] == "extra_forbidden"), problems[0])
    path = [str(part) for part in problem["loc"]]
    where = f"{file}, key `{'.'.join(path)}`:" if path else f"{file}:"
    if problem["type"] == "extra_forbidden":
        hint = choices(path[-1], "keys", model.model_fields) if len(path) == 1 else "Remove it."
        return DataError(f"{where} unknown key `{path[-1]}`.", hint, code="key-unknown")
    if problem["type"] == "missing":
        return DataError(f"{where} it is missing.", "Add it.", code="key-missing")
    text = problem["msg"].removeprefix("Value error, ")
    if text == problem["msg"]:
        text = f"{text}, got {problem['input']!r}"
    return DataError(f"{where} {text}.", "Correct the value.", code="value-invalid")
