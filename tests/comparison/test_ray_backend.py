"""Comparisons on a Ray cluster on this machine: resources, results, and workers that die."""

from __future__ import annotations

import os
import secrets
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import retouch
from helpers.any_model import for_any_model
from helpers.crashing_plan import crashing_grid, use_crashing_grid
from helpers.fake_methods import small_concept
from retouch.comparison import parallel
from retouch.comparison.compare import Comparison
from retouch.comparison.grid import Grid, make_grid
from retouch.comparison.parallel import Allocation
from retouch.comparison.ray_backend import Cluster, RayPool, allocate, connect, import_ray
from retouch.core.config import LoadConfig
from retouch.core.errors import ConfigError, ModelError, RunError
from retouch.core.types import Event, StageEvent

GPU_NODE = {"CPU": 32.0, "GPU": 4.0}


@pytest.fixture(scope="module", autouse=True)
def ray_token() -> Iterator[None]:
    """Ray's token in the environment, since Ray would write one into the home folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        yield


def scores(comparison: Comparison) -> list[dict[str, Any]]:
    """The scores of all points, without the time that they took."""
    table = comparison.to_pandas().drop(columns="seconds")
    rows: list[dict[str, Any]] = table.to_dict("records")
    return rows


def one_point_grid(model: str = "pocket") -> Grid:
    return make_grid(model, for_any_model("pocket-safety"), "raise", ["none"], 1, [2], limit=2)


@pytest.mark.parametrize(
    ("cluster", "nodes", "allocation"),
    [
        # The CPUs are divided among the workers.
        (Cluster("local", 2), [{"CPU": 8.0}], Allocation(2, 4, 0.0)),
        (Cluster("local", 3), [{"CPU": 8.0}], Allocation(3, 2, 0.0)),
        # A worker runs on one node; a node without CPUs runs none.
        (Cluster("auto", 1), [{"CPU": 4.0}, {"CPU": 8.0}, {}], Allocation(1, 8, 0.0)),
        (Cluster("auto", 5), [{"CPU": 8.0}, {"CPU": 8.0}], Allocation(5, 2, 0.0)),
        (Cluster("auto", 99), [{"CPU": 4.0}], Allocation(4, 1, 0.0)),
        # One GPU each where there are any, unless the device says otherwise.
        (Cluster("auto", 8), [GPU_NODE, GPU_NODE], Allocation(8, 8, 1.0)),
        (Cluster("auto", 99), [GPU_NODE, {"CPU": 64.0}], Allocation(4, 8, 1.0)),
        (Cluster("auto", 2, device="cpu"), [GPU_NODE], Allocation(2, 16, 0.0)),
        (Cluster("auto", 99, gpus=0.1), [{"CPU": 64.0, "GPU": 1.0}], Allocation(10, 6, 0.1)),
        (Cluster("auto", 99, cpus=4, gpus=2), [GPU_NODE, GPU_NODE], Allocation(4, 4, 2)),
    ],
)
def test_resources_of_a_worker(
    cluster: Cluster, nodes: list[dict[str, float]], allocation: Allocation
) -> None:
    assert allocate(cluster, nodes) == allocation


@pytest.mark.parametrize(
    "cluster", [Cluster("auto", cpus=64), Cluster("auto", gpus=8), Cluster("auto", device="cuda")]
)
def test_too_few_resources_for_one_worker_are_an_error(cluster: Cluster) -> None:
    nodes = [{"CPU": 32.0}] if cluster.device == "cuda" else [GPU_NODE]
    with pytest.raises(ConfigError, match=r"cpus_per_job.*gpus_per_job") as error:
        allocate(cluster, nodes)
    assert error.value.code == "resources-missing"


@pytest.mark.parametrize(
    ("argument", "device", "options"),
    [
        ("ray", "auto", {"ray": "ray://head:10001"}),
        ("ray.*ray start", "auto", {"ray": "127.0.0.1:1"}),
        ("ray", "auto", {"ray": "nowhere"}),
        ("cpus_per_job.*0", "auto", {"ray": "local", "cpus_per_job": 0}),
        (r"gpus_per_job.*1\.5", "auto", {"ray": "local", "gpus_per_job": 1.5}),
        ("gpus_per_job.*cuda", "cuda", {"ray": "local", "gpus_per_job": 0}),
        ("device.*cuda:1", "cuda:1", {"ray": "local"}),
        ("gpus_per_job.*ray", "auto", {"gpus_per_job": 1}),
    ],
)
def test_an_error_names_the_argument(
    argument: str, device: str, options: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=f"(?s){argument}"):
        retouch.compare(
            "pocket",
            methods=["none"],
            seeds=1,
            output_dir=tmp_path / "out",
            load_config=LoadConfig(device=device),
            **options,
        )


def test_a_missing_ray_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'retouch\[ray\]'") as error:
        retouch.compare("pocket", methods=["none"], ray="local")
    assert error.value.code == "library-missing"


@pytest.mark.slow
def test_a_cluster_gives_the_results_of_one_process_even_if_a_worker_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    ray = import_ray()
    # Equal bits need equal numbers of threads.
    threads, handler = torch.get_num_threads(), signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    torch.set_num_threads(1)
    events: list[Event] = []
    options: dict[str, Any] = {"methods": ["none", "self-reminder"], "seeds": 1}
    options |= {"num_examples": 2, "limit": 2, "on_event": events.append}
    options |= {"concept": small_concept(tmp_path / "pack")}
    try:
        one = retouch.compare("pocket", output_dir=tmp_path / "one", **options)
    finally:
        torch.set_num_threads(threads)
    use_crashing_grid(monkeypatch, tmp_path / "marks", kills=1)
    out = tmp_path / "cluster"
    events.clear()
    capfd.readouterr()
    cluster = retouch.compare("pocket", output_dir=out, jobs=2, ray="local", **options)
    assert (tmp_path / "marks" / "0").exists()
    assert scores(one) == scores(cluster)
    assert [result.values for result in one.results] == [
        result.values for result in cluster.results
    ]
    details = [event.detail for event in events if isinstance(event, StageEvent)]
    assert any("2 at once, 1 CPU each" in detail for detail in details)
    assert sum("a worker died" in detail for detail in details) == 1
    # The cluster that was started has been shut down and has printed nothing.
    assert not ray.is_initialized()
    assert signal.getsignal(signal.SIGTERM) is handler
    assert "PYTHONPATH" not in os.environ or "crashing_plan" not in os.environ["PYTHONPATH"]
    assert capfd.readouterr() == ("", "")
    names = {file.name for file in out.rglob("*") if file.is_file()}
    assert names == {
        *("none-2-0.json", "self-reminder-2-0.json"),
        *("compare.json", "compare.md", "compare.png"),
    }


@pytest.fixture(scope="module")
def running_ray() -> Iterator[Any]:
    """A cluster that is running, and that this process is connected to."""
    ray = import_ray()
    with connect(Cluster("local", 1, 1, 0, "cpu")):
        yield ray


def run_points(grid: Grid, events: list[Event]) -> None:
    with connect(Cluster("auto")) as allocation:
        list(RayPool(grid, allocation).run(grid.points(), events.append))


@pytest.mark.slow
def test_an_error_of_a_worker_is_raised_and_a_running_cluster_goes_on(running_ray: Any) -> None:
    grid = one_point_grid("absent/model")
    with pytest.raises(ModelError, match="absent/model") as error:
        run_points(grid, [])
    assert type(error.value) is ModelError  # not a class that Ray has derived from it
    assert error.value.message
    assert running_ray.is_initialized()


@pytest.mark.slow
def test_a_point_that_kills_every_worker_ends_the_comparison(
    running_ray: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel, "MAX_DEATHS", 1)
    grid = crashing_grid(one_point_grid(), tmp_path / "marks", kills=9)
    events: list[Event] = []
    with pytest.raises(RunError, match=r"1 times while running none, 2 examples, seed 0") as error:
        run_points(grid, events)
    assert error.value.code == "worker-killed"
    assert len(list((tmp_path / "marks").iterdir())) == 1
    assert len(events) == 1  # the reserved resources; no worker was replaced
