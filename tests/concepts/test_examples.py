"""Rows of any format become the same examples, and each mistake is named with its hint."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retouch.concepts.concept import Example
from retouch.concepts.custom import own_concept, split_rows
from retouch.concepts.examples import COLUMNS, Row, read_examples, read_rows
from retouch.concepts.readers import Batch
from retouch.core.errors import DataError
from retouch.core.types import SPLITS, Message


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def jsonl(path: Path, rows: list[dict[str, object]]) -> Path:
    return write(path, "\n".join(json.dumps(row) for row in rows))


def own(count: int = 10, **more: object) -> list[dict[str, object]]:
    return [
        {"prompt": f"{label} {i}", "label": label, **more}
        for label in ("positive", "negative")
        for i in range(count)
    ]


# Each is (file name, content, what the message must progress: place, fault, hint).
MISTAKES = {
    "unknown column": ("a.csv", "prompt,lable\nhi,positive\n", ["line 1", "`lable`", "`label`?"]),
    "no prompt column": ("a.csv", "label\npositive\n", ["line 1", "no `prompt`", "columns are"]),
    "no label column": ("a.csv", "prompt\nhi\n", ["line 1", "no `label`", "columns are"]),
    "column twice": ("a.csv", "prompt,label,label\nhi,a,b\n", ["line 1", "`label`", "Remove one"]),
    "no label key": ("a.jsonl", '{"prompt": "hi"}', ["line 1", "no `label`", "columns are"]),
    "unknown key": (
        "a.jsonl",
        '{"prompt": "hi", "label": "retain", "respons": "x"}',
        ["line 1", "`respons`", "Did you mean `response`?"],
    ),
    "key twice": (
        "a.jsonl",
        '{"prompt": "hi", "label": "retain", "label": "positive"}',
        ["line 1", "column `label`", "twice", "Remove one"],
    ),
    "empty prompt": (
        "a.csv",
        'prompt,label\n"two\nlines",positive\n\n" ",negative\n',
        ["line 5", "column `prompt`", "empty", "remove the row"],
    ),
    "empty label": ("a.csv", "prompt,label\nhi,\n", ["line 2", "column `label`", "Give every row"]),
    "unknown label": (
        "a.csv",
        'prompt,label\n"a\r\nb\nc",positive\nhi,postive\n',
        ["line 5", "column `label`", "`postive`", "Did you mean `positive`?", "`retain`"],
    ),
    "bad JSON": (
        "a.jsonl",
        '{"prompt": "a", "label": "retain"}\n{"prompt": "b" "label": "retain"}\n',
        ["line 2, column 16", "not JSON", "one object a line"],
    ),
    "a JSON array": ("a.jsonl", '["hi"]', ["line 1", "a list", "one object a line"]),
    "not UTF-8": (
        "a.csv",
        b"prompt,label\nhi,positive\ncaf\xe9,negative\n",
        ["line 3", "0xe9", "Save the file as UTF-8"],
    ),
    "empty file": ("a.csv", "", ["is empty", "`prompt`"]),
    "header only": ("a.csv", "prompt,label\n", ["holds no rows", "`prompt`"]),
    "duplicate": (
        "a.csv",
        "prompt,label\nhi,positive\nho,positive\nhi,positive\n",
        ["line 4", "same prompt and label as line 2", "Remove one"],
    ),
    "a pair's side twice": (
        "a.csv",
        "prompt,label,pair\na,positive,p\nb,negative,p\nc,positive,p\n",
        ["line 4", "column `pair`", "`p`", "in line 2", "pair of their own"],
    ),
    "unknown role": (
        "a.jsonl",
        '{"prompt": [{"role": "usr", "content": "hi"}], "label": "retain"}',
        ["line 1", "column `prompt`", "`usr`", "Did you mean `user`?", "`assistant`"],
    ),
    "the assistant's turn last": (
        "a.jsonl",
        '{"prompt": [{"role": "assistant", "content": "hi"}], "label": "retain"}',
        ["line 1", "column `prompt`", "not the user's", "Move a response to `response`"],
    ),
    "a turn with more": (
        "a.jsonl",
        '{"prompt": [{"role": "user", "content": "hi", "name": "x"}], "label": "retain"}',
        ["line 1", "column `prompt`", "Write turns as"],
    ),
    "a number": (
        "a.jsonl",
        '{"prompt": "hi", "label": "retain", "pair": 7}',
        ["line 1", "column `pair`", "the number 7", 'quotation marks: "7"'],
    ),
    "an empty phrase": (
        "a.csv",
        "prompt,label,accept\nhi,retain,a|\n",
        ["line 2", "column `accept`", "Remove it"],
    ),
    "half a surrogate pair": (
        "a.jsonl",
        r'{"prompt": "\ud83d", "label": "retain"}',
        ["line 1", "column `prompt`", "the character itself"],
    ),
    "ragged, too many": (
        "a.csv",
        "prompt,label\nhi, there,positive\n",
        ["line 2", "3 points", "has 2", "in quotation marks"],
    ),
    "ragged, too few": ("a.csv", "prompt,label\nhi\n", ["line 2", "1 points", "empty ones too"]),
    "open quotation mark": (
        "a.csv",
        'prompt,label\nhi,positive\n"hi,negative\n',
        ["line 3", "not CSV", "Close every quotation mark"],
    ),
    "semicolons": ("a.csv", "prompt;label\nhi;positive\n", ["line 1", "semicolons", "commas"]),
    "tabs": ("a.csv", "prompt\tlabel\nhi\tpositive\n", ["line 1", "tabs", "commas"]),
    "unknown split": (
        "a.csv",
        "prompt,label,split\nhi,positive,valid\n",
        ["line 2", "column `split`", "`valid`", "Did you mean `validation`?"],
    ),
    "some without a split": (
        "a.csv",
        "prompt,label,split\nhi,positive,train\nho,positive,\n",
        ["line 3", "column `split`", "in every row"],
    ),
    "some without the key": (
        "a.jsonl",
        '{"prompt": "a", "label": "retain", "split": "test"}\n{"prompt": "b", "label": "retain"}',
        ["line 2", "no split", "in every row or in none"],
    ),
    "no format": ("a.xlsx", "x", ["`.xlsx`", "CSV UTF-8"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named_with_file_line_and_mend(tmp_path: Path, name: str) -> None:
    file, content, said = MISTAKES[name]
    path = write(tmp_path / file, content)
    with pytest.raises(DataError) as inputs:
        read_rows(path, own=True)
    for part in [str(path), *said]:
        assert part in str(inputs.value)
    assert inputs.value.hint


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file .*gone\.csv"):
        read_rows(tmp_path / "gone.csv")


def test_a_pack_has_labels_of_its_own_and_no_column_split(tmp_path: Path) -> None:
    assert read_examples(jsonl(tmp_path / "a.jsonl", [{"prompt": "x", "label": "attack"}]))
    with pytest.raises(DataError, match="unknown column `split`"):
        read_examples(
            jsonl(tmp_path / "b.jsonl", [{"prompt": "x", "label": "a", "split": "train"}])
        )


def test_a_byte_order_mark_blank_lines_and_blank_rows_are_let_pass(tmp_path: Path) -> None:
    text = "prompt, label\r\n\r\nhi, positive \r\n,\r\n"
    (example,) = read_examples(write(tmp_path / "a.csv", b"\xef\xbb\xbf" + text.encode()))
    assert example == Example((Message("user", "hi"),), "positive")


def test_json_text_may_hold_line_separators(tmp_path: Path) -> None:
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
    assert [row.accept for row in read_examples(rows)] == [("b", " c"), ("b|c",)]
    table = write(tmp_path / "a.csv", "prompt,label,accept\na,x,b | c\n")
    assert read_examples(table)[0].accept == ("b", "c")


def test_parquet_without_pyarrow_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"retouch\[parquet\]"):
        read_rows(write(tmp_path / "a.parquet", b"PAR1"))


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
    with pytest.raises(DataError, match="row 1, column `label`: this is the number 3"):
        read_rows(table)
    with pytest.raises(DataError, match="is not Parquet"):
        read_rows(write(table, b"no"))


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
word = st.text("abcdef", max_size=4)
rows_of_text = st.lists(
    st.fixed_dictionaries(
        {
            "prompt": text.filter(str.strip),
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
def test_csv_and_jsonl_load_to_equal_examples(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, object]]
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    table = folder / "a.csv"
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for row in rows:
            writer.writerow({**row, "accept": "|".join(row["accept"])})
    read = read_examples(table)
    assert read == read_examples(jsonl(folder / "a.jsonl", rows))
    assert [example.prompt[0].content for example in read] == [row["prompt"] for row in rows]
    assert [example.accept for example in read] == [tuple(row["accept"]) for row in rows]


def rows_from(keys: list[tuple[str, str | None, str]]) -> list[Row]:
    return [
        Row(
            Example((Message("user", f"{i}"),), label, pair=pair, entity=entity),
            Batch("a.csv", i),
        )
        for i, (label, pair, entity) in enumerate(keys)
    ]


keys = st.tuples(
    st.sampled_from(["positive", "negative"]),
    st.one_of(st.none(), st.sampled_from("pqrstu")),
    st.sampled_from(["", "a", "b", "c", "d", "e"]),
)


@given(st.lists(keys, max_size=30), st.randoms())
def test_splits_are_stable_whole_and_disjoint(
    drawn: list[tuple[str, str | None, str]], random: object
) -> None:
    rows = rows_from(drawn)
    parted = split_rows(rows)
    assert sum(map(len, parted.values())) == len(rows)
    for kind in ("pair", "entity"):
        homes = [{getattr(row, kind) for row in parted[split]} - {None, ""} for split in SPLITS]
        assert sum(map(len, homes)) == len(set().union(*homes))
    shuffled = list(rows)
    random.shuffle(shuffled)
    again = split_rows(shuffled)
    assert {s: set(parted[s]) for s in SPLITS} == {s: set(again[s]) for s in SPLITS}


def test_sixty_twenty_twenty_of_each_label(tmp_path: Path) -> None:
    concept = own_concept(jsonl(tmp_path / "mine.jsonl", own(10)))
    assert [len(concept.select(split, ["positive"])) for split in SPLITS] == [6, 2, 2]
    assert [len(concept.select(split, ["negative"])) for split in SPLITS] == [6, 2, 2]


def test_a_column_split_is_followed(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"{label} {split}", "label": label, "split": split}
        for label in ("positive", "negative")
        for split in SPLITS
    ]
    concept = own_concept(jsonl(tmp_path / "mine.jsonl", rows))
    for split in SPLITS:
        assert {row.prompt[0].content.split()[1] for row in concept.examples[split]} == {split}


def test_what_an_own_file_becomes(tmp_path: Path) -> None:
    concept = own_concept(jsonl(tmp_path / "mine.jsonl", own(10)))
    assert concept.name == "mine"
    assert concept.directions["raise"].source == concept.directions["lower"].target == ("negative",)
    assert concept.directions["raise"].target == concept.directions["lower"].source == ("positive",)
    assert concept.directions["raise"].hold == ("capability",)
    assert {metric.suite for metric in concept.metrics} == {"mine"}
    assert "correct" not in {metric.scorer for metric in concept.metrics}
    scored = own_concept(jsonl(tmp_path / "scored.jsonl", own(10, accept=["yes"])))
    assert "correct" in {metric.scorer for metric in scored.metrics}
    kept = own(10) + [{"prompt": f"r {i}", "label": "retain"} for i in range(10)]
    assert own_concept(jsonl(tmp_path / "kept.jsonl", kept)).directions["lower"].hold == ("retain",)


def test_a_pair_may_have_one_side_only(tmp_path: Path) -> None:
    rows = [{**row, "pair": f"{i}"} for i, row in enumerate(own(10))]
    assert own_concept(jsonl(tmp_path / "mine.jsonl", rows))


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (own()[:10], ["no `negative` rows", "at least 10 rows labelled `negative`"]),
        (own()[10:], ["no `positive` rows", "at least 10 rows labelled `positive`"]),
        ([{"prompt": "a", "label": "retain"}], ["no `positive` rows", "of each"]),
        (own(1), ["the 1 `negative` rows leave validation none", "at least 10 rows of each label"]),
        (own(20, entity="one"), ["20 `negative` rows leave", "10 entities or pairs"]),
        (own(9, split="test"), ["no `negative` row has the split `train`", "of the 9"]),
        (own(9, split="train"), ["has the split `validation`", "remove the column `split`"]),
    ],
)
def test_a_set_that_cannot_be_contrasted_says_what_it_needs(
    tmp_path: Path, rows: list[dict[str, object]], said: list[str]
) -> None:
    path = jsonl(tmp_path / "mine.jsonl", rows)
    with pytest.raises(DataError) as inputs:
        own_concept(path)
    for part in [str(path), *said]:
        assert part in str(inputs.value)
