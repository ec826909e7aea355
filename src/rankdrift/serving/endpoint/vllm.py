"""A vLLM server of a base model with adapters, started here and ended with the benchmark."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

from rankdrift.errors import UserError
from rankdrift.serving.deployed import Tuned

READY, ASK_AGAIN, END = 900.0, 1.0, 30.0
"""Seconds a server has to load and compile, between two questions, and to end."""
BASE = "base"


def command(base: Path, adapters: Sequence[Tuned], port: int, further: tuple[str, ...] = ()) -> list[str]:
    """Return the command that serves the base model as ``base``, and each adapter by its arm's name."""
    found = ["vllm", "serve", str(base), "--served-model-name", BASE, "--port", str(port)]
    if adapters:
        ranks = [int(adapter.config["r"]) for adapter in adapters]
        found += ["--enable-lora", "--max-loras", str(len(adapters)), "--max-lora-rank", str(max(ranks))]
        found += ["--lora-modules", *(f"{adapter.arm}={adapter.export}" for adapter in adapters)]
    return [*found, *further]


@contextlib.contextmanager
def serving(asked: list[str], port: int, log: Path, ready: float = READY) -> Iterator[str]:
    """Run a server and give its address once it is healthy.

    Raises UserError where vLLM is not installed, the server ends, or is not healthy in time.
    """
    if not shutil.which(asked[0]):
        raise UserError(f"{asked[0]}: no such command; pip install vllm, or give --url of a server that runs")
    url = f"http://127.0.0.1:{port}"
    with log.open("wb") as handle, subprocess.Popen(asked, stdout=handle, stderr=handle) as server:
        try:
            deadline = time.monotonic() + ready
            while not _is_healthy(url):
                if server.poll() is not None:
                    raise UserError(f"{asked[0]} ended with exit code {server.returncode}: see {log}")
                if time.monotonic() > deadline:
                    raise UserError(f"{asked[0]} is not ready after {ready:.0f} s: see {log}")
                time.sleep(ASK_AGAIN)
            yield url
        finally:
            server.terminate()
            try:
                server.wait(END)
            except subprocess.TimeoutExpired:
                server.kill()


def _is_healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
