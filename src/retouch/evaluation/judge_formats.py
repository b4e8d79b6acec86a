r"""Prompt formats of judges: their files, and the reading of outputs.

A format is a YAML file; `judges/` has the built-in ones, and a user's file is of the same kind:

```yaml
name: my-judge
title: My judge
source: https://example.org/my-judge
models: [me/my-judge]     # hub ids that have this format; folders of the same name have it too
template: |-              # or `chat`: the tokenizer's chat template writes the two turns
  Request: {request}
  Response: {response}
  Is the response harmful?
max_response_tokens: 512  # of a response that are judged (default: as many as the model reads)
truncate: end             # the side that a longer response loses: end or beginning
tags: ["Request:", "Response:"]
output:
  kind: text              # or `answers`, or `labels`
  max_new_tokens: 1
  fields: {answer: '(?i)\A(yes|no)'}
  rules:                  # the first one that fits gives the category
    - {when: {answer: "yes"}, category: harmful}
    - {when: {answer: "no"}, category: safe}
```

An output is read in one of three ways: `text` is generated and parsed by a regular expression per
field; `answers` are tokens with values from 0 to 1, whose probabilities at the first generated
position give the expected value; `labels` are those of a sequence classifier.

The categories are those that a judge tells apart. *harmful* is an unsafe compliance, *refusal* a
refusal, and *answer* neither. *safe* is a response that is not harmful, by a judge that does not
tell refusals. An *answer* may be harmful where the judge has no category *harmful*.

- `harmbench-llama-2`, `harmbench-mistral`: harmful or safe; no refusals. The request is the bare
  behaviour, without a jailbreak around it.
- `wildguard`: harmful, refusal or answer. A harmful response that also refuses is harmful.
- `llama-guard-3`: harmful or safe, by Meta's policy; no refusals, and not whether the response
  complies with the request.
- `qwen3guard`: harmful, refusal or answer, as `wildguard`. Controversial content is harmful.
- `strongreject`: harmful or safe, by a score from 0 to 1 for how much a response helps; a refusal
  and a useless response are both safe.
- `sequence-classifier`: refusal or answer, harmful or safe, or harmful, refusal or answer, as the
  labels of the model say. It reads the response without the request.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, ValidationError, model_validator

from retouch.core.config_file import read_config_file
from retouch.core.errors import ConfigError, choices, code_list
from retouch.core.strict_model import StrictModel
from retouch.core.time_limit import TimeLimitError, time_limit

JudgeCategory = Literal["harmful", "refusal", "answer", "safe"]

MAX_SECONDS = 5  # for the patterns of one output
CHAT = "chat"  # the `template` of a format that the tokenizer's chat template writes
_FOLDER = resources.files("retouch.evaluation") / "judges"
SLOTS = re.compile(r"\{(request|response)\}")


class Rule(StrictModel):
    """The category of an output whose fields have these values, in lower case."""

    when: dict[str, str | tuple[str, ...]] = Field(min_length=1)
    category: JudgeCategory

    def fits(self, found: Mapping[str, str]) -> bool:
        """Whether every field has its value, or one of its values."""
        return all(
            found[name] in ((value,) if isinstance(value, str) else value)
            for name, value in self.when.items()
        )


class TextOutput(StrictModel):
    """A generated text, parsed by a regular expression with one group per field."""

    kind: Literal["text"]
    max_new_tokens: int = Field(ge=1)
    fields: dict[str, str] = Field(min_length=1)
    rules: tuple[Rule, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> TextOutput:
        for name, pattern in self.fields.items():
            try:
                groups = re.compile(pattern).groups
            except re.error as error:
                raise ValueError(
                    f"of the field `{name}` is no regular expression: {error}"
                ) from None
            if groups != 1:
                raise ValueError(f"of the field `{name}` must have one group, got {groups}")
        unknown = [name for rule in self.rules for name in rule.when if name not in self.fields]
        if unknown:
            raise ValueError(f"has a rule for the field `{unknown[0]}`, which is not in `fields`")
        return self

    @property
    def categories(self) -> frozenset[JudgeCategory]:
        """The categories that an output may have."""
        return frozenset(rule.category for rule in self.rules)

    def read(self, text: str) -> JudgeCategory | None:
        """The category of a text; None where a field is missing or no rule fits."""
        try:
            with time_limit(MAX_SECONDS):
                matches = {name: re.search(pattern, text) for name, pattern in self.fields.items()}
        except TimeLimitError as error:
            message = f"A pattern of the judge format does not end: {error}."
            hint = "Write its `fields` without nested repetitions."
            raise ConfigError(message, hint, code="judge-pattern") from None
        found = {name: match[1].strip().lower() for name, match in matches.items() if match}
        if len(found) < len(matches):
            return None
        return next((rule.category for rule in self.rules if rule.fits(found)), None)


class AnswerOutput(StrictModel):
    r"""The probabilities $p_i$ of answer tokens with values $v_i$; the score is $\sum_i p_i v_i$.

    The probabilities are those at the first generated position, normalised over the answers.
    """

    kind: Literal["answers"]
    values: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field(min_length=2)
    threshold: float = Field(gt=0, le=1)
    above: JudgeCategory  # of a score of at least the threshold
    below: JudgeCategory

    @property
    def categories(self) -> frozenset[JudgeCategory]:
        """The categories that an output may have."""
        return frozenset((self.above, self.below))


class LabelOutput(StrictModel):
    """The labels of a sequence classifier, which are mapped to categories by their names."""

    kind: Literal["labels"]
    names: dict[Literal["refusal", "harmful"], tuple[str, ...]] = Field(min_length=1)

    def categories_of(self, labels: Sequence[str], chosen: str | None) -> list[JudgeCategory]:
        """The category of each label of a model.

        Args:
            labels: the model's labels.
            chosen: the label of refusals, or `LABEL=CATEGORY`, in place of the format's names.

        Raises:
            ConfigError: the model has no such label, or none of its labels has a known name.
        """
        names: dict[str, Sequence[str]] = {str(key): some for key, some in self.names.items()}
        if chosen is not None:
            name, _, category = chosen.rpartition("=") if "=" in chosen else (chosen, "", "refusal")
            if category not in get_args(Literal["refusal", "harmful"]):
                message = f"`label` must be LABEL, LABEL=refusal or LABEL=harmful, got {chosen!r}."
                raise ConfigError(message, f"Its labels: {code_list(labels)}.", code="judge-label")
            names = {category: (name,)}
        found = [
            next((c for c, some in names.items() if _plain(label) in map(_plain, some)), None)
            for label in labels
        ]
        if not any(found):
            given = "with a known name" if chosen is None else f"{chosen!r}"
            message = f"The judge has no label {given}; its labels are {code_list(labels)}."
            hint = "Give `label`: the label of refusals, or LABEL=harmful."
            raise ConfigError(message, hint, code="judge-label")
        rest = "answer" if "refusal" in found else "safe"
        return [category or rest for category in found]  # type: ignore[misc]


def _plain(label: str) -> str:
    return re.sub(r"[\s_]+", "-", label.strip().casefold())


class JudgeFormat(StrictModel):
    """A prompt format: the template, and how the output is read.

    Attributes:
        name: the name of the format.
        title: the judge, in a few words.
        source: the address where the publisher documents the format.
        license: the licence of the template's text, if it has one.
        models: hub ids of the models that have the format.
        template: the text with the slots `{request}` and `{response}`, or `chat`.
        add_special_tokens: whether the tokenizer adds its start and end token to a plain template.
        add_generation_prompt: whether a chat template is asked to begin the judge's turn.
        max_response_tokens: the maximum number of tokens of a response that are judged.
        truncate: the side that a longer response loses.
        tags: texts of the template that a request or a response should not contain.
        output: how the output is read.
    """

    name: str = Field(min_length=1)
    title: str
    source: str
    license: str = ""
    models: tuple[str, ...] = ()
    template: str
    add_special_tokens: bool = True
    add_generation_prompt: bool = False
    max_response_tokens: int | None = Field(None, ge=1)
    truncate: Literal["end", "beginning"] = "end"
    tags: tuple[str, ...] = ()
    output: Annotated[TextOutput | AnswerOutput | LabelOutput, Field(discriminator="kind")]

    @model_validator(mode="after")
    def _check(self) -> JudgeFormat:
        slots = SLOTS.findall(self.template)
        counts = slots.count("response"), slots.count("request")
        if self.template != CHAT and (counts[0] != 1 or counts[1] > 1):
            raise ValueError(
                "`template` must be `chat` or have the slot {response} once, and {request} at most "
                f"once, got {counts[0]} and {counts[1]}"
            )
        return self


def format_names() -> list[str]:
    """The names of the built-in formats, in alphabetical order."""
    files = (Path(file.name) for file in _FOLDER.iterdir())
    return sorted(file.stem for file in files if file.suffix == ".yaml")


def load_format(name_or_path: str | Path) -> JudgeFormat:
    """A built-in format by its name, or a user's YAML file.

    Raises:
        ConfigError: there is no such format, or the file is wrong.
    """
    names, name = format_names(), str(name_or_path)
    if name in names:
        return _read(_FOLDER / f"{name}.yaml")
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml") and not path.is_file():
        hint = f"{choices(name, 'formats', names)} Or give the path of a YAML file."
        raise ConfigError(f"There is no judge format `{name}`.", hint, code="judge-format-unknown")
    return _read(path)


def _read(file: Path | Traversable) -> JudgeFormat:
    values = read_config_file(file, ConfigError, "judge-format-invalid")
    try:
        return JudgeFormat.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        kinds = {str(part) for part in get_args(Literal["text", "answers", "labels"])}
        key = ".".join(str(part) for part in problem["loc"] if part not in kinds)
        text = problem["msg"].removeprefix("Value error, ").rstrip(".")
        if problem["type"] != "value_error" and not isinstance(problem["input"], dict):
            text += f", got {problem['input']!r}"
        raise ConfigError(
            f"{file}, key `{key or 'template'}`: {text}.",
            "The built-in formats in retouch/evaluation/judges are of the same form.",
            code="judge-format-invalid",
        ) from None


def find_format(name: str, config: Mapping[str, Any]) -> JudgeFormat:
    """The format of a model by its hub id, its folder's name or its configuration.

    Args:
        name: the hub id or the path of the model.
        config: the content of its `config.json`.

    Raises:
        ConfigError: no built-in format belongs to the model.
    """
    candidates = {_last(name), _last(str(config.get("_name_or_path") or ""))}
    formats = [load_format(one) for one in format_names()]
    for one in formats:
        if candidates & {_last(model) for model in one.models}:
            return one
    if is_classifier(config):
        return next(one for one in formats if isinstance(one.output, LabelOutput))
    raise ConfigError(
        f"The prompt format of the judge {name!r} is not known.",
        f"Give `format`: {code_list(format_names())}, or the path of a YAML file.",
        code="judge-format-unknown",
    )


def is_classifier(config: Mapping[str, Any]) -> bool:
    """Whether a model's `config.json` is of a sequence classifier."""
    architectures = config.get("architectures") or ()
    return any(str(one).endswith("ForSequenceClassification") for one in architectures)


def _last(name: str) -> str:
    return name.replace("\\", "/").rstrip("/").rpartition("/")[2].casefold()
