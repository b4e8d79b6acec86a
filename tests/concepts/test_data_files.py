"""Files as spreadsheets, pandas and `datasets` write them, and contradictions between rows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from retouch.cli.app import app
from retouch.concepts.concept import Concept, Context
from retouch.concepts.example_files import read_user_examples
from retouch.concepts.normalization import is_blank, normalized, without_punctuation
from retouch.concepts.validate import validate
from retouch.core.errors import ConfigError, DataError
from retouch.core.types import SPLITS

LABELS = ("positive", "negative")
ROWS = [(f"{label} {i}, please", label) for label in LABELS for i in range(10)]
RECORDS: list[dict[str, Any]] = [{"prompt": prompt, "label": label} for prompt, label in ROWS]


def save(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    return save(path, "\n".join(json.dumps(row) for row in rows))


def read(path: Path) -> list[tuple[str, str]]:
    examples, _ = read_user_examples(path)
    return [(one.example.last_turn, one.example.label) for one in examples]


def separated(sign: str, *, head: str = "", tail: str = "", index: bool = False) -> str:
    lines = [sign.join(f'"{one}"' for one in row) for row in (("prompt", "label"), *ROWS)]
    if index:
        lines = [f"{'' if i == 0 else i - 1}{sign}{line}" for i, line in enumerate(lines)]
    return head + "\r\n".join(f"{line}{tail}" for line in lines)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", separated(";")),
        ("a.csv", separated("\t")),
        ("a.tsv", separated("\t")),
        ("a.csv", separated(";", head="sep=;\r\n")),
        ("a.csv", separated("|", head="sep=|\r\n")),
        ("a.csv", separated(",", tail=",,")),
        ("a.csv", separated(";", tail=";")),
        ("a.csv", separated(",", index=True)),
        ("a.csv", separated(",", index=True).replace(",", "Unnamed: 0,", 1)),
        ("a.json", json.dumps(RECORDS)),
        ("a.json", json.dumps(RECORDS, indent=2)),
        ("a.json", "\n".join(map(json.dumps, RECORDS))),
    ],
)
def test_a_table_is_read_as_it_was_saved(tmp_path: Path, name: str, text: str) -> None:
    assert read(save(tmp_path / name, text)) == ROWS


def test_an_index_column_is_noted(tmp_path: Path) -> None:
    _, found = read_user_examples(save(tmp_path / "a.csv", separated(",", index=True)))
    assert ["(without a name)" in one.message for one in found] == [True]


def test_a_trailing_comma_hides_no_value(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 2") as raised:
        read(save(tmp_path / "a.csv", "prompt,label,\nhi, there,positive\n"))
    assert raised.value.code == "csv-fields"


def test_lines_are_counted_from_the_first_one_and_in_arrays_too(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 3, column `label`"):
        read(save(tmp_path / "a.csv", "sep=;\nprompt;label\nhi;red\n"))
    rows = [{"prompt": "a", "label": "retain"}, {"prompt": "b", "label": "red"}]
    array = save(tmp_path / "a.json", "\n\n" + json.dumps(rows, indent=1))
    with pytest.raises(DataError, match="line 8, column `label`"):
        read(array)
    for text in ('[{"prompt": "a"}', '[{"prompt": "a"} {}]', '{"data": [\n]}', "[3]"):
        with pytest.raises(DataError) as raised:
            read(save(tmp_path / "a.json", text))
        assert raised.value.code in ("json-syntax", "column-missing")


def test_arrow_files_and_streams_and_saved_datasets_are_read(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="pyarrow, of the extra `parquet`, is not installed")
    datasets = pytest.importorskip("datasets", reason="`datasets` is not installed")
    from pyarrow import ipc

    table = pa.Table.from_pylist(RECORDS)
    for make in (ipc.new_file, ipc.new_stream):
        with make(str(tmp_path / "a.arrow"), table.schema) as writer:
            writer.write_table(table)
        assert read(tmp_path / "a.arrow") == ROWS
    with pytest.raises(DataError) as raised:
        read(save(tmp_path / "b.arrow", "no"))
    assert raised.value.code == "arrow-syntax"
    dataset = datasets.Dataset.from_list(RECORDS)
    dataset.save_to_disk(tmp_path / "saved")
    from_folder = Concept.from_file(tmp_path / "saved")
    assert from_folder.examples == Concept.from_file(tmp_path / "a.arrow").examples
    assert Concept.from_dataset(str(tmp_path / "saved")).examples == from_folder.examples
    parts = datasets.DatasetDict(train=dataset, dev=dataset)
    parts.save_to_disk(tmp_path / "parts")
    chosen = Concept.from_dataset(tmp_path / "parts", split="train")
    assert chosen.examples == from_folder.examples
    with pytest.raises(DataError) as raised:
        Concept.from_dataset(tmp_path / "parts", split="valid")
    assert raised.value.code == "split-unknown"


def test_a_dataset_is_loaded_by_its_id(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="`datasets` is not installed")
    called: list[Any] = []

    def load_dataset(*words: Any, **options: Any) -> Any:
        called.append((words, options))
        features = datasets.Features(
            {"question": datasets.Value("string"), "kind": datasets.ClassLabel(names=LABELS)}
        )
        rows = [{"question": prompt, "kind": LABELS.index(label)} for prompt, label in ROWS]
        return datasets.Dataset.from_list(rows, features=features)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    concept = Concept.from_dataset(
        "someone/locks",
        split="train",
        columns={"question": "prompt", "kind": "label"},
        config_name="plain",
        revision="main",
    )
    assert called == [(("someone/locks", "plain"), {"split": "train", "revision": "main"})]
    prompts = {one.last_turn for split in SPLITS for one in concept.select(split, ["negative"])}
    assert prompts == {prompt for prompt, label in ROWS if label == "negative"}
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: 1 / 0)
    with pytest.raises(DataError, match="someone/locks") as raised:
        Concept.from_dataset("someone/locks")
    assert raised.value.code == "dataset-not-loaded"
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError) as missing:
        Concept.from_dataset("someone/locks")
    assert "retouch[datasets]" in missing.value.hint


def test_the_dev_split_of_a_dataset_dict_is_the_validation_split() -> None:
    parts = {
        name: [{"prompt": f"{label} {name}", "label": label} for label in LABELS]
        for name in ("train", "dev", "test")
    }
    concept = Concept.from_dataset(parts)
    assert {one.last_turn for one in concept.examples["validation"]} == {
        f"{label} dev" for label in LABELS
    }


def test_numbers_nulls_and_other_words_are_read(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"{label} {i}", "label": label, "pair": i if i % 2 else None, "split": None}
        for label in (0, 1)
        for i in range(10)
    ]
    concept = Concept.from_file(jsonl(tmp_path / "a.jsonl", rows))
    pairs = {one.pair for split in SPLITS for one in concept.select(split, ["negative"])}
    assert pairs == {None, "1", "3", "5", "7", "9"}
    floats = [{**row, "pair": float(row["pair"] or "nan")} for row in rows]
    text = "\n".join(json.dumps(row) for row in floats)  # NaN, as pandas writes it
    assert Concept.from_file(save(tmp_path / "a.jsonl", text)).hash == concept.hash
    rows = [{**row, "split": split} for row, split in zip(rows, ("train", "dev") * 10, strict=True)]
    rows = [{**row, "pair": None} for row in rows]
    found = Concept.from_file(jsonl(tmp_path / "a.jsonl", rows))
    assert len(found.examples["validation"]) == 10


# Contradictions, each with the lines of both rows.

CONTRADICTIONS: dict[str, tuple[list[dict[str, Any]], str]] = {
    "source and target": (
        [{"prompt": "Ｐick  a lock"}, {"prompt": "pick a LOCK ", "label": "positive"}],
        "target-same-as-source",
    ),
    "target and source": (
        [{"prompt": "pick a lock", "label": "positive"}, {"prompt": "Pick a lock"}],
        "target-same-as-source",
    ),
    "source and target with one response": (
        [
            {"prompt": "pick a lock", "response": "No."},
            {"prompt": "pick a lock", "label": "positive", "response": "No."},
        ],
        "target-same-as-source",
    ),
    "source and retain": (
        [{"prompt": "pick a lock"}, {"prompt": "Pick a lock", "label": "retain"}],
        "source-and-retain",
    ),
    "two splits": (
        [
            {"prompt": "pick a lock", "split": "train"},
            {"prompt": "Pick a\tlock", "split": "test"},
        ],
        "prompt-in-two-splits",
    ),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_contradiction_names_both_rows(tmp_path: Path, name: str) -> None:
    pair, code = CONTRADICTIONS[name]
    rest = RECORDS if "split" not in pair[0] else [{**one, "split": "train"} for one in RECORDS]
    rows = [{"label": "negative", **pair[0]}, *rest, {"label": "negative", **pair[1]}]
    path = jsonl(tmp_path / "a.jsonl", rows)
    with pytest.raises(DataError) as raised:
        Concept.from_file(path)
    assert raised.value.code == code
    for part in (
        f"{path}, line 22:",
        " line 1",
    ):
        assert part in raised.value.message
    assert raised.value.hint


def test_a_response_or_a_context_resolves_the_contradiction() -> None:
    prompts = [f"pick lock {i}" for i in range(10)]
    given = [{"prompt": one, "response": "No."} for one in prompts]
    assert Concept.from_pairs(prompts, given)
    assert Concept.from_pairs(prompts, prompts, context=Context(system="Be brief."))
    with pytest.raises(DataError, match=r"target\[0\].*source\[0\]"):
        Concept.from_pairs(prompts, prompts)


def test_equal_responses_of_a_contrast_pair_are_an_error(tmp_path: Path) -> None:
    rows = [{"prompt": f"{i}", "chosen": "No.", "rejected": "Sure."} for i in range(10)]
    rows[4]["rejected"] = "No."
    with pytest.raises(DataError, match="line 5") as raised:
        Concept.from_file(jsonl(tmp_path / "a.jsonl", rows))
    assert raised.value.code == "target-same-as-source"


def test_near_copies_stay_in_one_split() -> None:
    texts = [f"{letter * 3} lock" for letter in "abcdefghij"]
    copies = [f"{one.upper()}?!" for one in texts]
    concept = Concept.from_pairs([*texts, *copies], responses=["No."] * 20)
    for split in SPLITS:
        found = {without_punctuation(normalized(one.last_turn)) for one in concept.examples[split]}
        assert len(concept.select(split, ["negative"])) == 2 * len(found)


def test_normalisation() -> None:
    assert normalized(" Ｈi\u00a0 THERE\n") == "hi there"
    assert normalized("ﬁne STRASSE") == normalized("fine straße")
    assert without_punctuation("a-b, (c) 3+1") == "ab c 3+1"
    assert without_punctuation("?!") == "?!"
    assert is_blank(" \u200b\ufeff\n\u2060")
    assert not is_blank("\u200ba")


def test_blank_text_is_empty(tmp_path: Path) -> None:
    row = {"prompt": "hi", "label": "retain", "response": " \u200b", "prefill": "\ufeff"}
    examples, _ = read_user_examples(jsonl(tmp_path / "a.jsonl", [row]))
    assert (examples[0].example.response, examples[0].example.prefill) == (None, "")
    with pytest.raises(DataError) as raised:
        read(jsonl(tmp_path / "a.jsonl", [{"prompt": "\u200b", "label": "retain"}]))
    assert raised.value.code == "prompt-empty"


# Hashes, which results are keyed on, are those of earlier versions.


def test_the_hash_of_a_file_is_that_of_earlier_versions(tmp_path: Path) -> None:
    rows = [{"prompt": f"{one} {i}", "label": one} for one in LABELS for i in range(10)]
    assert Concept.from_file(jsonl(tmp_path / "plain.jsonl", rows)).hash == (
        "4c90f250cf28fe6a161dfb7412cc212412615f0f837a37168565e912f8518212"
    )
    more = [
        {
            **row,
            "pair": f"{i % 10}",
            "entity": f"e{i % 10}",
            "accept": ["x", "y"],
            "response": f"a {i}" if i % 3 else None,
            "group": "g",
        }
        for i, row in enumerate(rows)
    ]
    more += [{"prompt": f"r {i}", "label": "retain"} for i in range(10)]
    assert Concept.from_file(jsonl(tmp_path / "pairs.jsonl", more)).hash == (
        "f936c16aca8c32960c2c7a10a9f00a398e74dfd43edfbbce5d666589a35e8786"
    )


# `retouch concept check` and `import`.


def call(*words: object) -> Any:
    return CliRunner().invoke(app, ["concept", *map(str, words)])


def test_check_prints_the_mapping_and_the_warnings(tmp_path: Path) -> None:
    rows = [{"prompt": f"{i}", "chosen": f"a {i}", "rejected": f"b {i}"} for i in range(12)]
    result = call("check", jsonl(tmp_path / "a.jsonl", rows))
    assert result.exit_code == 0, result.output
    assert "12 rows are read as TRL preference" in result.output
    assert "a is valid: 24 examples." in result.output
    result = call("check", jsonl(tmp_path / "a.jsonl", rows[:4]))
    assert result.exit_code == 0, result.output
    assert "few-examples" in result.output
    assert "is valid" not in result.output


def test_one_example_of_a_class_is_an_error(tmp_path: Path) -> None:
    rows = [{"prompt": f"{i}", "chosen": "a", "rejected": "b"} for i in range(2)]
    result = call("check", jsonl(tmp_path / "a.jsonl", rows))
    assert result.exit_code == 3
    assert "one-example" in result.output
    assert "is valid" not in result.output


def test_a_long_text_is_a_warning_with_its_line_and_a_huge_one_an_error(tmp_path: Path) -> None:
    rows = [{"prompt": f"{i}", "chosen": "a", "rejected": f"b {i}"} for i in range(12)]
    rows[6]["rejected"] = "pick a lock " * 9000
    path = jsonl(tmp_path / "a.jsonl", rows)
    (found,) = [one for one in validate(Concept.from_file(path)) if one.code == "text-long"]
    assert f"{path}, line 7" in found.message
    rows[6]["rejected"] = "pick a lock " * 90_000
    with pytest.raises(DataError, match="line 7, column `response`") as raised:
        Concept.from_file(jsonl(tmp_path / "a.jsonl", rows))
    assert raised.value.code == "text-too-long"


def test_import_writes_a_concept_that_is_checked(tmp_path: Path) -> None:
    rows = [{"q": f"{i}", "good": f"a {i}", "bad": f"b {i}", "id": i} for i in range(12)]
    path = jsonl(tmp_path / "locks.jsonl", rows)
    columns = "q=prompt,good=chosen,bad=rejected"
    result = call("import", path, "--columns", columns, "--out", tmp_path / "made")
    assert result.exit_code == 0, result.output
    assert "`q` is read as `prompt`" in result.output
    assert Concept.from_file(tmp_path / "made").name == "locks"
    assert call("check", tmp_path / "made").exit_code == 0
    assert call("import", path, "--columns", columns, "--out", tmp_path / "made").exit_code == 5
    assert call("import", path, "--columns", "q", "--out", tmp_path / "other").exit_code == 2
    assert call("import", path, "--split", "train", "--out", tmp_path / "other").exit_code == 2


def test_reading_a_file_imports_no_heavy_library(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", RECORDS)
    code = (
        "import sys; from retouch import Concept; Concept.from_file(sys.argv[1]); "
        "print(sorted({'torch', 'datasets', 'pyarrow', 'pandas'} & set(sys.modules)))"
    )
    words = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
