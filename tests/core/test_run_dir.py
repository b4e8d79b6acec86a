"""The run directory: its files read back equal, and broken ones are reported."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retouch.core import atomic
from retouch.core.atomic import atomic_folder
from retouch.core.config import EditConfig, LoraConfig, TrainConfig
from retouch.core.errors import RunError
from retouch.core.run_dir import RunDir, check_free, find_adapter, next_free
from retouch.core.types import Message, Record, RoundEvent, Sample, Score


def round_event(number: int, **changes: Any) -> RoundEvent:
    values: dict[str, Any] = {
        "round": number,
        "rounds": 12,
        "losses": {"adversarial": 0.6931471805599453, "retain": 1e-9},
        "discriminator_accuracy": 0.97,
        "validation_score": -0.25,
        "drift": 0.004,
        "best": number == 2,
        "seconds": 1.5,
    }
    return RoundEvent(**{**values, **changes})


def sample(response: str = "Sorry, no.") -> Sample:
    turns = (Message("system", "Be brief."), Message("user", 'Hö? \u2028 "quoted"'))
    return Sample(
        "safety",
        "attack_refusal",
        "edited",
        turns,
        response,
        "refusal",
        1.0,
        "Sure,",
        "g",
        "e",
        True,
    )


RECORDS = [
    Record(
        "safety",
        "attack_refusal",
        "rate",
        "higher",
        Score(0.1, 0.05, 0.2, 80),
        Score(1, 0.9, 1, 80),
    ),
    Record("capability", "drift", "nats a token", "lower", Score(0.1 + 0.2, 0, 1e-300, 7)),
]


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir.create(tmp_path / "run", EditConfig())


def full_disk(*args: Any, **kwargs: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_everything_reads_back_equal(run: RunDir) -> None:
    config = EditConfig(
        lora=LoraConfig(layers_to_transform=(3, 4)),
        train=TrainConfig(learning_rate=1e-3),
        allow_weakening="a: 'reason'\n# more",
    )
    run.write_config(config)
    run.write_metrics(RECORDS)
    run.write_samples([sample(), sample("two\nlines\u2028three\x85")])
    for number in (1, 2):
        run.append_event(round_event(number))
    again = RunDir.open(run.path)
    assert again.config() == config
    assert again.metrics() == RECORDS
    assert again.samples() == [sample(), sample("two\nlines\u2028three\x85")]
    assert again.events() == [round_event(1), round_event(2)]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(
    text=st.text(alphabet=st.characters()), value=st.floats(allow_nan=False, allow_infinity=False)
)
def test_any_text_and_number_read_back_equal(run: RunDir, text: str, value: float) -> None:
    one = Sample("s", "m", "base", (Message("user", text),), text, "answer", value)
    run.write_samples([one, one])
    assert run.samples() == [one, one]


def test_half_a_surrogate_pair_is_written(run: RunDir) -> None:
    run.write_samples([sample("\ud800")])
    assert run.samples() == [sample("\ud800")]


def test_metrics_are_a_plain_list(run: RunDir) -> None:
    run.write_metrics(RECORDS)
    first, second = json.loads((run.path / "metrics.json").read_text("utf-8"))
    assert set(first) == {"suite", "metric", "unit", "better", "before", "after"}
    assert first["before"] == {"value": 0.1, "low": 0.05, "high": 0.2, "n": 80}
    assert second["after"] is None


def test_a_run_is_finished_once_it_is_marked(run: RunDir) -> None:
    run.write_provenance({"seed": 0})
    run.write_metrics(RECORDS)
    assert not run.finished
    run.mark_finished()
    assert RunDir.open(run.path).finished
    assert run.provenance()["seed"] == 0


def test_what_was_given_as_an_object_is_recorded(run: RunDir) -> None:
    assert not run.has_concept
    run.concept.mkdir()
    (run.concept / "concept.yaml").write_text("name: mine")
    assert run.has_concept
    assert not run.chat_template.exists()


def test_create_refuses_the_folder_of_another_run(run: RunDir) -> None:
    with pytest.raises(RunError) as raised:
        RunDir.create(run.path, EditConfig(seed=1))
    assert raised.value.code == "run-exists"
    assert str(run.path) in raised.value.message
    assert run.config().seed == 0


def test_create_accepts_an_empty_folder_and_refuses_others(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    RunDir.create(tmp_path / "empty", EditConfig())
    (tmp_path / "other").mkdir()
    file = tmp_path / "other" / "letter.txt"
    file.write_text("dear")
    for path, code in (
        (tmp_path / "other", "path-taken"),
        (file, "path-taken"),
        (file / "below", "path-not-writable"),
    ):
        with pytest.raises(RunError) as raised:
            RunDir.create(path, EditConfig())
        assert raised.value.code == code
        assert str(path) in raised.value.message
        assert raised.value.hint
    assert file.read_text() == "dear"
    check_free(tmp_path / "new")


def test_open_reports_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path, part in (
        (tmp_path / "nowhere", "does not exist"),
        (tmp_path / "file", "a file"),
        (tmp_path, "config.yaml"),
    ):
        with pytest.raises(RunError, match=part) as raised:
            RunDir.open(path)
        assert raised.value.code == "not-a-run"


def test_missing_metrics_are_reported_with_the_state_of_the_run(run: RunDir) -> None:
    for read in (run.metrics, run.samples):
        with pytest.raises(RunError) as raised:
            read()
        assert raised.value.code == "not-finished"
    run.mark_finished()
    with pytest.raises(RunError, match=r"metrics\.json") as raised:
        run.metrics()
    assert raised.value.code == "not-measured"


def test_an_incomplete_last_event_is_omitted(run: RunDir) -> None:
    for number in (1, 2, 3):
        run.append_event(round_event(number))
    file = run.path / "events.jsonl"
    whole = file.read_bytes()
    for cut in range(1, len(whole) // 3):
        file.write_bytes(whole[:-cut])
        assert run.events() == [round_event(1), round_event(2)]
    run.truncate_events(2)
    run.append_event(round_event(3))
    assert run.events() == [round_event(1), round_event(2), round_event(3)]


def test_truncate_keeps_the_first_rounds(run: RunDir) -> None:
    run.truncate_events(0)
    assert run.events() == []
    for number in (1, 2, 3):
        run.append_event(round_event(number))
    run.truncate_events(1)
    assert run.events() == [round_event(1)]


def test_a_broken_line_in_the_middle_is_reported(run: RunDir) -> None:
    run.append_event(round_event(1))
    with (run.path / "events.jsonl").open("a") as file:
        file.write('{"round": 2}\n')
    run.append_event(round_event(3))
    with pytest.raises(RunError, match="line 2") as raised:
        run.events()
    assert raised.value.code == "file-broken"


@pytest.mark.parametrize("text", ["{", "[1]", "3"])
def test_a_broken_file_is_reported(run: RunDir, text: str) -> None:
    for name, read in (("run.json", run.provenance), ("metrics.json", run.metrics)):
        (run.path / name).write_text(text)
        with pytest.raises(RunError, match=name) as raised:
            read()
        assert raised.value.code == "file-broken"
        (run.path / name).unlink()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_refused(run: RunDir, value: float) -> None:
    run.append_event(round_event(1))
    with pytest.raises(RunError) as raised:
        run.append_event(round_event(2, drift=value))
    assert raised.value.code == "not-finite"
    with pytest.raises(RunError) as raised:
        run.write_metrics([Record("s", "m", "rate", "none", Score(value, 0, 1, 3))])
    assert raised.value.code == "not-finite"
    assert run.events() == [round_event(1)]
    assert not (run.path / "metrics.json").exists()


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_metrics(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    run.write_metrics(RECORDS)
    before = sorted(run.path.iterdir())
    monkeypatch.setattr(os, call, full_disk)
    with pytest.raises(RunError) as raised:
        run.write_metrics(RECORDS[:1])
    assert raised.value.code == "disk-full"
    assert run.metrics() == RECORDS
    assert sorted(run.path.iterdir()) == before


def test_open_restores_a_folder_after_an_interrupted_replacement(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    with atomic_folder(run.adapter) as new:
        (new / "weights").write_text("old")

    class Killed(BaseException):
        pass

    replace = os.replace

    def killed(source: Any, target: Any) -> None:
        if Path(target) == run.adapter:
            raise Killed
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, "replace", killed)
        with pytest.raises(Killed), atomic_folder(run.adapter) as new:
            (new / "weights").write_text("new")
    assert not run.adapter.exists()
    assert (RunDir.open(run.path).adapter / "weights").read_text() == "old"


def test_a_failed_event_leaves_no_incomplete_line(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.append_event(round_event(1))
    real_open = Path.open

    def half(self: Path, *args: Any, **kwargs: Any) -> Any:
        file = real_open(self, *args, **kwargs)

        class Half:
            def __enter__(self) -> Half:
                return self

            def __exit__(self, *error: object) -> None:
                file.close()

            def write(self, data: bytes) -> None:
                file.write(data[:10])
                file.flush()
                full_disk()

            def __getattr__(self, name: str) -> Any:
                return getattr(file, name)

        return Half()

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", half)
        with pytest.raises(RunError) as raised:
            run.append_event(round_event(2))
    assert raised.value.code == "disk-full"
    run.append_event(round_event(2))
    assert run.events() == [round_event(1), round_event(2)]


def test_find_adapter_accepts_a_run_or_its_folder(run: RunDir, tmp_path: Path) -> None:
    for path, code in ((run.path, "not-finished"), (tmp_path / "nowhere", "adapter-missing")):
        with pytest.raises(RunError) as raised:
            find_adapter(path)
        assert raised.value.code == code
        assert str(path) in raised.value.message
    run.adapter.mkdir()
    (run.adapter / "adapter_config.json").write_text("{}")
    assert find_adapter(run.path) == find_adapter(run.adapter) == run.adapter


def test_next_free_counts_and_stays_in_the_folder(tmp_path: Path) -> None:
    assert next_free(tmp_path, "safety-raise").name == "safety-raise-1"
    (tmp_path / "safety-raise-1").mkdir()
    assert next_free(tmp_path, "safety-raise").name == "safety-raise-2"
    for stem, name in (("../a b", "a-b-1"), ("/etc/passwd", "etc-passwd-1"), ("..", "run-1")):
        assert next_free(tmp_path, stem) == tmp_path / name


def test_open_sweeps_what_killed_processes_left(run: RunDir) -> None:
    run.checkpoints.mkdir()
    left = [run.path / ".run.json.0123abcd.new", run.checkpoints / ".a.json.0123abcd.new"]
    for file in left:
        file.touch()
    with run.locked():  # which sweeps: what is made later is another process's work
        assert not any(file.exists() for file in left)
        for file in left:
            file.touch()
        RunDir.open(run.path)
        assert all(file.exists() for file in left)
    RunDir.open(run.path)
    assert not any(file.exists() for file in left)
    assert not (run.path / ".lock").exists()


def test_a_run_that_was_removed_is_not_made_again(run: RunDir) -> None:
    shutil.rmtree(run.path)
    writes: list[Any] = [
        lambda: run.append_event(round_event(1)),
        lambda: run.write_metrics(RECORDS),
        lambda: run.write_samples([]),
        lambda: run.truncate_events(1),
        run.mark_finished,
    ]
    for write in writes:
        with pytest.raises(RunError) as raised:
            write()
        assert raised.value.code == "run-vanished"
    assert not run.path.exists()
