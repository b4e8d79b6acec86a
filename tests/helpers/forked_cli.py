"""Command lines in processes of their own, forked from one that has imported the libraries.

A test kills them, or limits what they may use, without the seconds that an import takes each time.
Run as a module, this file is the process that forks: it reads requests, one JSON object a line.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from threading import Timer
from typing import Any, NoReturn

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Child:
    """A running command.

    Attributes:
        pid: of its process.
        output: the file that its stdout and stderr go to.
    """

    server: ForkServer
    pid: int
    output: Path

    def kill(self) -> None:
        """Kill it as a system does, with no chance to clean up."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    @property
    def exit_code(self) -> int | None:
        """Its exit code, or the signal that ended it as a negative number; None while it runs."""
        return self.server.call({"exit_code": self.pid})

    def wait(self) -> int:
        """Its exit code, once it has ended."""
        while (code := self.exit_code) is None:
            time.sleep(0.005)
        return code

    @property
    def text(self) -> str:
        """What it has printed."""
        return self.output.read_text("utf-8") if self.output.exists() else ""


class ForkServer:
    """Starts commands; a context manager."""

    def __init__(self, folder: Path, **env: str) -> None:
        """Start the process that forks; outputs go into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._started = folder, 0
        paths = [str(ROOT / "src"), str(ROOT / "tests"), str(ROOT)]
        # One thread: a process with several cannot be forked.
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths), **env}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "helpers.forked_cli"],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.call({})  # answered once the libraries are imported

    def __enter__(self) -> ForkServer:
        return self

    def __exit__(self, *error: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def call(self, request: Mapping[str, Any]) -> Any:
        """The answer to a request."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def start(self, *arguments: object, **limits: Any) -> Child:
        """Start `retouch ARGUMENTS`.

        `limits` in bytes: `file_size` of a file that it may write, `more_memory` of address space
        beyond what it has at the start. `folder` is its working directory and its home, `user` the
        id of the user that it runs as. It is killed
        `kill_after` seconds after the first event of one of the stages `kill_at`.
        """
        self._started += 1
        output = self._folder / f"{self._started}.txt"
        words = [str(one) for one in arguments]
        pid = self.call({"arguments": words, "output": str(output), "limits": limits})
        return Child(self, pid, output)

    def run(self, *arguments: object, **limits: Any) -> Child:
        """Run `retouch ARGUMENTS` to its end, which is a success."""
        child = self.start(*arguments, **limits)
        assert child.wait() == 0, child.text
        return child


def _serve() -> None:
    """Answer requests until there are no more."""
    import torch

    import retouch.cli.progress
    import retouch.pipeline  # noqa: F401  (what a command imports)
    from retouch.models import adapters  # noqa: F401

    __import__("peft")
    torch.set_num_threads(1)
    codes: dict[int, int] = {}
    for line in sys.stdin:
        request = json.loads(line)
        answer = None
        if "exit_code" in request:
            pid = request["exit_code"]
            if pid not in codes:
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    codes[pid] = os.waitstatus_to_exitcode(status)
            answer = codes.get(pid)
        elif "warm_up" in request:
            _warm_up(request["warm_up"])
        elif request:
            answer = os.fork()
            if answer == 0:
                _run(request)
        print(json.dumps(answer), flush=True)


def _warm_up(commands: Sequence[Sequence[str]]) -> None:
    """Run commands in this process, so that it has imported what they use."""
    from retouch.cli.app import app

    for words in commands:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()), suppress(SystemExit):
            app(list(words))


def _run(request: Mapping[str, Any]) -> NoReturn:
    """Run a command in this process, which ends with it."""
    code: object = 1
    try:
        from retouch.cli.app import main

        output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        for stream in (1, 2):
            os.dup2(output, stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        _limit(**request["limits"])
        sys.argv = ["retouch", *request["arguments"]]
        main()
        code = 0
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code if isinstance(code, int) else 0 if code is None else 1)


def _limit(
    *,
    file_size: int = 0,
    more_memory: int = 0,
    folder: str = "",
    user: int = 0,
    kill_at: Sequence[str] = (),
    kill_after: float = 0,
) -> None:
    """Limit this process."""
    if kill_at:
        from retouch.cli.progress import EditProgress

        show = EditProgress.__call__

        def show_and_kill(self: EditProgress, event: Any) -> None:
            show(self, event)
            stage = getattr(event, "stage", "") or f"round {event.round}"
            if stage in kill_at:
                Timer(kill_after, os.kill, (os.getpid(), signal.SIGKILL)).start()

        EditProgress.__call__ = show_and_kill  # type: ignore[method-assign]
    if folder:
        os.chdir(folder)
        os.environ.update(HOME=folder, RETOUCH_CACHE=f"{folder}/cache")
    if file_size:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, resource.RLIM_INFINITY))
    if more_memory:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        size = pages * resource.getpagesize() + more_memory
        resource.setrlimit(resource.RLIMIT_AS, (size, resource.RLIM_INFINITY))
    if user:
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)


if __name__ == "__main__":
    _serve()
    os._exit(0)  # at once: the libraries take long to be torn down
