"""The run directory: what is written is whole, and reads back equal."""

from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retouch.core import atomic, serialization
from retouch.core.config import EditConfig
from retouch.core.errors import RunError
from retouch.core.run_dir import RunDir, atomic_folder, atomic_write, find_adapter, next_free
from retouch.core.types import Message, Record, RoundEvent, Sample, Score


def step(number: int, **changes: Any) -> RoundEvent:
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
        "safety", "attack_refusal", "edited", turns, response, "refuse", 1.0, "Sure,", "g", "e"
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
    config = EditConfig(layers=(3, 4), lr=1e-3, allow_weakening="a: 'reason'\n# more")
    run.write_config(config)
    run.write_metrics(RECORDS)
    run.write_samples([sample(), sample("two\nlines\u2028three\x85")])
    for number in (1, 2):
        run.append_event(step(number))
    again = RunDir.open(run.path)
    assert again.config() == config
    assert again.metrics() == RECORDS
    assert again.samples() == [sample(), sample("two\nlines\u2028three\x85")]
    assert again.events() == [step(1), step(2)]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(
    text=st.text(alphabet=st.characters()), value=st.floats(allow_nan=False, allow_infinity=False)
)
def test_any_text_and_number_reads_back_equal(run: RunDir, text: str, value: float) -> None:
    told = Sample("s", "m", "base", (Message("user", text),), text, "answer", value)
    run.write_samples([told, told])
    assert run.samples() == [told, told]


def test_half_a_surrogate_pair_is_written(run: RunDir) -> None:
    run.write_samples([sample("\ud800")])
    assert run.samples() == [sample("\ud800")]


def test_metrics_are_a_plain_list(run: RunDir) -> None:
    run.write_metrics(RECORDS)
    first, second = json.loads((run.path / "metrics.json").read_text("utf-8"))
    assert set(first) == {"suite", "metric", "unit", "better", "before", "after"}
    assert first["before"] == {"value": 0.1, "low": 0.05, "high": 0.2, "n": 80}
    assert second["after"] is None


def test_a_run_is_finished_once_it_says_so(run: RunDir) -> None:
    run.write_provenance({"seed": 0})
    run.write_metrics(RECORDS)
    assert not run.finished
    run.mark_finished()
    assert RunDir.open(run.path).finished
    assert run.provenance()["seed"] == 0


def test_create_leaves_what_is_there(run: RunDir) -> None:
    with pytest.raises(RunError, match="--resume"):
        RunDir.create(run.path, EditConfig(seed=1))
    assert run.config().seed == 0


def test_create_takes_an_empty_folder_and_refuses_others(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    RunDir.create(tmp_path / "empty", EditConfig())
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("dear")
    with pytest.raises(RunError, match="not empty") as inputs:
        RunDir.create(tmp_path / "other", EditConfig())
    assert "--out" in str(inputs.value)
    assert "--resume" not in str(inputs.value)
    with pytest.raises(RunError, match="is a file"):
        RunDir.create(tmp_path / "other" / "letter.txt", EditConfig())
    with pytest.raises(RunError, match="--out"):
        RunDir.create(tmp_path / "other" / "letter.txt" / "below", EditConfig())


def test_open_says_what_is_missing(tmp_path: Path, run: RunDir) -> None:
    with pytest.raises(RunError, match="does not exist"):
        RunDir.open(tmp_path / "nowhere")
    with pytest.raises(RunError, match=r"config\.yaml is missing"):
        RunDir.open(tmp_path)
    with pytest.raises(RunError, match=r"metrics\.json is missing.*--resume"):
        run.metrics()


def test_a_torn_last_event_is_dropped(run: RunDir) -> None:
    for number in (1, 2, 3):
        run.append_event(step(number))
    file = run.path / "events.jsonl"
    whole = file.read_bytes()
    for cut in range(1, len(whole) // 3):
        file.write_bytes(whole[:-cut])
        assert run.events() == [step(1), step(2)]
    run.truncate_events(2)
    run.append_event(step(3))
    assert run.events() == [step(1), step(2), step(3)]


def test_truncate_keeps_the_rounds_asked_for(run: RunDir) -> None:
    run.truncate_events(0)
    assert run.events() == []
    for number in (1, 2, 3):
        run.append_event(step(number))
    run.truncate_events(1)
    assert run.events() == [step(1)]


def test_a_broken_line_in_the_middle_is_named(run: RunDir) -> None:
    run.append_event(step(1))
    with (run.path / "events.jsonl").open("a") as file:
        file.write('{"round": 2}\n')
    run.append_event(step(3))
    with pytest.raises(RunError, match="line 2"):
        run.events()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_refused(run: RunDir, bad: float) -> None:
    run.append_event(step(1))
    with pytest.raises(RunError, match="not finite"):
        run.append_event(step(2, drift=bad))
    with pytest.raises(RunError, match="not finite"):
        run.write_metrics([Record("s", "m", "rate", "none", Score(bad, 0, 1, 3))])
    assert run.events() == [step(1)]
    assert not (run.path / "metrics.json").exists()


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_whole(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    run.write_metrics(RECORDS)
    before = sorted(run.path.iterdir())
    monkeypatch.setattr(os, call, full_disk)
    with pytest.raises(RunError, match="disk is full"):
        run.write_metrics(RECORDS[:1])
    assert run.metrics() == RECORDS
    assert sorted(run.path.iterdir()) == before


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_folder_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    folder = tmp_path / "adapter"
    with atomic_folder(folder) as new:
        (new / "weights").write_text("old")
    monkeypatch.setattr(os, call, full_disk)
    with pytest.raises(RunError, match="disk is full"), atomic_folder(folder) as new:
        (new / "weights").write_text("new")
    assert (folder / "weights").read_text() == "old"
    assert list(tmp_path.iterdir()) == [folder]


def test_a_folder_is_swapped_as_a_whole(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    with atomic_folder(folder) as new:
        (new / "one").write_text("1")
    with atomic_folder(folder) as new:
        (new / "two").write_text("2")
        assert (folder / "one").exists()
    assert [file.name for file in folder.iterdir()] == ["two"]
    with pytest.raises(KeyError), atomic_folder(folder):
        raise KeyError
    assert [file.name for file in folder.iterdir()] == ["two"]
    assert list(tmp_path.iterdir()) == [folder]


def test_a_swap_that_was_killed_is_undone(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    with atomic_folder(run.adapter) as new:
        (new / "weights").write_text("old")

    class Killed(BaseException):
        pass

    real = os.replace

    def replace(source: Any, target: Any) -> None:
        if Path(target) == run.adapter:
            raise Killed
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, "replace", replace)
        with pytest.raises(Killed), atomic_folder(run.adapter) as new:
            (new / "weights").write_text("new")
    assert not run.adapter.exists()
    assert (RunDir.open(run.path).adapter / "weights").read_text() == "old"


def test_a_full_disk_that_safetensors_reports_is_understood(tmp_path: Path) -> None:
    class SafetensorError(Exception):
        pass

    with pytest.raises(RunError, match="disk is full"), atomic_folder(tmp_path / "a"):
        raise SafetensorError("I/O error: No space left on device (os error 28)")


def test_a_failed_event_leaves_no_torn_line(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    run.append_event(step(1))
    real = Path.open

    def half(self: Path, *args: Any, **kwargs: Any) -> Any:
        file = real(self, *args, **kwargs)

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
        with pytest.raises(RunError, match="disk is full"):
            run.append_event(step(2))
    run.append_event(step(2))
    assert run.events() == [step(1), step(2)]


def test_files_are_as_readable_as_any(tmp_path: Path) -> None:
    atomic_write(tmp_path / "atomic", "text")
    (tmp_path / "plain").write_text("text")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_find_adapter_takes_a_run_or_its_folder(run: RunDir, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="--resume"):
        find_adapter(run.path)
    with pytest.raises(RunError, match="no adapter"):
        find_adapter(tmp_path / "nowhere")
    run.adapter.mkdir()
    (run.adapter / "adapter_config.json").write_text("{}")
    assert find_adapter(run.path) == find_adapter(run.adapter) == run.adapter


def test_next_free_counts_on_and_makes_a_safe_name(tmp_path: Path) -> None:
    assert next_free(tmp_path, "safety-raise").name == "safety-raise-1"
    (tmp_path / "safety-raise-1").mkdir()
    assert next_free(tmp_path, "safety-raise").name == "safety-raise-2"
    assert next_free(tmp_path, "../a b").parent == tmp_path
    assert next_free(tmp_path, "../a b").name == "a-b-1"


def test_plain_events_say_what_they_are() -> None:
    assert serialization.plain_event(step(1))["event"] == "round"
