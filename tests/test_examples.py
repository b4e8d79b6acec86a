"""The examples run: scripts with small settings, the notebook, plugins as installed packages."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import retouch
from examples import compare_baselines, own_concept, quickstart
from retouch.concepts.registry import concept_names, load_concept
from retouch.core.config import EditConfig
from retouch.core.config_file import read_config_file, resolve
from retouch.core.types import Message
from retouch.evaluation.scorers import get_scorer
from retouch.methods.registry import get_method, method_ids
from retouch.models import adapters
from retouch.models.load import load
from retouch.task.task import build_task

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
PLUGINS = EXAMPLES / "plugins"
CONFIGS = sorted((EXAMPLES / "configs").glob("*.yaml"))
MAX_PLUGIN_LINES = 39
SMALL = {
    "data": {"num_examples": 8, "num_retain": 8, "prefill_tokens": 4},
    "train": {"rounds": 1, "steps_per_round": 2, "max_drift": 1.0},
    "evaluation": {"suites": "concept", "limit": 8},
}
ENTRY_POINTS = """
[retouch.scorers]
exclamation = examples.plugins.exclamation_scorer:ExclamationScorer

[retouch.methods]
mean-difference = examples.plugins.mean_difference_method:MeanDifference

[retouch.concepts]
cheerful-capitals = examples.plugins.cheerful_concept:folder

[retouch.reporters]
csv = examples.plugins.csv_reporter:metrics_csv
"""


@pytest.fixture
def plugins(tmp_path, monkeypatch):
    """The plugin examples, as if a package that declares their entry points were installed."""
    info = tmp_path / "my_package-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.slow
def test_quickstart_makes_an_edit(tmp_path, capsys):
    result = quickstart.main(tmp_path / "run", SMALL)
    assert result.metrics["safety/attack_refusal"].after is not None
    assert (result.path / "report.html").is_file()
    assert "attack_refusal" in capsys.readouterr().out


@pytest.mark.slow
def test_own_concept_from_pairs_is_edited(tmp_path):
    result = own_concept.main(tmp_path / "run", SMALL)
    assert result.config.concept == "cheerful-capitals"
    assert result.metrics["cheerful-capitals/correct"].before.n > 0
    assert {sample.model for sample in result.samples} == {"base", "edited"}


@pytest.mark.slow
def test_comparison_writes_its_table(tmp_path):
    comparison = compare_baselines.main(
        tmp_path / "comparison", methods=("none", "steering"), num_examples=8, limit=8
    )
    assert [result.state for result in comparison.results] == ["done", "done"]
    assert "Steering (CAA)" in (comparison.path / "compare.md").read_text("utf-8")


@pytest.mark.slow
def test_notebook_runs(tmp_path):
    notebook = nbformat.read(EXAMPLES / "tour.ipynb", as_version=4)
    client = NotebookClient(
        notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    client.execute()  # raises if a cell raises
    assert (tmp_path / "runs/pocket-safety-raise-1/report.html").is_file()


def test_notebook_is_committed_with_its_outputs():
    notebook = nbformat.read(EXAMPLES / "tour.ipynb", as_version=4)
    code = [one for one in notebook["cells"] if one["cell_type"] == "code"]
    outputs = [output for one in code for output in one["outputs"]]
    assert all(one["execution_count"] for one in code)
    assert all(output["output_type"] != "error" for output in outputs)
    assert any("text/html" in output.get("data", {}) for output in outputs), "a table of metrics"


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_configuration_file_is_valid_and_commented(file):
    config = resolve(read_config_file(file), where=str(file))
    assert config != EditConfig()
    lines = file.read_text("utf-8").splitlines()
    settings = [line for line in lines if line.startswith("  ")]
    assert lines[0].startswith("# ")
    assert sum("#" in line for line in settings) >= len(settings) / 2


@pytest.mark.parametrize(
    "file", sorted(path for path in PLUGINS.rglob("*") if path.suffix in (".py", ".yaml")), ids=str
)
def test_plugin_is_short(file):
    assert len(file.read_text("utf-8").splitlines()) <= MAX_PLUGIN_LINES


def test_scorer_of_another_package(plugins):
    scorer = get_scorer("exclamation")
    example = load_concept("pocket-tone").examples["test"][0]
    assert scorer.classify(example, "It is Paris! ") == ("excited", True)
    assert scorer.classify(example, "It is Paris.") == ("calm", False)


def test_reporter_of_another_package(plugins, tmp_path):
    settings = {**SMALL, "evaluation": {"suites": "concept", "limit": 2}}
    result = retouch.edit(concept="pocket-tone", config=settings, output_dir=tmp_path / "run")
    lines = (result.path / "metrics.csv").read_text().splitlines()
    assert lines[0] == "suite,metric,before,after"
    assert len(lines) == 1 + len(result.metrics)


def test_method_of_another_package(plugins):
    assert "mean-difference" in method_ids()
    method = get_method("mean-difference")
    editable = load("pocket")
    data = EditConfig.model_validate({"data": SMALL["data"]}).data
    task = build_task(editable, load_concept("pocket-safety"), "raise", 0, data)
    before = task.validator()
    method.apply(editable, task, method.settings(), lambda *_: None)
    after = task.validator()
    assert after.score > before.score, "the effect increases"
    assert editable.edited
    adapters.detach(editable)
    assert not editable.edited


def test_concept_of_another_package(plugins):
    assert "cheerful-capitals" in concept_names()
    concept = load_concept("cheerful-capitals")
    assert len(concept.select("train", ["plain"])) == 10
    assert concept.select("train", ["task"]), "the examples of `pocket-capability` are added"
    assert concept.settings["raise"]["train"]["rounds"] == 8
    first = concept.select("test", ["plain"])[0]
    assert first.prompt == (Message("user", "What is the capital of the Philippines?"),)


def test_splits_of_the_plugin_concept_are_disjoint(plugins):
    concept = load_concept("cheerful-capitals")
    entities = [
        {example.entity for example in concept.select(split, ["plain"])}
        for split in ("train", "validation", "test")
    ]
    assert not entities[0] & entities[1]
    assert not entities[0] & entities[2]
    assert not entities[1] & entities[2]


def test_own_concept_pairs_every_question():
    concept = own_concept.cheerful_capitals()
    source = concept.select("train", concept.directions["raise"].source)
    target = concept.select("train", concept.directions["raise"].target)
    assert {example.pair for example in source} == {example.pair for example in target}
