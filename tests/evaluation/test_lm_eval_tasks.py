from __future__ import annotations

import json
import logging
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from helpers.char_tokenizer import add_random_adapter, char_editable
from helpers.edited import has_weights, weights
from retouch.core.errors import ConfigError, DataError, RetouchError, RunError
from retouch.core.types import Message
from retouch.evaluation.evaluate import joined
from retouch.evaluation.lm_eval_tasks import TaskResults, run_tasks
from retouch.evaluation.statistics import mcnemar, wilson
from retouch.models import adapters
from retouch.models.editable_model import EditableModel
from retouch.models.generate import generate
from retouch.models.interventions import Prompting, Steering

pytest.importorskip("lm_eval", reason="needs the extra retouch[lm-eval]")

# A group, a perplexity, generations with two filters, and log-likelihoods of single continuations.
TASKS = ["toy", "toy_texts", "toy_responses", "toy_words"]
BATCH_SIZE = 4
WORDS = ["red", "blue", "tea", "old mill", "a fox", "rain", "sun", "go", "boat", "seven"]


def rows(count: int, responses: Sequence[str] = ()) -> list[dict[str, Any]]:
    rng = random.Random(count)
    return [
        {
            "question": f"{i}: {' '.join(rng.sample(WORDS, 3))}?",
            "choices": rng.sample(WORDS, 3),
            "answer": rng.randrange(3),
            "text": " ".join(rng.choices(WORDS, k=4 + i % 3)),
            "response": responses[i] if i % 2 and responses else "no",
        }
        for i in range(count)
    ]


def write_task(folder: Path, name: str, data: Path, **fields: Any) -> Path:
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data), "train": str(data)}},
        "test_split": "test",
        "fewshot_split": "train",
        "doc_to_text": "{{question}}",
        "metadata": {"version": 1},
        **fields,
    }
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(task, sort_keys=False), "utf-8")
    return file


def write_rows(file: Path, values: Sequence[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(one) + "\n" for one in values), "utf-8")
    return file


CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_target": "answer",
    "doc_to_choice": "choices",
    "metric_list": [{"metric": name} for name in ("acc", "acc_norm", "brier_score")],
}


def write_tasks(folder: Path, editable: EditableModel) -> None:
    """A task of each output type, whose answers the base model gives now and then."""
    encoded = [editable.tokenizer(one["question"])["input_ids"] for one in rows(12)]
    few = write_rows(folder / "few.jsonl", rows(12, generate(editable, encoded, max_new_tokens=8)))
    more = write_rows(folder / "more.jsonl", rows(18))
    write_task(folder, "toy_choice", few, **CHOICE)
    write_task(folder, "toy_choice_more", more, **CHOICE)
    means = [{"metric": "acc"}, {"metric": "acc_norm", "weight_by_size": False}]
    group = {"group": "toy", "task": ["toy_choice", "toy_choice_more"]}
    group["aggregate_metric_list"] = means
    (folder / "toy.yaml").write_text(yaml.safe_dump(group), "utf-8")
    texts = {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "text"}
    write_task(folder, "toy_texts", few, **texts)
    first = [{"function": "regex", "regex_pattern": "^(.)"}, {"function": "take_first"}]
    write_task(
        folder,
        "toy_responses",
        few,
        output_type="generate_until",
        doc_to_target="response",
        generation_kwargs={"until": ["\n"], "max_gen_toks": 8},
        metric_list=[{"metric": "exact_match"}],
        filter_list=[
            {"name": "whole", "filter": [{"function": "take_first"}]},
            {"name": "first", "filter": first},
        ],
    )
    words = {"output_type": "loglikelihood", "doc_to_target": "text"}
    write_task(
        folder, "toy_words", few, **words, metric_list=[{"metric": "perplexity"}, {"metric": "acc"}]
    )


def edited_model() -> EditableModel:
    return add_random_adapter(char_editable(), 0.3)


@pytest.fixture(scope="module", autouse=True)
def own_caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of datasets for this module, and the bootstrap of lm-eval in this process."""
    import datasets

    cache = tmp_path_factory.mktemp("datasets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(cache))
        patch.setenv("HF_DATASETS_CACHE", str(cache))
        patch.setenv("DISABLE_MULTIPROC", "1")
        yield cache


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Task files, and the model with its adapter as folders."""
    folder = tmp_path_factory.mktemp("tasks")
    base, edited = char_editable(), edited_model()
    write_tasks(folder, base)
    for model, name in ((base.model, "model"), (adapters.merged(edited), "merged")):
        model.save_pretrained(folder / name)
        base.tokenizer.save_pretrained(folder / name)
    adapters.save(edited, folder / "adapter")
    return folder


@pytest.fixture(scope="module")
def results(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> TaskResults:
    return run_tasks(edited_model(), TASKS, include_path=folder, batch_size=BATCH_SIZE)


def own_results(folder: Path, tasks: Sequence[str] = TASKS, **options: Any) -> dict[str, Any]:
    """lm-eval's results of a model in a folder, by its documented function."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    model_args = {"pretrained": str(folder / options.pop("name", "model"))}
    if "peft" in options:
        model_args["peft"] = str(folder / options.pop("peft"))
    manager = TaskManager(include_path=str(folder), include_defaults=False, metadata=model_args)
    found: Any = simple_evaluate(
        "hf",
        model_args,
        list(tasks),
        task_manager=manager,
        batch_size=BATCH_SIZE,
        device="cpu",
        **options,
    )
    return dict(found)


def plain(values: Any) -> Any:
    from lm_eval.utils import handle_non_serializable

    return json.loads(json.dumps(values, default=handle_non_serializable))


def test_base_figures_are_those_of_lm_eval(results: TaskResults, folder: Path) -> None:
    expected = own_results(folder)
    assert results.base["results"] == expected["results"]
    assert results.base["groups"] == expected["groups"]
    assert plain(results.base["samples"]) == plain(expected["samples"])
    for name in ("n-shot", "higher_is_better", "n-samples", "versions"):
        assert results.base[name] == expected[name]
    assert 0 < expected["results"]["toy_responses"]["exact_match,whole"] < 1
    assert 0 < expected["results"]["toy_choice"]["acc,none"] < 1


def test_edited_figures_are_those_of_the_merged_weights(results: TaskResults, folder: Path) -> None:
    assert results.edited is not None
    expected = own_results(folder, name="merged")["results"]
    for task, figures in expected.items():
        for name, figure in figures.items():
            found = results.edited["results"][task][name]
            # Sums of floating-point numbers in another order.
            assert found == (figure if isinstance(figure, str) else pytest.approx(figure, rel=1e-4))


@pytest.mark.slow
@pytest.mark.timeout(900)  # the command reads the thousands of task files of its package
def test_edited_figures_are_those_of_the_command_with_the_adapter(
    results: TaskResults, folder: Path, tmp_path: Path
) -> None:
    model = f"pretrained={folder / 'model'},peft={folder / 'adapter'}"
    options = ["--model_args", model, "--include_path", str(folder), "--device", "cpu"]
    options += ["--batch_size", str(BATCH_SIZE), "--output_path", str(tmp_path)]
    command = [
        sys.executable,
        "-m",
        "lm_eval",
        "--model",
        "hf",
        "--tasks",
        ",".join(TASKS),
        *options,
    ]
    done = subprocess.run(command, env=os.environ.copy(), capture_output=True, text=True)
    files = list(tmp_path.rglob("results_*.json"))  # written before the table is printed
    assert len(files) == 1, done.stderr
    expected = json.loads(files[0].read_text("utf-8"))
    assert results.edited is not None
    assert plain(results.edited["results"]) == expected["results"]
    assert plain(results.edited["groups"]) == expected["groups"]
    assert results.edited["results"] != results.base["results"]
    assert expected.keys() - results.edited.keys() == {"task_hashes"}


def test_records_have_the_figures_with_intervals_and_a_paired_test(results: TaskResults) -> None:
    metrics, edited = results.evaluation.metrics, results.edited
    assert edited is not None
    assert [(one.suite, one.metric) for one in metrics] == [
        ("lm-eval/toy", "acc"),
        ("lm-eval/toy", "acc_norm"),
        *(
            (f"lm-eval/toy_choice{more}", name)
            for more in ("", "_more")
            for name in ("acc", "acc_norm", "brier_score")
        ),
        *(
            ("lm-eval/toy_texts", f"{name}")
            for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")
        ),
        ("lm-eval/toy_responses", "exact_match,whole"),
        ("lm-eval/toy_responses", "exact_match,first"),
        ("lm-eval/toy_words", "perplexity"),
        ("lm-eval/toy_words", "acc"),
    ]
    for record in metrics:
        task = record.suite.removeprefix("lm-eval/")
        name = record.metric if "," in record.metric else f"{record.metric},none"
        assert record.after is not None
        assert record.before.value == results.base["results"][task][name]
        assert record.after.value == edited["results"][task][name]
        for score in (record.before, record.after):
            assert score.low <= score.value <= score.high
        assert record.before.n == {"toy": 30, "toy_choice_more": 18}.get(task, 12)
        assert record.better == ("lower" if "perp" in name or "b" in name[:2] else "higher")
        assert 0 < results.evaluation.p_values[record.suite, record.metric] <= 1
    accuracy = metrics["lm-eval/toy_choice/acc"]
    correct = [
        [row["acc"] for row in one["samples"]["toy_choice"]] for one in (results.base, edited)
    ]
    assert accuracy.unit == metrics["lm-eval/toy/acc_norm"].unit == "rate"
    assert metrics["lm-eval/toy_choice/brier_score"].unit == ""
    assert accuracy.before == wilson(int(sum(correct[0])), 12)
    assert results.evaluation.p_values["lm-eval/toy_choice", "acc"] == mcnemar(*correct)
    assert joined([results.evaluation]).values["lm-eval/toy_choice", "acc"].sums == tuple(
        correct[1]
    )


def test_values_of_texts_are_nats_and_their_units(results: TaskResults) -> None:
    key = ("lm-eval/toy_texts", "word_perplexity")
    values, before = results.evaluation.base_values[key], results.evaluation.metrics["/".join(key)]
    assert sum(values.counts) == sum(len(row["text"].split()) for row in rows(12))
    mean = sum(values.sums) / sum(values.counts)
    assert np.exp(mean) == pytest.approx(before.before.value)
    assert before.unit == ""


def test_the_model_and_the_process_are_unchanged(folder: Path, results: TaskResults) -> None:
    editable = edited_model()
    editable.model.train()
    before, tokenizer = weights(editable), editable.tokenizer.padding_side
    random.seed(7)
    np.random.seed(7)
    torch.manual_seed(7)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # type: ignore[union-attr]
    root, own = logging.getLogger(), logging.getLogger("lm_eval")
    loggers = [(one.level, one.handlers[:], one.propagate) for one in (root, own)]
    seen: list[tuple[str, int, int]] = []
    found = run_tasks(
        editable,
        ["toy_choice", "toy_texts"],
        include_path=folder,
        batch_size=BATCH_SIZE,
        progress=lambda *progress: seen.append(progress),
    )
    assert has_weights(editable, before)
    assert editable.model.training
    assert editable.tokenizer.padding_side == tokenizer
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]  # type: ignore[union-attr]
    assert torch.get_rng_state().equal(states[2])
    assert [(one.level, one.handlers[:], one.propagate) for one in (root, own)] == loggers
    for task in ("toy_choice", "toy_texts"):
        # Up to rounding, which depends on where in memory a tensor lies on some processors.
        assert found.base["results"][task] == pytest.approx(results.base["results"][task])
        # The adapter is active again, and gives the same figures.
        assert found.edited["results"][task] == pytest.approx(results.edited["results"][task])  # type: ignore[index]
    assert ("lm-eval, base model: loglikelihood requests", 36, 36) in seen
    assert ("lm-eval, edited model: loglikelihood requests", 36, 36) in seen
    again = run_tasks(editable, ["toy_choice"], include_path=folder, batch_size=BATCH_SIZE)
    expected = found.edited["results"]["toy_choice"]  # type: ignore[index]
    assert again.edited["results"]["toy_choice"] == pytest.approx(expected)  # type: ignore[index]


def test_nothing_is_printed(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tasks = ["toy_choice", "toy_texts", "toy_words"]
    found = run_tasks(char_editable(), tasks, include_path=folder, limit=2)
    assert found.base["results"]["toy_words"]["perplexity_stderr,none"] > 0  # by a bootstrap
    assert capfd.readouterr() == ("", "")


def test_a_base_model_has_no_edited_results(folder: Path, shipped: Path, tmp_path: Path) -> None:
    out = tmp_path / "new"
    found = run_tasks(char_editable(), ["toy_*"], include_path=folder, limit=3, out=out)
    assert found.edited is None
    assert found.evaluation.p_values == {}
    assert all(one.after is None and one.before.n == 3 for one in found.evaluation.metrics)
    assert found.evaluation.values == found.evaluation.base_values
    assert [file.name for file in out.iterdir()] == ["lm-eval-base.json"]
    written = json.loads((out / "lm-eval-base.json").read_text("utf-8"))
    assert written == plain(found.base)
    assert len(written["samples"]["toy_texts"]) == 3


def test_steering_acts_and_is_written(folder: Path, results: TaskResults, tmp_path: Path) -> None:
    editable = char_editable()
    editable.intervene(Steering({1: torch.linspace(-0.5, 0.5, 32)}))
    found = run_tasks(
        editable, ["toy_texts"], include_path=folder, batch_size=BATCH_SIZE, out=tmp_path
    )
    assert found.base["results"]["toy_texts"] == results.base["results"]["toy_texts"]
    assert found.edited is not None
    assert found.edited["results"] != found.base["results"]
    assert all(one.active for one in editable.interventions)
    assert json.loads((tmp_path / "lm-eval-edited.json").read_text("utf-8")) == plain(found.edited)


def test_an_added_prompt_is_refused(folder: Path) -> None:
    editable = edited_model()
    editable.intervene(Prompting((Message("system", "Be good."),)))
    assert refused(editable, ["toy_texts"], include_path=folder).code == "tasks-prompting"


def test_few_shot_and_chat_template_are_those_of_lm_eval(folder: Path) -> None:
    options: dict[str, Any] = {"num_fewshot": 2, "apply_chat_template": True, "limit": 4}
    tasks = ["toy_choice", "toy_responses"]
    found = run_tasks(
        char_editable(), tasks, include_path=folder, batch_size=BATCH_SIZE, seed=5, **options
    )
    names = ("random", "numpy_random", "torch_random", "fewshot_random")
    seeds = {f"{name}_seed": 5 for name in names}
    expected = own_results(folder, tasks, fewshot_as_multiturn=True, **options, **seeds)
    assert found.base["results"] == expected["results"]
    assert plain(found.base["samples"]) == plain(expected["samples"])
    assert found.base["chat_template"] == char_editable().tokenizer.chat_template
    assert found.base["n-shot"] == {"toy_choice": 2, "toy_responses": 2}
    assert [warning.partition(" of ")[0] for warning in found.warnings] == [
        "Overwriting default num_fewshot"
    ] * 2


def refused(editable: EditableModel, tasks: Sequence[str], **options: Any) -> RetouchError:
    with pytest.raises(RetouchError) as error:
        run_tasks(editable, tasks, **options)
    return error.value


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in place of lm-eval's own tasks, of which there are thousands of files."""
    import lm_eval.tasks.manager as manager

    folder = tmp_path / "shipped"
    folder.mkdir()
    monkeypatch.setattr(manager, "__file__", str(folder / "manager.py"))
    return folder


def test_an_unknown_task_is_refused_with_near_names(folder: Path, shipped: Path) -> None:
    write_task(shipped, "toy_shipped", folder / "few.jsonl", **CHOICE)
    error = refused(char_editable(), ["toy_text", "toy_shiped"], include_path=folder)
    assert error.code == "task-unknown"
    assert "`toy_text`, `toy_shiped`" in error.message
    assert "`toy_texts`" in error.hint
    assert "`toy_shipped`" in error.hint


def test_a_file_that_is_no_yaml_is_named(folder: Path, shipped: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("task: broken\n  doc: [", "utf-8")
    error = refused(char_editable(), ["broken"], include_path=tmp_path)
    assert isinstance(error, DataError)
    assert error.code == "task-unreadable"
    assert "broken.yaml" in error.message


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"tasks": []}, "tasks-empty"),
        ({"tasks": "toy_texts"}, "tasks-empty"),
        ({"limit": 0}, "tasks-number"),
        ({"num_fewshot": -1}, "tasks-number"),
        ({"batch_size": 0}, "tasks-number"),
        ({"include_path": "nowhere"}, "tasks-folder"),
    ],
)
def test_wrong_arguments_are_refused(options: dict[str, Any], code: str, folder: Path) -> None:
    given = {"tasks": ["toy_texts"], "include_path": folder, **options}
    assert refused(char_editable(), **given).code == code


def test_a_chat_template_must_exist(folder: Path) -> None:
    editable = char_editable()
    editable.tokenizer.chat_template = None
    error = refused(editable, ["toy_texts"], include_path=folder, apply_chat_template=True)
    assert error.code == "tasks-chat-template"


def test_missing_data_and_failing_runs_are_reported(folder: Path, tmp_path: Path) -> None:
    write_task(tmp_path, "no_data", tmp_path / "nowhere.jsonl", **CHOICE)
    error = refused(char_editable(), ["no_data"], include_path=tmp_path)
    assert isinstance(error, DataError)
    assert error.code == "task-unloadable"
    assert "nowhere.jsonl" in error.message
    long = {"output_type": "generate_until", "doc_to_target": "response"}
    kwargs = {"until": ["\n"], "max_gen_toks": 100_000}
    write_task(tmp_path, "too_long", folder / "few.jsonl", **long, generation_kwargs=kwargs)
    error = refused(char_editable(), ["too_long"], include_path=tmp_path)
    assert isinstance(error, RunError)
    assert error.code == "tasks-failed"
    assert "100000" in error.message


def test_tasks_that_run_what_the_model_writes_are_refused(folder: Path, tmp_path: Path) -> None:
    write_task(tmp_path, "unsafe", folder / "few.jsonl", **CHOICE, unsafe_code=True)
    assert refused(char_editable(), ["unsafe"], include_path=tmp_path).code == "task-unsafe"


FUNCTION = "!function code.shout"
SHOUT = "from pathlib import Path\nPath(__file__).with_name('ran').touch()\n\n\n"
SHOUT += "def shout(doc):\n    return doc['question'].upper()\n"


def write_code(folder: Path, data: Path, name: str = "loud") -> None:
    """A task whose prompts a function beside it writes; importing it leaves a file."""
    (folder / "code.py").write_text(SHOUT, "utf-8")
    file = write_task(folder, name, data, **CHOICE | {"doc_to_text": "FUNCTION"})
    file.write_text(file.read_text("utf-8").replace("FUNCTION", FUNCTION), "utf-8")


def test_code_beside_a_task_file_runs_only_if_it_is_trusted(folder: Path, tmp_path: Path) -> None:
    write_code(tmp_path, folder / "few.jsonl")
    group = {"group": "loud_group", "task": [{"group": "inner", "task": ["loud"]}]}
    (tmp_path / "group.yaml").write_text(yaml.safe_dump(group), "utf-8")
    (tmp_path / "included.yaml").write_text("include: loud.yaml\ntask: quiet\n", "utf-8")
    for name in ("loud", "loud_group", "quiet"):
        error = refused(char_editable(), [name], include_path=tmp_path)
        assert error.code == "task-code"
        assert "`!function` in" in error.message
        assert "loud.yaml:" in error.message
        assert "trust_remote_code" in error.hint
    assert not (tmp_path / "ran").exists()
    found = run_tasks(
        char_editable(), ["loud"], include_path=tmp_path, limit=1, trust_remote_code=True
    )
    assert found.base["samples"]["loud"][0]["arguments"][0][0] == rows(12)[0]["question"].upper()


def test_code_of_the_package_is_trusted(folder: Path, shipped: Path, tmp_path: Path) -> None:
    write_code(shipped, folder / "few.jsonl")
    found = run_tasks(char_editable(), ["loud"], limit=1)
    assert found.base["samples"]["loud"][0]["arguments"][0][0] == rows(12)[0]["question"].upper()
    # A task of the user that replaces one of the package is not.
    own = tmp_path / "own"
    own.mkdir()
    write_code(own, folder / "few.jsonl")
    group = {"group": "shipped_group", "task": ["loud"]}
    (shipped / "group.yaml").write_text(yaml.safe_dump(group), "utf-8")
    error = refused(char_editable(), ["shipped_group"], include_path=own)
    assert error.code == "task-code"


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"metric_list": [{"metric": "someone/script"}]}, "the metric someone/script"),
        ({"metric_list": [{"metric": "acc", "hf_evaluate": True}]}, "`hf_evaluate`"),
        ({"generation_kwargs": {"custom_generate": "someone/model"}}, "`custom_generate`"),
        ({"dataset_kwargs": {"trust_remote_code": True}}, "`trust_remote_code`"),
        ({"dataset_path": "pandas"}, "pickled data"),
        ({"doc_to_text": "PYTHON"}, "python/name:os.getcwd"),
    ],
)
def test_task_files_that_load_code_are_refused(
    fields: dict[str, Any],
    problem: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Without libyaml, lm-eval reads files by a loader that constructs names of Python.
    monkeypatch.setattr("lm_eval.tasks._yaml_loader._Base", yaml.FullLoader)
    file = write_task(tmp_path, "coded", folder / "few.jsonl", **CHOICE | fields)
    tag = "!!python/name:os.getcwd ''"
    file.write_text(file.read_text("utf-8").replace("PYTHON", tag), "utf-8")
    error = refused(char_editable(), ["coded"], include_path=tmp_path)
    assert error.code == "task-code"
    assert problem in error.message


def test_templates_of_task_files_are_sandboxed(folder: Path, tmp_path: Path) -> None:
    import lm_eval.utils

    before = lm_eval.utils.env
    mark = tmp_path / "ran"
    escape = "{{ cycler.__init__.__globals__.os.mkdir('" + str(mark) + "') }}"
    write_task(tmp_path, "escape", folder / "few.jsonl", **CHOICE | {"doc_to_text": escape})
    error = refused(char_editable(), ["escape"], include_path=tmp_path)
    assert error.code == "task-unloadable"
    assert "SecurityError" in error.message
    assert not mark.exists()
    assert lm_eval.utils.env is before


def test_without_lm_eval_the_hint_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    error = refused(char_editable(), ["toy_texts"])
    assert isinstance(error, ConfigError)
    assert error.code == "library-missing"
    assert "retouch[lm-eval]" in error.hint
