"""Comparisons on a Ray cluster on this machine: what is reserved, what is found, who dies."""

from __future__ import annotations

import builtins
import os
import re
import secrets
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import retouch
from helpers.crashing_plan import deadly
from retouch.cli.app import app
from retouch.comparison import compare as comparing
from retouch.comparison import ray_backend
from retouch.comparison.compare import Comparison
from retouch.comparison.grid import Grid, make_grid
from retouch.comparison.parallel import Worker, unwrap
from retouch.comparison.ray_cluster import Cluster, Share, joined, make_cluster, share_out
from retouch.core.errors import ConfigError, ModelError, RunError
from retouch.core.types import StageEvent
from helpers.fake_methods import model, small_concept

GPUS = {"CPU": 32.0, "GPU": 4.0}
KINDS = ("json", "md", "png")


@pytest.fixture(scope="module", autouse=True)
def own_token() -> Iterator[None]:
    """Ray's password: given to it here, since it would lay one down in the home folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        yield


def records(done: Comparison) -> list[dict[str, Any]]:
    return [{**record, "seconds": 0} for record in done.records()]


def plan_of(name: str = "pocket") -> Grid:
    return make_grid(name, "safety", "raise", ["none"], 1, [2], limit=2)


@pytest.mark.parametrize(
    ("cluster", "nodes", "share"),
    [
        # What local processes get: the cores shared out.
        (Cluster("local", 2), [{"CPU": 8.0}], Share(2, 4, 0.0)),
        (Cluster("local", 3), [{"CPU": 8.0}], Share(3, 2, 0.0)),
        # A worker lies on one node, and a head without processors takes none.
        (Cluster("auto", 1), [{"CPU": 4.0}, {"CPU": 8.0}, {}], Share(1, 8, 0.0)),
        (Cluster("auto", 5), [{"CPU": 8.0}, {"CPU": 8.0}], Share(5, 2, 0.0)),
        (Cluster("auto", 99), [{"CPU": 4.0}], Share(4, 1, 0.0)),
        # A GPU each where there are any, unless the device says otherwise.
        (Cluster("auto", 8), [GPUS, GPUS], Share(8, 8, 1.0)),
        (Cluster("auto", 99), [GPUS, {"CPU": 64.0}], Share(4, 8, 1.0)),
        (Cluster("auto", 2, device="cpu"), [GPUS], Share(2, 16, 0.0)),
        (Cluster("auto", 99, gpus=0.1), [{"CPU": 64.0, "GPU": 1.0}], Share(10, 6, 0.1)),
        (Cluster("auto", 99, cpus=4, gpus=2), [GPUS, GPUS], Share(4, 4, 2)),
    ],
)
def test_what_a_worker_is_given(
    cluster: Cluster, nodes: list[dict[str, float]], share: Share
) -> None:
    assert share_out(cluster, nodes) == share


@pytest.mark.parametrize(
    "cluster", [Cluster("auto", cpus=64), Cluster("auto", gpus=8), Cluster("auto", device="cuda")]
)
def test_no_room_for_a_worker_is_said_at_once(cluster: Cluster) -> None:
    nodes = [{"CPU": 32.0}] if cluster.device == "cuda" else [GPUS]
    with pytest.raises(ConfigError, match=r"no node.*--cpus-per-job or --gpus-per-job"):
        share_out(cluster, nodes)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--ray", "ray://head:10001"], "--ray"),
        (["--ray", "127.0.0.1:1"], "--ray.*ray start"),
        (["--ray", "nowhere"], "--ray"),
        (["--ray", "local", "--cpus-per-job", "0"], "--cpus-per-job"),
        (["--ray", "local", "--gpus-per-job", "1.5"], "--gpus-per-job"),
        (["--ray", "local", "--gpus-per-job", "0", "--device", "cuda"], "--gpus-per-job"),
        (["--ray", "local", "--device", "cuda:1"], "--device cuda"),
        (["--gpus-per-job", "1"], "--gpus-per-job.*--ray"),
    ],
)
def test_bad_input_is_named(options: list[str], says: str, tmp_path: Path) -> None:
    rest = ["--methods", "none", "--seeds", "1", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, ["compare", "pocket", *options, *rest])
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert re.search(f"Error: .*{says}", " ".join(result.stderr.split()))


def test_a_loaded_model_and_a_missing_library_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="editable model"):
        retouch.compare(model(), methods=["none"], ray="local")
    real = builtins.__import__

    def without(name: str, *more: Any) -> Any:
        if name == "ray":
            raise ModuleNotFoundError(name="ray")
        return real(name, *more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"pip install 'retouch\[ray\]'"):
        retouch.compare("pocket", methods=["none"], ray="local")


def test_a_fault_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    grid, threads = plan_of(), torch.get_num_threads()
    monkeypatch.setattr("retouch.comparison.parallel.load", lambda name: 1 // 0)
    point = grid.points()[0]
    with pytest.raises(RuntimeError, match=r"(?s)none, 2 labels, seed 0.*Traceback.*ZeroDivision"):
        unwrap(Worker(grid, threads).answer(point), point)


@pytest.mark.slow
def test_a_cluster_finds_what_one_process_finds_though_a_worker_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import ray

    # For the same bits, as many threads as a worker has.
    threads, before = torch.get_num_threads(), signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    torch.set_num_threads(1)
    options: dict[str, Any] = {"methods": ["none", "self-reminder"], "seeds": 1, "labels": 2}
    options |= {"limit": 2, "concept": small_concept(tmp_path / "pack")}
    try:
        alone = retouch.compare("pocket", out=tmp_path / "one", **options)
    finally:
        torch.set_num_threads(threads)

    def plan_to_kill(*more: Any, **named: Any) -> Grid:
        return deadly(make_grid(*more, **named), tmp_path / "marks", kills=1)

    monkeypatch.setattr(comparing, "make_grid", plan_to_kill)
    events: list[StageEvent] = []
    out = tmp_path / "two"
    several = retouch.compare(
        "pocket", out=out, jobs=2, ray="local", on_event=events.append, **options
    )
    assert (tmp_path / "marks" / "0").exists()
    assert records(alone) == records(several)
    assert [one.rows for one in alone.results] == [one.rows for one in several.results]
    assert any("2 at once, 1 CPU each" in event.detail for event in events)
    assert sum("was lost" in event.detail for event in events) == 1
    # Nothing is left of the cluster that was started, and it said nothing.
    assert not ray.is_initialized()
    assert signal.getsignal(signal.SIGTERM) is before
    assert "PYTHONPATH" not in os.environ or "deadly" not in os.environ["PYTHONPATH"]
    assert capfd.readouterr() == ("", "")
    names = {file.name for file in out.rglob("*") if file.is_file()}
    assert names == {"none-2-0.json", "self-reminder-2-0.json", *(f"compare.{x}" for x in KINDS)}


@pytest.fixture(scope="module")
def running() -> Iterator[Any]:
    """A cluster that runs already, and that this program has joined."""
    import ray

    with joined(make_cluster("local", 1, 1, 0, "cpu")):
        yield ray


@pytest.mark.slow
def test_what_the_user_can_mend_comes_through_and_a_cluster_that_was_there_stays(
    running: Any,
) -> None:
    grid = plan_of("absent/model")
    with pytest.raises(ModelError, match="absent/model") as inputs:
        list(ray_backend.make_cells(grid, grid.points(), Cluster("auto")))
    assert inputs.type is ModelError  # and no error of Ray's that looks like one
    assert inputs.value.message
    assert running.is_initialized()


@pytest.mark.slow
def test_a_cell_that_kills_every_worker_ends_the_comparison(
    running: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew, "TRIES", 1)
    grid, said = deadly(plan_of(), tmp_path / "marks", kills=9), []
    with pytest.raises(RunError, match=r"none, 2 labels, seed 0 was lost 1 times.*fewer --jobs"):
        list(ray_backend.make_cells(grid, grid.points(), Cluster("auto"), said.append))
    assert len(list((tmp_path / "marks").iterdir())) == 1
    assert len(said) == 1  # what is reserved; nobody was put in its place
