"""`retouch.compare`: its files, the reuse of finished points, failures and refused arguments."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import retouch
from helpers.char_tokenizer import add_random_adapter, char_tokenizer
from helpers.crashing_plan import use_crashing_grid
from helpers.fake_methods import model, small_concept, use_fake_methods
from helpers.tiny_models import tiny_model
from retouch.comparison.compare import Comparison
from retouch.comparison.grid import GridPoint, make_grid
from retouch.comparison.result import Result
from retouch.comparison.samples import choose_samples, render_samples
from retouch.core.config import LoadConfig
from retouch.core.errors import (
    ConfigError,
    DataError,
    ModelError,
    RefusedError,
    RetouchError,
    RunError,
)
from retouch.core.types import Message, Sample
from retouch.evaluation.robustness import ATTACKS
from retouch.models.load import adapter_added

METHODS = ("none", "steering", "retouch")


def run(concept: Any, output_dir: Path, **overrides: Any) -> Comparison:
    options: dict[str, Any] = {"methods": METHODS, "seeds": 2, "num_examples": 4, "limit": 4}
    return retouch.compare(
        model(), None, concept, "raise", output_dir=output_dir, **(options | overrides)
    )


def scores(comparison: Comparison) -> list[dict[str, Any]]:
    """The scores of all points, without the time that they took."""
    table = comparison.to_pandas().drop(columns="seconds")
    rows: list[dict[str, Any]] = table.to_dict("records")
    return rows


def test_all_points_run_and_all_files_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shift, events = use_fake_methods(monkeypatch), []
    out = tmp_path / "out"
    comparison = run(
        small_concept(tmp_path / "pack"), out, num_examples=(4, 5), on_event=events.append
    )
    assert len(comparison.results) == 12
    names = {file.name for file in (out / "results").iterdir()}
    assert "steering-5-1.json" in names
    assert len(names) == 12
    values = json.loads((out / "compare.json").read_text())
    assert len(values["records"]) == len(comparison.to_pandas()) == 12 * 4
    assert list(values["records"][0]) == list(comparison.to_pandas().columns)
    assert set(values["records"][0]) == {
        *("method", "num_examples", "seed", "suite", "metric", "better"),
        *("value", "low", "high", "n", "seconds"),
    }
    result = json.loads((out / "results" / "steering-4-0.json").read_text())["result"]
    assert result["values"]["small/letter_gap"]["groups"] == ["m", "m", "f", "f"]
    assert len(result["values"]["drift/kl_per_token"]["counts"]) == 4
    page = (out / "compare.md").read_text()
    assert "## 4 examples" in page
    assert "p, effect" in page
    assert "<table>" in comparison._repr_html_()
    assert (out / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert {seed for _, seed in shift.applied} == {0, 1}
    assert any("steering, 4 examples, seed 0" in event.detail for event in events)


def test_the_base_has_no_drift_and_equal_methods_do_not_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_fake_methods(monkeypatch)
    comparison = run(small_concept(tmp_path / "pack"), tmp_path / "out", num_examples=(4, 5))
    base, steering, other = comparison.rows[:3]
    assert (base.method, base.metrics["drift/kl_per_token"].mean) == ("none", 0.0)
    assert steering.metrics == other.metrics
    tests = [test for test in comparison.tests if test.method == "steering"]
    assert len(tests) == 4  # two metrics at two numbers of examples
    assert all((test.p, test.difference.value, test.seeds) == (1.0, 0.0, 2) for test in tests)


def test_an_interrupted_comparison_continues_to_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shift, concept = use_fake_methods(monkeypatch), small_concept(tmp_path / "pack")
    whole = run(concept, tmp_path / "whole")
    shift.applied.clear()

    def interrupt(settings: Any, task: Any) -> bool:
        if len(shift.applied) > 1:
            raise KeyboardInterrupt
        return False

    shift.fails, editable, cut = interrupt, model(), tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        retouch.compare(
            editable,
            concept=concept,
            methods=METHODS,
            seeds=2,
            num_examples=4,
            limit=4,
            output_dir=cut,
        )
    assert not editable.edited
    assert len(list((cut / "results").iterdir())) == 2
    shift.applied.clear()
    shift.fails = lambda settings, task: False
    continued = run(concept, cut)
    assert len(shift.applied) == 3
    assert scores(continued) == scores(whole)
    assert continued.tests == whole.tests
    assert (cut / "compare.png").read_bytes() == (tmp_path / "whole/compare.png").read_bytes()
    with pytest.raises(RunError, match=r"limit.*output_dir") as error:
        run(concept, cut, limit=2)
    assert error.value.code == "identity-mismatch"
    (cut / "results" / "none-4-0.json").write_text("{}")
    with pytest.raises(RunError) as error:
        run(concept, cut)
    assert error.value.code == "result-broken"


def test_results_of_other_weights_are_not_reused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_fake_methods(monkeypatch)
    concept, weights = small_concept(tmp_path / "pack"), tiny_model()
    options: dict[str, Any] = {"methods": ["none"], "seeds": 1, "num_examples": 4, "limit": 4}
    options |= {"concept": concept, "output_dir": tmp_path / "out"}
    first = retouch.compare(weights, char_tokenizer(), **options)
    assert scores(retouch.compare(weights, char_tokenizer(), **options)) == scores(first)
    with torch.no_grad():
        next(weights.parameters()).mul_(2.0)
    with pytest.raises(RunError, match="fingerprint") as error:
        retouch.compare(weights, char_tokenizer(), **options)
    assert error.value.code == "identity-mismatch"


def test_a_concept_object_gives_the_results_of_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_fake_methods(monkeypatch)
    path = small_concept(tmp_path / "pack")
    by_path = run(path, tmp_path / "path")
    by_object = run(retouch.Concept.from_file(path), tmp_path / "object")
    assert scores(by_path) == scores(by_object)


def test_a_failed_method_is_reported_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_fake_methods(
        monkeypatch, lambda settings, task: task.seed == 1 or task.data.num_examples > 4
    )
    comparison = run(small_concept(tmp_path / "pack"), tmp_path / "out", num_examples=(4, 5))
    page = (tmp_path / "out" / "compare.md").read_text()
    assert "steering, seed 1: The loss is not finite. Lower the scale." in page
    assert "| Shift ¹ | – |" in page.split("## 5 examples")[1]
    assert "¹ steering, seed 1: The loss" in comparison._repr_html_()
    values = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert len(values["failed"]) == 2 * (1 + 2)
    assert all(test.seeds == 1 for test in comparison.tests if test.num_examples == 4)
    assert not [test for test in comparison.tests if test.num_examples == 5]


def test_applicable_attacks_add_their_metrics_to_every_method(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_fake_methods(monkeypatch)
    concept = small_concept(tmp_path / "pack")
    comparison = run(concept, tmp_path / "out", methods=METHODS[:2], seeds=1, attacks=ATTACKS)
    base, steering = comparison.results
    assert "text-quality/self_bleu" in base.scores()
    assert "text-quality/self_bleu" in steering.scores()
    curve = [name for name in steering.scores() if name.startswith("strength/letter_gap_strength_")]
    assert len(curve) > 1
    assert not [name for name in base.scores() if name in curve]  # nothing to scale


def test_single_methods_may_have_seeds_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shift, concept = use_fake_methods(monkeypatch), small_concept(tmp_path / "pack")
    run(concept, tmp_path / "out", seeds=1)
    shift.applied.clear()
    comparison = run(concept, tmp_path / "out", seeds=1, more_seeds={"retouch": 3})
    points = [(one.point.method, one.point.seed) for one in comparison.results]
    assert points == [("none", 0), ("steering", 0), ("retouch", 0), ("retouch", 1), ("retouch", 2)]
    assert [seed for _, seed in shift.applied] == [1, 2]  # the first seed is reused
    assert {(one.method, one.seeds) for one in comparison.tests} == {("none", 1), ("steering", 1)}
    assert "one seed, Shift over 3 on the" in (tmp_path / "out" / "compare.md").read_text()


def test_the_objective_alone_may_be_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_fake_methods(monkeypatch)
    concept = small_concept(tmp_path / "pack")
    comparison = run(concept, tmp_path / "out", seeds=1, metrics="objective")
    assert [set(one.scores()) for one in comparison.results] == [
        {"small/letter_gap", "drift/kl_per_token"}
    ] * 3
    assert "task accuracy" not in (tmp_path / "out" / "compare.md").read_text()


def test_responses_of_every_method_are_written_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_fake_methods(monkeypatch)
    concept, suite = small_concept(tmp_path / "pack"), tmp_path / "public.yaml"
    (tmp_path / "public.jsonl").write_text('{"id": 7, "text": "a *public* prompt"}\n')
    suite.write_text(
        "name: public\ntitle: Public\nurl: https://example.org\nlicence: CC0-1.0\n"
        "sources: [{file: public.jsonl}]\nprompt: '{text}'\nbetter: higher\n"
    )
    options: dict[str, Any] = {"seeds": 1, "samples": 3, "suites": [suite], "max_new_tokens": 4}
    comparison = run(concept, tmp_path / "out", **options)
    kept = [one.samples for one in comparison.results]
    assert all(len(samples) == 3 for samples in kept)
    prompts = [[sample.prompt for sample in samples] for samples in kept]
    assert prompts[0] == prompts[1] == prompts[2]
    assert [sample.model for sample in kept[0]] == ["base"] * 3
    assert [sample.model for sample in kept[1]] == ["edited"] * 3
    page = (tmp_path / "out" / "samples.md").read_text()
    assert page.count("### ") == 3
    assert page.count("- **No edit** (") == page.count("- **Shift** (") // 2 == 3
    assert "> test o0" in page
    assert "public, refusal, id 7" in page
    assert "public\\*" not in page  # a public prompt is named, not copied


def test_adapters_are_saved_where_only_weights_change(tmp_path: Path) -> None:
    concept = small_concept(tmp_path / "pack")
    tuned = tmp_path / "tuned.yaml"
    tuned.write_text("lora-sft: {max_steps: 2, num_validations: 1}\nsteering: {offset: 0}\n")
    editable, out = model(), tmp_path / "out"
    retouch.compare(
        editable,
        concept=concept,
        methods=["none", "steering", "lora-sft"],
        seeds=1,
        num_examples=4,
        limit=4,
        tuned=tuned,
        save_adapters=True,
        output_dir=out,
    )
    assert [folder.name for folder in (out / "adapters").iterdir()] == ["lora-sft-4-0"]
    with adapter_added(editable, out / "adapters" / "lora-sft-4-0"):
        assert editable.edited


def test_markup_in_a_response_is_escaped() -> None:
    sample = Sample(
        "small", "kept", "base", (Message("user", "<b>x</b>"),), "# *a*\n[b](c) `d` | e", "x", 1.0
    )
    assert choose_samples([sample], 5) == (sample,)
    grid = make_grid("pocket", "auto", "raise", ["none"], 1, [2], samples=1)
    result = Result(GridPoint("none", 2, 0), "done", samples=(sample,))
    page = render_samples(grid, [result], {})
    assert "> \\<b\\>x" in page
    assert "\\# \\*a\\* \\[b\\](c) \\`d\\` \\| e" in page


def test_a_public_prompt_is_named_and_not_kept() -> None:
    sample = Sample(
        "public", "refusal", "base", (Message("user", "theirs"),), "No.", "refusal", 1.0,
        group="a_b", entity="7",
    )  # fmt: skip
    (kept,) = choose_samples([sample], 5, {"public"})
    assert kept == replace(sample, prompt=())
    grid = make_grid("pocket", "auto", "raise", ["none"], 1, [2], samples=1)
    page = render_samples(grid, [Result(GridPoint("none", 2, 0), "done", samples=(kept,))], {})
    assert "### 1. public, refusal, a\\_b, id 7" in page
    assert "theirs" not in page


@pytest.mark.parametrize(
    ("argument", "options"),
    [
        ("method `absent`", {"methods": ["none", "absent"]}),
        ("methods", {"methods": []}),
        ("num_examples.*1", {"num_examples": 1}),
        ("num_examples", {"num_examples": ()}),
        ("seeds.*0", {"seeds": 0}),
        ("jobs.*0", {"jobs": 0}),
        ("limit.*0", {"limit": 0}),
        ("metrics.*some", {"metrics": "some"}),
        ("samples.*-1", {"samples": -1}),
        ("more_seeds.*lorra", {"methods": ["none"], "more_seeds": {"lorra": 2}}),
        ("more_seeds.*none.*0", {"methods": ["none"], "more_seeds": {"none": 0}}),
        ("direction.*up", {"direction": "up"}),
        ("absent.yaml", {"tuned": "absent.yaml"}),
        ("absent", {"attacks": ["absent"]}),
        ("gpus_per_job", {"gpus_per_job": 1}),
    ],
)
def test_an_error_names_the_argument_and_its_value(argument: str, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=argument):
        retouch.compare("pocket", on_event=lambda event: None, **options)


@pytest.mark.parametrize(
    ("code", "options"),
    [
        ("model-not-named", {"jobs": 2}),
        ("model-not-named", {"ray": "local"}),
        ("options-of-loaded-model", {"load_config": LoadConfig()}),
    ],
)
def test_options_that_a_loaded_model_cannot_have_are_refused(
    code: str, options: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError) as error:
        retouch.compare(model(), methods=["none"], **options)
    assert error.value.code == code


def test_an_edited_model_and_a_weakening_comparison_are_refused(tmp_path: Path) -> None:
    edited, concept = add_random_adapter(model(), 0.1), small_concept(tmp_path / "pack")
    with pytest.raises(ModelError) as error:
        retouch.compare(edited, concept=concept, methods=["none"], output_dir=tmp_path / "out")
    assert error.value.code == "model-edited"
    with pytest.raises(RefusedError):
        retouch.compare("pocket", concept="pocket-safety", direction="lower", methods=["none"])


def test_the_concepts_are_those_of_the_model() -> None:
    grid = make_grid("pocket", "auto", "raise", ["none"], 1, [2], metrics="all")
    assert grid.concept.name == "pocket-safety"
    assert len(grid.measured) > 1
    assert {one.models for one in grid.measured} == {("pocket",)}
    with pytest.raises(DataError) as error:
        make_grid(model(), "pocket-safety", "raise", ["none"], 1, [2])
    assert error.value.code == "concept-model"


def test_a_concept_without_an_effect_is_refused(tmp_path: Path) -> None:
    concept = small_concept(tmp_path / "pack")
    with pytest.raises(RetouchError) as error:
        retouch.compare(model(), concept=concept, direction="lower", methods=["none"])
    assert error.value.code == "direction-missing"
    file = tmp_path / "pack" / "concept.yaml"
    file.write_text(file.read_text().replace(", effect: letter_gap, effect_better: lower", ""))
    with pytest.raises(RetouchError) as error:
        retouch.compare(model(), concept=concept, methods=["none"])
    assert error.value.code == "effect-missing"


@pytest.mark.slow
def test_several_processes_give_the_results_of_one_even_if_a_worker_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Every process gets its share of the cores; equal bits need equal numbers of threads.
    threads, events = torch.get_num_threads(), []
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    torch.set_num_threads(1)
    options: dict[str, Any] = {"methods": ["none", "self-reminder"], "seeds": 1}
    options |= {
        "num_examples": 2,
        "limit": 4,
        "concept": "pocket-safety",
        "on_event": events.append,
    }
    try:
        one = retouch.compare("pocket", output_dir=tmp_path / "one", **options)
    finally:
        torch.set_num_threads(threads)
    use_crashing_grid(monkeypatch, tmp_path / "marks", kills=1)
    several = retouch.compare("pocket", output_dir=tmp_path / "several", jobs=2, **options)
    assert (tmp_path / "marks" / "0").exists()
    assert sum("a worker died" in event.detail for event in events) == 1
    assert scores(one) == scores(several)
    assert [result.values for result in one.results] == [
        result.values for result in several.results
    ]
