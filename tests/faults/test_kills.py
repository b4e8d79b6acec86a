"""A process that is killed, at any moment of any stage: the next one ends in the same files.

`make faults` kills 50 times at random moments, and these tests 3 times.
"""

from __future__ import annotations

import os
import random
import re
import time
from pathlib import Path
from typing import Any

from helpers.forked_cli import Child, ForkServer
from helpers.tiny_run import results, write_inputs
from retouch.core.run_dir import RunDir

KILLS = int(os.environ.get("RETOUCH_TEST_KILLS", "3"))
STAGES = (
    *("load", "responses", "layers", "contrast", "cache", "round 1", "round 2", "round 3"),
    *("strength", "measure", "write"),
)


def start(server: ForkServer, whole: Any, out: Path, **limits: Any) -> Child:
    """Start the edit, or continue it if it has begun."""
    if (out / "config.yaml").exists():
        return server.start("edit", whole.options[0], "--resume", out, **limits)
    return server.start("edit", *whole.options, "--out", out, **limits)


def finish(server: ForkServer, whole: Any, out: Path) -> None:
    """Continue the edit to its end, and compare it with the whole one."""
    child = start(server, whole, out)
    assert child.wait() == 0, child.text
    assert RunDir.open(out).finished
    found, expected = results(out), results(whole.path)
    assert found.keys() == expected.keys()
    assert [name for name in found if found[name] != expected[name]] == []


def test_a_run_that_is_killed_in_every_stage(
    server: ForkServer, whole: Any, tmp_path: Path
) -> None:
    out, rng, killed = tmp_path / "run", random.Random(0), 0
    for number in range(len(STAGES)):
        # In this stage, or in a later one if it was done already when the last process was killed.
        limits = {"kill_at": STAGES[number:], "kill_after": rng.uniform(0, 0.01)}
        child = start(server, whole, out, **limits)
        code = child.wait()
        assert code in (-9, 0), child.text
        killed += code == -9
        if STAGES[number] == "round 2":
            # What was done before is not done again.
            assert "resuming after round" in child.text
            assert not re.search(r"(generating|causal patching)  \d", child.text)
    assert killed >= len(STAGES) - 2
    finish(server, whole, out)


def test_a_run_that_is_killed_at_random_moments(
    server: ForkServer, whole: Any, tmp_path: Path
) -> None:
    rng, killed, number = random.Random(1), 0, 0
    while killed < KILLS:
        out = tmp_path / str(number)
        child = start(server, whole, out)
        end = time.monotonic() + rng.uniform(0, whole.seconds)
        while time.monotonic() < end and child.exit_code is None:
            time.sleep(0.002)
        if child.exit_code is None:
            child.kill()
        code = child.wait()
        assert code in (-9, 0), child.text
        killed += code == -9
        if code == 0 or killed == KILLS:
            finish(server, whole, out)
            number += 1


def test_two_equal_edits_give_equal_files(server: ForkServer, whole: Any, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere"
    options = write_inputs(other)
    with ForkServer(tmp_path / "outputs", PYTHONHASHSEED="1") as another:
        another.run("edit", *options, "--out", other / "run")
        for form in ("peft", "merged"):
            another.run(
                *("export", other / "run", "--format", form, "--out", other / form),
                *(("--model", options[0]) if form == "merged" else ()),
            )
    found, expected = results(other / "run"), results(whole.path)
    for files in (found, expected):
        del files["config.yaml"]  # the one file that has the paths of this machine
    assert found.keys() == expected.keys()
    assert [name for name in found if found[name] != expected[name]] == []
    exported = [*(other / "peft").rglob("*"), *(other / "merged").rglob("*")]
    named = dict(found)
    named |= {str(file): file.read_bytes() for file in exported if file.is_file()}
    assert [name for name, content in named.items() if str(tmp_path).encode() in content] == []
