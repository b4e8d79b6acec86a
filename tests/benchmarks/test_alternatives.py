from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import alternatives
from benchmarks.alternatives import ABLATIONS, ALL, STUDIES, Inputs, Study, Variant, best_others
from helpers.char_tokenizer import char_editable
from helpers.fake_methods import small_concept, use_fake_methods
from helpers.public_data import write_requests
from retouch.comparison.compare import Comparison
from retouch.comparison.grid import make_grid
from retouch.comparison.summary import SeedStats, SummaryRow
from retouch.concepts.registry import load_concept, load_concept_file
from retouch.core.types import Record, Score
from retouch.methods import registry
from retouch.methods.registry import get_method


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ablations are methods during a test of this file, and only then."""
    monkeypatch.setattr(registry, "_REGISTERED", dict(ABLATIONS))


def test_every_study_has_retouch_the_base_and_known_methods() -> None:
    for name, study in STUDIES.items():
        assert {"none", "retouch"} <= set(study.methods), name
        assert len(set(study.methods)) == len(study.methods)
        for id in study.methods:
            get_method(id)


def test_a_variant_changes_its_own_settings_alone() -> None:
    concept, retouch = load_concept("safety"), get_method("retouch")
    plain = retouch.settings.model_validate(retouch.defaults(concept, "raise"))
    for id in ABLATIONS:
        method = get_method(id)
        assert isinstance(method, Variant)
        found = retouch.settings.model_validate(method.defaults(concept, "raise")).model_dump()
        for group, values in plain.model_dump().items():
            expected = values | dict(method.changed.get(group, {}))
            assert found[group] == expected
        assert found != plain.model_dump()


def row(method: str, refused: float, harmless: float) -> SummaryRow:
    metrics = {f"{suite}/refusal": refused for suite in alternatives.REFUSED}
    metrics |= {"alpaca-harmless/refusal": harmless, "alpaca-harmless/kl_responses": harmless}
    stats = {key: SeedStats(value, value, value) for key, value in metrics.items()}
    return SummaryRow(method, 128, stats, 1.0, {})


class Found:
    """A comparison with three alternatives, of which one refuses everything."""

    rows = (
        row("none", 0.0, 0.0),
        row("retouch", 0.9, 0.0),
        row("lorra", 1.0, 1.0),
        row("dpo", 0.5, 0.1),
        row("steering", 0.7, 0.1),
        row("without-adversarial", 0.9, 0.0),
    )


def test_the_best_others_refuse_more_of_harmful_than_of_harmless_requests() -> None:
    assert best_others(Found()) == ["steering", "dpo"]  # type: ignore[arg-type]


def test_a_method_that_another_surpasses_is_not_on_the_front() -> None:
    found = alternatives.on_front(Found.rows, alternatives.refused, "alpaca-harmless/refusal")  # type: ignore[arg-type]
    # "retouch" is as good as its ablation, and surpasses "dpo", "steering" and the base.
    assert found == ["retouch", "lorra", "without-adversarial"]


def test_the_picture_has_every_method() -> None:
    titles = {one.method: one.method for one in Found.rows}
    picture = alternatives.render_front(
        Found.rows, titles, alternatives.refused, "alpaca-harmless/refusal"
    )
    assert picture.startswith(b"\x89PNG")


def test_a_study_is_run_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use_fake_methods(monkeypatch)
    pack = small_concept(tmp_path / "pack")
    study = Study(
        "Small", lambda _: load_concept_file(pack), ("none", "retouch"), ("jailbreakbench:2",),
        num_examples=4,
    )  # fmt: skip
    monkeypatch.setattr(alternatives, "STUDIES", {"small": study})
    monkeypatch.setattr(alternatives, "load", lambda *_: char_editable())
    write_requests(tmp_path / "data")
    out = tmp_path / "out"
    words: list[Any] = ["--data-dir", tmp_path / "data", "--made", tmp_path / "made", "--out", out]
    for _ in range(2):  # the second time everything is reused
        alternatives.main([str(word) for word in words])
    assert "Written to" in capsys.readouterr().out
    names = {file.name for file in (out / "small").iterdir()}
    assert names == {"compare.md", "compare.json", "compare.png", "samples.md", "results"}
    page = (out / "small" / "compare.md").read_text("utf-8")
    assert "jailbreakbench: refusal" in page
    with pytest.raises(SystemExit):
        alternatives.main([*map(str, words), "--only", "absent"])
    assert "absent" in capsys.readouterr().err


def test_the_capability_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = Record("mmlu", "accuracy", "share", "higher", Score(0.25, 0.2, 0.3, 200))
    calls = []

    def measured(*args: Any, **options: Any) -> Any:
        calls.append(options["adapter"])
        return SimpleNamespace(metrics=[record])

    monkeypatch.setattr(alternatives, "evaluate", measured)
    grid = make_grid("pocket", "auto", "raise", ["retouch"], 1, [128])
    found = Comparison(tmp_path, grid, ())
    inputs = Inputs(char_editable(), tmp_path, tmp_path)
    pages = {alternatives.capability(inputs, found) for _ in range(2)}
    assert calls == [tmp_path / "adapters" / "retouch-128-0"]
    assert "mmlu: accuracy" in pages.pop()
    assert not pages


def test_all_alternatives_of_the_field_are_compared() -> None:
    assert set(ALL) >= {"self-reminder", "steering", "lorra", "circuit-breaker", "dpo", "lora-sft"}
