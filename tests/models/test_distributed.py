"""Two processes make the same edit as one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from helpers.distributed_edit import VARIANTS, run_edits
from helpers.tiny_models import tiny_model, tiny_tokenizer
from retouch.core.config import LoadConfig
from retouch.core.errors import ConfigError
from retouch.core.process import launched_processes, launched_rank
from retouch.models import distributed
from retouch.models.load import load

TESTS = Path(__file__).parent.parent

TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc_per_node=2"]
# `--multi_gpu` is accelerate's option for several processes on one machine, with GPUs or without.
ACCELERATE = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
ACCELERATE += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
ACCELERATE += ["--main_process_port", "0"]


def launch(launcher: list[str], *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command in two processes on this machine."""
    paths = [str(TESTS), str(TESTS.parent / "src"), os.environ.get("PYTHONPATH", "")]
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
def edits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The adapters of one process, and of two with replicated and with sharded weights."""
    path = tmp_path_factory.mktemp("distributed")
    tiny_model().save_pretrained(path / "model")
    tiny_tokenizer().save_pretrained(path / "model")
    run_edits(path / "model", path / "single", fsdp=False)
    script = TESTS / "helpers" / "distributed_edit.py"
    done = launch(TORCHRUN, str(script), str(path / "model"), str(path))
    assert done.returncode == 0, done.stderr[-3000:]
    return path


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", ["replicated", "sharded"])
def test_two_processes_make_the_edit_of_one(edits: Path, kind: str, variant: str) -> None:
    single = load_file(edits / "single" / f"{variant}-0.safetensors")
    first, second = (load_file(edits / kind / f"{variant}-{r}.safetensors") for r in range(2))
    assert any(float(value.abs().max()) > 1e-3 for name, value in single.items() if "_B" in name)
    for name, value in single.items():
        assert torch.allclose(first[name], value, atol=1e-4), name
        assert torch.equal(first[name], second[name]), name


def test_one_process_keeps_everything() -> None:
    assert (distributed.world_size(), distributed.rank()) == (1, 0)
    assert (launched_processes(), launched_rank()) == (1, 0)
    tensor = torch.ones(2)
    distributed.all_reduce([tensor])
    assert tensor.tolist() == [1.0, 1.0]
    assert distributed.broadcast("x") == "x"
    assert distributed.all_gather({1: 2}) == {1: 2}
    assert list(distributed.shard([1, 2, 3])) == [1, 2, 3]
    assert distributed.local_device("cuda") == "cuda"


def test_sharding_takes_several_processes(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ConfigError) as raised:
        load(str(tmp_path), LoadConfig(fsdp=True))
    assert raised.value.code == "single-process"


@pytest.mark.slow
def test_the_command_line_writes_one_run_and_prints_once(tmp_path: Path) -> None:
    data = "--num-examples 6 --num-retain 6 --prefill-tokens 0 --limit 2"
    settings = f"{data} --rounds 1 --steps-per-round 2"
    edit = ["-m", "retouch", "edit", "pocket", "--out", str(tmp_path / "run")]
    done = launch(ACCELERATE, *edit, *settings.split(), "--suites", "concept", "--max-drift", "9")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("loading pocket") == done.stdout.count("The run:") == 1
    assert len((tmp_path / "run" / "events.jsonl").read_text().splitlines()) == 1
    assert (tmp_path / "run" / "report.html").is_file()
    again = launch(ACCELERATE, *edit)
    assert again.returncode != 0
    assert again.stderr.count("already contains a run") == 1
