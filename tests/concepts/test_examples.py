"""Rows of every format become the same examples; each mistake is reported with its location."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retouch.concepts.concept import Example
from retouch.concepts.example_files import read_examples, read_user_examples
from retouch.concepts.examples import COLUMNS
from retouch.concepts.normalization import is_blank
from retouch.core.errors import DataError
from retouch.core.types import Message


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def jsonl(path: Path, rows: list[dict[str, object]]) -> Path:
    return write(path, "\n".join(json.dumps(row) for row in rows))


# Each is (file name, content, error code, parts of the message: location, value, suggestion).
MISTAKES = {
    "unknown column": (
        "a.csv",
        "prompt,lable\nhi,positive\n",
        "column-missing",
        ["line 1", "`label`", "Is it `lable`?"],
    ),
    "no prompt column": ("a.csv", "label\npositive\n", "column-missing", ["line 1", "`prompt`"]),
    "no label column": ("a.csv", "prompt\nhi\n", "column-missing", ["line 1", "`label`"]),
    "repeated column": (
        "a.csv",
        "prompt,label,label\nhi,a,b\n",
        "column-duplicate",
        ["line 1", "`label`"],
    ),
    "no label key": ("a.jsonl", '{"prompt": "hi"}', "column-missing", ["line 1", "`label`"]),
    "repeated key": (
        "a.jsonl",
        '{"prompt": "hi", "label": "retain", "label": "positive"}',
        "column-duplicate",
        ["line 1", "column `label`"],
    ),
    "empty prompt": (
        "a.csv",
        'prompt,label\n"two\nlines",positive\n\n" ",negative\n',
        "prompt-empty",
        ["line 5", "column `prompt`"],
    ),
    "no turns and no text": (
        "a.jsonl",
        '{"prompt": [], "label": "retain"}',
        "prompt-empty",
        ["line 1", "column `prompt`", "`prefill`"],
    ),
    "empty label": (
        "a.csv",
        "prompt,label\nhi,\n",
        "label-missing",
        ["line 2", "column `label`", "`retain`"],
    ),
    "unknown label": (
        "a.csv",
        'prompt,label\n"a\r\nb\nc",positive\nhi,postive\n',
        "label-unknown",
        ["line 5", "column `label`", "`postive`", "Did you mean `positive`?", "`retain`"],
    ),
    "invalid JSON": (
        "a.jsonl",
        '{"prompt": "a", "label": "retain"}\n{"prompt": "b" "label": "retain"}\n',
        "json-syntax",
        ["line 2, column 16"],
    ),
    "a JSON array": ("a.jsonl", '["hi"]', "json-syntax", ["line 1", "a list"]),
    "deeply nested JSON": ("a.jsonl", "[" * 100_000, "json-syntax", ["line 1"]),
    "not UTF-8": (
        "a.csv",
        b"prompt,label\nhi,positive\ncaf\xe9,negative\n",
        "encoding",
        ["line 3", "0xe9", "UTF-8"],
    ),
    "empty file": ("a.csv", "", "file-empty", ["`prompt`"]),
    "header only": ("a.csv", "prompt,label\n", "file-empty", ["`prompt`"]),
    "repeated example": (
        "a.csv",
        "prompt,label\nhi,positive\nho,positive\nhi,positive\n",
        "example-duplicate",
        ["line 4", "line 2"],
    ),
    "two examples of a pair with one label": (
        "a.csv",
        "prompt,label,pair\na,positive,p\nb,negative,p\nc,positive,p\n",
        "pair-duplicate",
        ["line 4", "column `pair`", "`p`", "line 2"],
    ),
    "unknown role": (
        "a.jsonl",
        '{"prompt": [{"role": "usr", "content": "hi"}], "label": "retain"}',
        "role-unknown",
        ["line 1", "column `prompt`", "`usr`", "Did you mean `user`?", "`assistant`"],
    ),
    "last turn of the assistant": (
        "a.jsonl",
        '{"prompt": [{"role": "assistant", "content": "hi"}], "label": "retain"}',
        "prompt-last-turn",
        ["line 1", "column `prompt`", "assistant", "`response`"],
    ),
    "a turn with another key": (
        "a.jsonl",
        '{"prompt": [{"role": "user", "content": "hi", "name": "x"}], "label": "retain"}',
        "prompt-turn",
        ["line 1", "column `prompt`"],
    ),
    "a number": (
        "a.jsonl",
        '{"prompt": "hi", "label": "retain", "response": 7}',
        "value-type",
        ["line 1", "column `response`", "the number 7", '"7"'],
    ),
    "an empty phrase": (
        "a.csv",
        "prompt,label,accept\nhi,retain,a|\n",
        "accept-empty",
        ["line 2", "column `accept`"],
    ),
    "one choice": (
        "a.csv",
        "prompt,label,choices\nhi,retain,he|he\n",
        "choices-invalid",
        ["line 2", "column `choices`", "`he`"],
    ),
    "half a surrogate pair": (
        "a.jsonl",
        r'{"prompt": "\ud83d", "label": "retain"}',
        "surrogate",
        ["line 1", "column `prompt`"],
    ),
    "too many fields": (
        "a.csv",
        "prompt,label\nhi, there,positive\n",
        "csv-fields",
        ["line 2", "3 fields", "has 2", "quotation marks"],
    ),
    "too few fields": ("a.csv", "prompt,label\nhi\n", "csv-fields", ["line 2", "1 fields"]),
    "open quotation mark": (
        "a.csv",
        'prompt,label\nhi,positive\n"hi,negative\n',
        "csv-syntax",
        ["line 3", "quotation mark"],
    ),
    "unknown split": (
        "a.csv",
        "prompt,label,split\nhi,positive,validate\n",
        "split-unknown",
        ["line 2", "column `split`", "`validate`", "Did you mean `validation`?"],
    ),
    "some without a split": (
        "a.csv",
        "prompt,label,split\nhi,positive,train\nho,positive,\n",
        "split-missing",
        ["line 3", "column `split`"],
    ),
    "some without the key": (
        "a.jsonl",
        '{"prompt": "a", "label": "retain", "split": "test"}\n{"prompt": "b", "label": "retain"}',
        "split-missing",
        ["line 2", "`split`"],
    ),
    "unsupported format": ("a.xlsx", "x", "file-format", ["`.xlsx`", "CSV UTF-8"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_reported_with_its_location_and_a_hint(tmp_path: Path, name: str) -> None:
    file, content, code, parts = MISTAKES[name]
    path = write(tmp_path / file, content)
    with pytest.raises(DataError) as raised:
        read_user_examples(path)
    assert raised.value.code == code
    for part in [str(path), *parts]:
        assert part in str(raised.value)
    assert raised.value.hint


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.csv") as raised:
        read_examples(tmp_path / "gone.csv")
    assert raised.value.code == "file-missing"


def test_a_pack_has_its_own_labels_and_no_column_split(tmp_path: Path) -> None:
    assert read_examples(jsonl(tmp_path / "a.jsonl", [{"prompt": "x", "label": "attack"}]))
    row = {"prompt": "x", "label": "a", "split": "train"}
    with pytest.raises(DataError, match="`split`") as raised:
        read_examples(jsonl(tmp_path / "b.jsonl", [row]))
    assert raised.value.code == "column-unknown"


def test_a_byte_order_mark_blank_lines_and_blank_rows_are_ignored(tmp_path: Path) -> None:
    text = "prompt, label\r\n\r\nhi, positive \r\n,\r\n"
    (example,) = read_examples(write(tmp_path / "a.csv", b"\xef\xbb\xbf" + text.encode()))
    assert example == Example((Message("user", "hi"),), "positive")


def test_json_text_may_contain_line_separators(tmp_path: Path) -> None:
    row = '{"prompt": "a\u2028b", "label": "retain"}'
    (example,) = read_examples(write(tmp_path / "a.jsonl", row))
    assert example.prompt[0].content == "a\u2028b"


def test_a_chat_keeps_its_turns(tmp_path: Path) -> None:
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Bye"},
    ]
    (example,) = read_examples(jsonl(tmp_path / "a.jsonl", [{"prompt": turns, "label": "x"}]))
    assert [(m.role, m.content) for m in example.prompt] == [tuple(t.values()) for t in turns]


def test_accept_is_a_list_a_text_or_separated_by_bars(tmp_path: Path) -> None:
    rows = jsonl(
        tmp_path / "a.jsonl",
        [
            {"prompt": "a", "label": "x", "accept": ["b", " c"]},
            {"prompt": "b", "label": "x", "accept": "b|c"},
        ],
    )
    assert [example.accept for example in read_examples(rows)] == [("b", " c"), ("b|c",)]
    table = write(tmp_path / "a.csv", "prompt,label,accept\na,x,b | c\n")
    assert read_examples(table)[0].accept == ("b", "c")


def test_choices_are_two(tmp_path: Path) -> None:
    rows = jsonl(tmp_path / "a.jsonl", [{"prompt": "a", "label": "x", "choices": ["him", "her"]}])
    assert read_examples(rows)[0].choices == ("him", "her")
    table = write(tmp_path / "a.csv", "prompt,label,choices\na,x,him | her\nb,x,\n")
    assert [one.choices for one in read_examples(table)] == [("him", "her"), ()]


def test_parquet_without_pyarrow_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"retouch\[parquet\]") as raised:
        read_examples(write(tmp_path / "a.parquet", b"PAR1"))
    assert raised.value.code == "library-missing"


def test_parquet_rows_are_those_of_jsonl(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="pyarrow, of the extra `parquet`, is not installed")
    from pyarrow import parquet

    rows = [
        {"prompt": "a", "label": "x", "accept": ["b", "c"], "pair": None},
        {"prompt": "b", "label": "y", "accept": None, "pair": "p"},
    ]
    table = tmp_path / "a.parquet"
    parquet.write_table(pa.Table.from_pylist(rows), table)
    assert read_examples(table) == read_examples(jsonl(tmp_path / "a.jsonl", rows))
    parquet.write_table(pa.Table.from_pylist([{"prompt": "a", "label": 3}]), table)
    with pytest.raises(DataError, match=r"row 1, column `label`: .*the number 3") as raised:
        read_examples(table)
    assert raised.value.code == "value-type"
    with pytest.raises(DataError) as raised:
        read_examples(write(table, b"no"))
    assert raised.value.code == "parquet-syntax"


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
word = st.text("abcdef", max_size=4)
rows_of_text = st.lists(
    st.fixed_dictionaries(
        {
            "prompt": text.filter(lambda one: not is_blank(one)),
            "label": st.sampled_from(["positive", "negative", "other"]),
            "response": text,
            "prefill": text,
            "group": word,
            "entity": text.map(str.strip),
            "accept": st.lists(st.text("abc é,\"'", min_size=1).filter(lambda t: t == t.strip())),
        }
    ),
    min_size=1,
    max_size=6,
    unique_by=lambda row: (row["prompt"], row["label"], row["prefill"]),
)


@given(rows_of_text)
def test_csv_and_jsonl_give_equal_examples(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, object]]
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    table = folder / "a.csv"
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for row in rows:
            writer.writerow({**row, "accept": "|".join(row["accept"])})
    examples = read_examples(table)
    assert examples == read_examples(jsonl(folder / "a.jsonl", rows))
    assert [example.prompt[0].content for example in examples] == [row["prompt"] for row in rows]
    assert [example.accept for example in examples] == [tuple(row["accept"]) for row in rows]
