from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from retouch.core.launch import launched_processes, launched_rank
from retouch.models import distributed
from helpers.tiny_models import tiny_model, tiny_tokenizer
from helpers.distributed_edit import WAYS, edited

HERE = Path(__file__).parent


TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc_per_node=2"]
# `--multi_gpu` is how accelerate is told of several processes on one machine, GPUs or not.
ACCELERATE = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
ACCELERATE += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
ACCELERATE += ["--main_process_port", "0"]


def launch(launcher: list[str], *command: str) -> subprocess.CompletedProcess[str]:
    """Two processes on this machine."""
    paths = [str(HERE), str(HERE.parent / "src"), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }
    return subprocess.run(
        [sys.executable, "-m", *launcher, *command],
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The adapters that one process makes, and two, with rows or with the model shared out."""
    path = tmp_path_factory.mktemp("ranks")
    tiny_model().save_pretrained(path / "model")
    tiny_tokenizer().save_pretrained(path / "model")
    edited(path / "model", path / "alone", shard=False)
    done = launch(TORCHRUN, str(HERE / "distributed_edit.py"), str(path / "model"), str(path))
    assert done.returncode == 0, done.stderr[-3000:]
    return path


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["shared", "sharded"])
def test_two_processes_make_the_edit_of_one(made: Path, kind: str, way: str) -> None:
    alone = load_file(made / "alone" / f"{way}-0.safetensors")
    first, second = (load_file(made / kind / f"{way}-{rank}.safetensors") for rank in range(2))
    assert any(float(value.abs().max()) > 1e-3 for name, value in alone.items() if "_B" in name)
    for name, value in alone.items():
        assert torch.allclose(first[name], value, atol=1e-4), name
        assert torch.equal(first[name], second[name]), name


def test_alone_nothing_is_shared_out() -> None:
    assert (distributed.world_size(), distributed.rank()) == (1, 0)
    assert (launched_processes(), launched_rank()) == (1, 0)
    tensor = torch.ones(2)
    distributed.all_reduce([tensor])
    assert tensor.tolist() == [1.0, 1.0]
    assert distributed.broadcast("x") == "x"
    assert distributed.all_gather({1: 2}) == {1: 2}
    assert list(distributed.shard([1, 2, 3])) == [1, 2, 3]


@pytest.mark.slow
def test_the_command_line_writes_one_run_and_speaks_once(tmp_path: Path) -> None:
    small = "--labels 6 --retain 6 --rounds 1 --measure own --measure-rows 2 --drift-guard 9"
    edit = ["-m", "retouch", "edit", "pocket", "--out", str(tmp_path / "run")]
    done = launch(ACCELERATE, *edit, *small.split())
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("The run:") == 1
    assert len((tmp_path / "run" / "events.jsonl").read_text().splitlines()) == 1
    assert (tmp_path / "run" / "report.html").is_file()
    again = launch(ACCELERATE, *edit)
    assert again.returncode != 0
    assert again.stderr.count("is not empty") == 1
