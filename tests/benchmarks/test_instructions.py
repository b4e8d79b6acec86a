"""`benchmarks.instructions` on a tiny model and made-up files in the published formats."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import instructions
from benchmarks.instructions import Responses
from helpers.char_tokenizer import add_random_adapter, char_editable
from helpers.public_data import write_rows
from retouch.concepts.concept import Concept, Context
from retouch.concepts.pack import save_pack
from retouch.core.config import LoadConfig
from retouch.core.errors import DataError
from retouch.core.run_dir import RunDir
from retouch.evaluation.instruction_rules import find_rule
from retouch.evaluation.statistics import each_once
from retouch.models import adapters
from retouch.models.editable_model import EditableModel
from retouch.models.generate import Response

FRENCH = "Le chat est dans la maison avec nous, et il ne dort pas sur une chaise."
ENGLISH = "The cat is in the house with us, and it is not on one of the chairs."


def responses(*texts: str) -> list[Response]:
    return [Response(text) for text in texts]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    rows = [{"id": i, "instruction": f"Sew {i}.", "split": "test"} for i in range(4)]
    write_rows(folder, "refusal_direction_harmless", rows)
    lines = [{"line": i, "text": "some text of a book " * 3} for i in range(40)]
    write_rows(folder, "wikitext2_test", lines)
    return folder


def test_each_instruction_has_a_rule() -> None:
    assert len({find_rule(text) for text in instructions.INSTRUCTIONS.values()}) == 3
    assert all(find_rule(text) for text in instructions.INSTRUCTIONS.values())


def test_the_share_is_that_of_the_prompted_rate() -> None:
    found = Responses(
        responses(ENGLISH, ENGLISH, ENGLISH, ENGLISH),
        responses(FRENCH, FRENCH, FRENCH, ENGLISH),
        [responses(FRENCH, FRENCH, ENGLISH, ""), responses(ENGLISH, FRENCH, FRENCH, FRENCH)],
    )
    lines = instructions.make_lines(
        "french", found, {"books": [each_once([0.02]), each_once([0.01])]}
    )
    by_name = {line.figure.name.partition(": ")[2]: line for line in lines}
    prompted, follows = by_name["follows, prompted"].base, by_name["follows"]
    assert prompted is not None
    assert prompted.value == 0.75
    assert follows.base is not None
    assert follows.base.value == 0.0
    assert [score.value for score in follows.edited] == [0.5, 0.75]
    share = by_name["share of the prompted rate"]
    assert [score.value for score in share.edited] == [pytest.approx(2 / 3), 1.0]
    assert share.mean == pytest.approx(5 / 6)
    assert share.met is False
    assert [score.value for score in by_name["degenerate"].edited] == [0.25, 0.0]
    elsewhere = by_name["KL elsewhere, books"]
    assert (elsewhere.worst.value, elsewhere.met) == (0.02, False)


def test_without_prompted_responses_there_is_no_share() -> None:
    found = Responses(responses(ENGLISH), responses(ENGLISH), [responses(ENGLISH)])
    lines = instructions.make_lines("french", found, {"books": [each_once([0.0])]})
    assert not any("share" in line.figure.name for line in lines)


def test_passages_are_as_long_as_each_other(data: Path) -> None:
    passages = instructions.read_passages(data, char_editable())
    assert {(len(one.ids), one.start) for one in passages} == {(instructions.PASSAGE_TOKENS, 1)}
    write_rows(data, "wikitext2_test", [{"text": "short"}])
    with pytest.raises(DataError, match="fewer than 128 tokens"):
        instructions.read_passages(data, char_editable())


def test_a_finished_run_is_reused_and_another_one_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(
        "benchmarks.instructions.subprocess.run", lambda words, **_: commands.append(words)
    )
    for finished, expected in ((None, "--instruction"), (False, "--resume"), (True, "")):
        monkeypatch.setattr(
            "benchmarks.instructions.RunDir.open",
            lambda _, finished=finished: SimpleNamespace(finished=finished),
        )
        commands.clear()
        path = instructions.make_run("pocket", "french", 1, tmp_path, LoadConfig())
        assert path == tmp_path / "french-seed1"
        assert [expected in words for words in commands] == ([True] if expected else [])
        path.mkdir(exist_ok=True)


def test_the_command_measures_the_edits(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fake_load(_: str, config: LoadConfig) -> EditableModel:
        assert config.dtype == "float32"
        return char_editable()

    def fake_run(_: str, name: str, seed: int, folder: Path, __: LoadConfig) -> Path:
        path = folder / f"{name}-{seed}"
        adapters.save(add_random_adapter(char_editable(), 0.3 + seed), path)
        save_pack(concept, path / "concept")
        return path

    concept = Concept.from_pairs(
        [f"Knit {i}." for i in range(20)],
        retain=[f"In JSON: knit {i}." for i in range(20)],
        context=Context(around="{prompt} In French."),
    )
    monkeypatch.setattr(RunDir, "open", lambda path: RunDir(path))
    monkeypatch.setattr(instructions, "load", fake_load)
    monkeypatch.setattr(instructions, "make_run", fake_run)
    out = tmp_path / "out" / "instructions.json"
    words = ["--data-dir", str(data), "--runs", str(tmp_path / "runs"), "--out", str(out)]
    words += ["--dtype", "float32"]
    instructions.main([*words, "--seeds", "2", "--only", "french", "--max-new-tokens", "4"])
    assert "| french: KL elsewhere, WikiText-2" in capsys.readouterr().out
    values = json.loads(out.read_text("utf-8"))
    elsewhere = [one for one in values["figures"] if "elsewhere" in one["figure"]]
    assert len(elsewhere) == 2
    assert all(one["mean"] > 0 and len(one["edited"]) == 2 for one in elsewhere)
    assert len(values["runs"]["french"]) == 2
