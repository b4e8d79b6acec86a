"""The contrast check: what it measures on the base model, and what stops an edit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import retouch
from helpers.command_line import call
from helpers.pocket_edit import small_settings
from retouch.concepts.concept import Concept, Context, DirectionSpec, Example, MetricSpec
from retouch.concepts.pack import save_pack
from retouch.concepts.registry import load_concept
from retouch.contrast.measure import check_contrast, require_contrast
from retouch.contrast.report import ContrastReport
from retouch.core.config import DataConfig
from retouch.core.errors import DataError
from retouch.core.run_dir import RunDir
from retouch.core.types import Message, Score
from retouch.models.editable_model import EditableModel
from retouch.task.task import build_task

NAMES = [
    f"{verb} a {thing}" for verb in ("sell", "lend", "fix") for thing in ("hat", "bike", "cup")
]
REFUSAL = "I'm sorry, but I can't help with that."
METRIC = MetricSpec("chores", "chores_refused", ("chore",), "refusal", better="higher")


@pytest.fixture(scope="module")
def pocket() -> EditableModel:
    return retouch.load("pocket")


def concept(
    target: str = "",
    *,
    given: str | None = None,
    own: str | None = None,
    context: Context | None = None,
) -> Concept:
    """Harmless requests that pocket answers, moved towards ones that it refuses, or `target`."""
    harmful = [one.prompt for one in load_concept("pocket-safety").select("train", ["direct"])]

    def examples(begin: int) -> tuple[Example, ...]:
        made = []
        for i, name in enumerate(NAMES):
            text = f"{name} number {begin + i}"
            source = (Message("user", f"How can I {text}?"),)
            made.append(Example(source, "chore", own, pair=text))
            prompt = (Message("user", target.format(text)),) if target else harmful[begin + i]
            made.append(Example(prompt, "crime", given, pair=text))
            made.append(Example((Message("user", f"What is {i} + {begin}?"),), "sum"))
        return tuple(made)

    spec = DirectionSpec(("chore",), ("crime",), ("sum",), "chores_refused", "higher", context)
    return Concept(
        "chores",
        "",
        "",
        {"train": examples(0), "validation": examples(20), "test": examples(40)},
        {"raise": spec},
        metrics=(METRIC,),
    )


def check(pocket: EditableModel, concept: Concept) -> ContrastReport:
    return retouch.check_contrast(pocket, concept=concept, on_event=lambda _: None)


def codes(report: ContrastReport) -> dict[str, str]:
    return {finding.code: finding.level for finding in report.findings}


def rate(score: Score | None) -> float:
    assert score is not None
    return score.value


def test_a_target_that_the_base_refuses_is_a_contrast(pocket: EditableModel) -> None:
    report = check(pocket, concept())
    assert (report.metric, report.paired, report.num_given) == ("chores_refused", True, 0)
    assert rate(report.source) <= 0.1
    assert rate(report.target) >= 0.8
    assert report.given is None
    assert rate(report.gap) > 0.3
    assert rate(report.separability) > 0.8
    assert report.level == "ok"
    assert [sample.set for sample in report.samples] == ["source"] * 3 + ["target"] * 3
    assert [sample.desired for sample in report.samples] == [False] * 3 + [True] * 3
    assert "show chores_refused" in str(report)
    assert report.to_plain()["level"] == "ok"


def test_a_target_without_the_behaviour_is_an_error_that_says_what_to_do(
    pocket: EditableModel,
) -> None:
    report = check(pocket, concept("Please tell me: how can I {}?"))
    assert codes(report)["contrast-target"] == "error"
    with pytest.raises(DataError) as error:
        require_contrast(report)
    assert error.value.code == "contrast-target"
    for part in ("response", "context", "model", "ignore_contrast"):
        assert part in error.value.hint
    require_contrast(report, ignore=True)


def test_given_responses_are_learned_where_the_target_does_not_show_the_effect(
    pocket: EditableModel,
) -> None:
    report = check(pocket, concept("Please tell me: how can I {}?", given=REFUSAL))
    assert not report.errors
    assert report.num_given == len(NAMES)
    assert rate(report.given) == 1.0
    assert rate(report.target) <= 0.2
    wrong = check(pocket, concept("Please tell me: how can I {}?", given="Sure, take a brush."))
    assert codes(wrong)["contrast-responses"] == "warning"


def test_given_responses_to_the_same_prompts_leave_the_states_as_they_are(
    pocket: EditableModel,
) -> None:
    report = check(pocket, concept("How can I {}?", given=REFUSAL))
    assert report.gap == Score(0.0, 0.0, 0.0, len(NAMES))
    assert codes(report) == {"contrast-gap": "warning"}


def test_a_response_of_a_source_example_is_not_the_bases_own(pocket: EditableModel) -> None:
    """A file may give rejected responses: the base's own rate must not be read from them."""
    assert rate(check(pocket, concept(own=REFUSAL)).source) <= 0.1


def test_a_context_elicits_the_target_of_the_same_prompt(pocket: EditableModel) -> None:
    spec = replace(
        concept().directions["raise"], target=(), context=Context(prefix="I can't help with that.")
    )
    report = check(pocket, replace(concept(), directions={"raise": spec}, hash=""))
    assert rate(report.source) <= 0.1
    assert rate(report.target) == 1.0
    assert all(one.response.startswith("I can't") for one in report.samples if one.desired)


def test_the_task_of_an_edit_gives_the_same_rates(pocket: EditableModel) -> None:
    config = retouch.EditConfig(data=DataConfig(num_examples=12, num_retain=4))
    task = build_task(pocket, concept(), "raise", 0, config.data, config.method)
    report, alone = check_contrast(pocket, task), check(pocket, concept())
    assert (report.source, report.target) == (alone.source, alone.target)
    assert report.layers == tuple(task.layers.read)


def test_an_edit_without_a_contrast_stops_before_the_training(tmp_path: Path) -> None:
    weak = concept("Please tell me: how can I {}?")
    config = small_settings({"train.rounds": 1, "evaluation.suites": "concept"})
    with pytest.raises(DataError) as error:
        retouch.edit("pocket", concept=weak, config=config, output_dir=tmp_path / "stopped")
    assert error.value.code == "contrast-target"
    run = RunDir.open(tmp_path / "stopped")
    assert run.provenance()["contrast"]["level"] == "error"
    assert not run.events()
    with pytest.raises(DataError):  # a resumed run is not let through
        retouch.resume(run.path)
    config["data"]["ignore_contrast"] = True
    result = retouch.edit("pocket", concept=weak, config=config, output_dir=tmp_path / "run")
    assert RunDir.open(result.path).provenance()["contrast"]["level"] == "error"
    assert result.outcome is not None


def test_doctor_prints_the_contrast_and_fails_without_one(tmp_path: Path) -> None:
    for name, made in (("good", concept()), ("weak", concept("Please tell me: how can I {}?"))):
        save_pack(made, tmp_path / name)
    options = ["--contrast", "--num-retain", "4", "--concept"]
    good = call("doctor", "pocket", *options, str(tmp_path / "good"))
    assert good.exit_code == 0, good.output
    assert "chores_refused of responses: source 0.0 %" in " ".join(good.stdout.split())
    weak = call("doctor", "pocket", "--json", *options, str(tmp_path / "weak"))
    assert weak.exit_code == 1
    values = json.loads(weak.stdout)
    assert values["runs"]
    assert values["contrast"]["findings"][0]["code"] == "contrast-target"
    assert len(values["contrast"]["samples"]) == 6
