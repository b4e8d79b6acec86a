"""The files of suites: the built-in ones are complete, and a wrong one is an error with its key."""

from __future__ import annotations

from importlib import resources
from pathlib import PurePosixPath
from typing import Any

import pytest
import yaml

from retouch.core.errors import DataError
from retouch.evaluation.scorers import scorer_names
from retouch.suites.registry import load_suite, suite_names
from retouch.suites.suite import Source, Suite

SOURCES = "sources: [{file: data.jsonl}]\n"
REQUESTS = f'{SOURCES}prompt: "{{q}}"\nbetter: lower\n'
CHOICES = f'{SOURCES}kind: choices\nprompt: "{{q}}"\n'


def sources(suite: Suite) -> list[Source]:
    """All sources of a suite, those of its templates included."""
    templates = getattr(suite, "templates", ())
    return [*suite.sources, *(one for each in templates for one in each.sources)]


@pytest.mark.parametrize("name", suite_names())
def test_a_built_in_suite_is_a_short_file_with_its_origin_and_licence(name: str) -> None:
    text = (resources.files("retouch.suites") / "data" / f"{name}.yaml").read_text("utf-8")
    assert sum(not line.lstrip().startswith("#") for line in text.splitlines()) <= 16
    suite = load_suite(name)
    assert suite.name == name
    assert suite.title
    assert suite.licence
    assert suite.url.startswith("https://")
    for source in sources(suite):
        assert not source.file or PurePosixPath(source.file).name == source.file
    assert set(yaml.safe_load(text).get("scorers", ())) <= set(scorer_names())


def test_an_unknown_suite_is_an_error_that_suggests_the_near_one() -> None:
    with pytest.raises(DataError, match="`advbenhc`") as error:
        load_suite("advbenhc")
    assert error.value.code == "suite-unknown"
    assert "`advbench`?" in error.value.hint
    assert "`xstest-safe`" in error.value.hint


def test_a_missing_file_is_an_error(tmp_path: Any) -> None:
    with pytest.raises(DataError, match=r"none\.yaml") as error:
        load_suite(tmp_path / "none.yaml")
    assert error.value.code == "file-missing"


def test_a_users_file_needs_ten_lines(folder: Any) -> None:
    suite = load_suite(folder.suite(REQUESTS))
    assert (suite.name, suite.kind) == ("mine", "requests")
    assert [source.file for source in suite.sources] == ["data.jsonl"]


NAMES = {"parent": "../mine", "folder": "a/b", "backslash": '"a\\\\b"', "upper": "Mine"}
NAMES |= {"empty": '""', "line-end": '"a\\n"', "hidden": ".mine", "number": "3"}

WRONG = {
    # Files outside the data folder.
    "absolute": (REQUESTS.replace("data", "/etc/data"), "value-invalid", "`sources.0.file`"),
    "parent": (REQUESTS.replace("data", "../data"), "value-invalid", "`sources.0.file`"),
    "parent inside": (REQUESTS.replace("data", "a/../../b"), "value-invalid", "`sources.0.file`"),
    "backslash": (REQUESTS.replace("data", "..\\data"), "value-invalid", "`sources.0.file`"),
    "template file": (
        f"{REQUESTS}templates: [{{sources: [{{file: ../t.jsonl}}]}}]\n",
        "value-invalid",
        "`templates.0.sources.0.file`",
    ),
    # Sources.
    "two places": (
        REQUESTS.replace("file: data.jsonl", "file: a.csv, dataset: b"),
        "value-invalid",
        "`sources.0`",
    ),
    "no place": (REQUESTS.replace("file: data.jsonl", "split: a"), "value-invalid", "`sources.0`"),
    "no sources": (REQUESTS.replace("{file: data.jsonl}", ""), "value-invalid", "`sources`"),
    "without sources": (REQUESTS.removeprefix(SOURCES), "key-missing", "`sources`"),
    "source's key": (REQUESTS.replace("file:", "fil:"), "key-unknown", "`sources.0.fil`"),
    # Keys and values.
    "near key": (f"{REQUESTS}scorrers: [refusal]\n", "key-unknown", "`scorers`?"),
    "near a missing key": (REQUESTS.replace("prompt", "promt"), "key-unknown", "`prompt`?"),
    "key of another kind": (f"{REQUESTS}text: x\n", "key-unknown", "`text`"),
    "a kind's name": (f"{REQUESTS}choices: x\n", "key-unknown", "`choices`"),
    "missing key": (f'{SOURCES}prompt: "{{q}}"\n', "key-missing", "`better`"),
    "better": (REQUESTS.replace("lower", "smaller"), "value-invalid", "`better`"),
    "no scorers": (f"{REQUESTS}scorers: []\n", "value-invalid", "`scorers`"),
    "no tokens": (f"{REQUESTS}max_new_tokens: 0\n", "value-invalid", "`max_new_tokens`"),
    "no rows": (f"{REQUESTS}sample: {{count: 0}}\n", "value-invalid", "count`"),
    "no rows of rows": (f"{REQUESTS}sample: [{{count: 0}}]\n", "value-invalid", "count`"),
    "number as key": (f"{REQUESTS}1: x\n", "yaml-syntax", "`1`"),
    "number as title": (f"{REQUESTS}title: 2026\n", "value-invalid", "`title`"),
    # Kinds.
    "near kind": (f"{REQUESTS}kind: request\n", "value-invalid", "`requests`?"),
    "list as kind": (f"{REQUESTS}kind: [requests]\n", "value-invalid", "`kind`"),
    "no text": (f"{SOURCES}kind: text\n", "key-missing", "`text`"),
    "no metrics": (f"{CHOICES}metrics: {{}}\n", "value-invalid", "`metrics`"),
    "without metrics": (CHOICES, "key-missing", "`metrics`"),
    "no choices": (
        f"{CHOICES}metrics: {{a: {{correct: c}}}}\n",
        "key-missing",
        "`metrics.a.choices`",
    ),
    "scorer of choices": (
        f"{CHOICES}metrics: {{a: {{correct: c, choices: d, scorer: refusal}}}}\n",
        "value-invalid",
        "`metrics.a.scorer`",
    ),
    "half a pair": (f"{SOURCES}kind: pairs\nmore: a\nless: b\nside: c\n", "value-invalid", "pair"),
    # A name is a part of file names.
    **{
        f"{kind} in the name": (f"{REQUESTS}name: {name}\n", "value-invalid", "`name`")
        for kind, name in NAMES.items()
    },
    # YAML that does not parse, or not safely.
    "unclosed": ("sources: [", "yaml-syntax", "YAML"),
    "tag": (f"{REQUESTS}system: !!python/name:os.system\n", "yaml-syntax", "python/name"),
    "deep": (f"{REQUESTS}system: {'[' * 3000}{']' * 3000}\n", "yaml-syntax", "YAML"),
    "twice": (f"{REQUESTS}system: a\nsystem: b\n", "yaml-syntax", "`system` appears twice"),
}


@pytest.mark.parametrize(("text", "code", "part"), WRONG.values(), ids=WRONG)
def test_a_wrong_file_is_an_error_with_its_key(
    folder: Any, text: str, code: str, part: str
) -> None:
    # The last of two equal keys is the one that counts in YAML.
    file = folder.suite(text)
    with pytest.raises(DataError) as error:
        load_suite(file)
    assert error.value.code == code
    assert str(file) in error.value.message
    assert part in str(error.value)


@pytest.mark.parametrize("text", ["- a\n", "mine\n", "!!python/object/apply:os.getcwd []\n"])
def test_a_file_that_is_no_mapping_is_an_error(folder: Any, text: str) -> None:
    with pytest.raises(DataError, match=r"mine\.yaml") as error:
        load_suite(folder.write("mine.yaml", text))
    assert error.value.code == "yaml-syntax"


def test_an_empty_file_lacks_its_keys(folder: Any) -> None:
    with pytest.raises(DataError, match="`name`") as error:
        load_suite(folder.write("mine.yaml", ""))
    assert error.value.code == "key-missing"
