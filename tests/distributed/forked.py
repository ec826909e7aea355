"""Run scripts in processes forked from one that has imported what they import.

Python, torch, DeepSpeed and transformers take a core seven seconds to start. So each process that runs tests
starts one server, ``python forked.py``, the first time that it needs ranks. The server reads orders, a line
of JSON each, forks whoever carries one out, and answers with the exit code, a line as well.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

# the last two are what training imports late; the last one brings torch's compiler
IMPORTED_ONCE = (
    *("rankdrift.training.run", "rankdrift.cli.main", "peft", "pandas", "transformers.models.llama"),
    *("tensorboard.summary.writer.event_file_writer", "deepspeed.runtime.zero.muon.muon_optimizer"),
)
COMMAND = Path(__file__).resolve().parents[2] / "src" / "rankdrift" / "__main__.py"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_command(*arguments: object, folder: Path | None = None, timeout: float = 280) -> tuple[int, str]:
    """Run a ``rankdrift`` command as a process of its own, in a folder; return as ``run_forked`` does."""
    return run_forked(COMMAND, *map(str, arguments), folder=folder, timeout=timeout)


def run_forked(
    script: Path,
    *arguments: str,
    ranks: int = 0,
    folder: Path | None = None,
    timeout: float = 500,
    **variables: str,
) -> tuple[int, str]:
    """Run a script with more environment variables; return its exit code and what it has printed.

    With ``ranks`` it is run as every rank of a process group; the code is then that of a rank that failed.
    """
    with tempfile.NamedTemporaryFile("r", prefix="rankdrift-forked-") as log:
        order = {"script": str(script), "arguments": arguments, "ranks": ranks, "log": log.name}
        order |= {"folder": str(folder or Path.cwd())}
        order |= {"environment": os.environ | variables | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}}
        return _carried_out(order, timeout), log.read()


def _carried_out(order: dict[str, Any], timeout: float) -> int:
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(json.dumps(order) + "\n")
    server.stdin.flush()
    if not select.select([server.stdout], [], [], timeout)[0]:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        _server.cache_clear()
        raise TimeoutError(f"{order['script']} takes longer than {timeout:.0f} s")
    return int(server.stdout.readline())


@functools.cache
def _server() -> subprocess.Popen[str]:
    """Start the server; it ends when this process does, however that ends: its pipe is closed then."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    command = [sys.executable, str(Path(__file__))]
    server = subprocess.Popen(command, env=environment, start_new_session=True, **pipes)
    atexit.register(_end, server)
    return server


def _end(server: subprocess.Popen[str]) -> None:
    assert server.stdin is not None
    server.stdin.close()
    server.wait()


def import_all() -> None:
    """Import what ranks would import, before they are forked."""
    for name in IMPORTED_ONCE:
        importlib.import_module(name)
    gc.freeze()  # ZeRO-3 collects garbage in every run, and would look at all that was imported


def serve() -> None:
    import_all()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is printed is no answer
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _carry_out(json.loads(line))
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(status, file=answers, flush=True)


def _carry_out(order: dict[str, Any]) -> None:
    """Be the process that an order asks for, to its end."""
    log, nothing = os.open(order["log"], os.O_WRONLY | os.O_APPEND), os.open(os.devnull, os.O_RDONLY)
    for number, place in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(number, place)
    os.environ.clear()
    os.environ.update(order["environment"])
    tempfile.tempdir = None  # that of the server, which may have another $TMPDIR
    sys.argv = [order["script"], *order["arguments"]]
    os.chdir(order["folder"])
    if order["ranks"]:
        _leave(_fork_ranks(order["script"], order["ranks"]))
    _leave(_run(order["script"]))


def _fork_ranks(script: str, ranks: int) -> int:
    """Run a script as every rank of a process group; return 0, or the exit code of a rank that failed."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    # LOCAL_SIZE as the launcher sets it: else DeepSpeed opens no shared memory
    shared |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_SIZE"), ranks)
    for rank in range(ranks):
        if os.fork() == 0:
            here = shared | {"RANK": rank, "LOCAL_RANK": rank}
            os.environ.update({key: str(value) for key, value in here.items()})
            _leave(_run(script))
    ended = [os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(ranks)]  # the others leave when one does
    return next((status for status in ended if status), 0)


def _run(script: str) -> int:
    """Run a script as Python would; return its exit code."""
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            return error.code or 0
        print(error.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _leave(status: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    serve()
