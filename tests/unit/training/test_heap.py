"""The heap of a CPU rank, each case in a process of its own: it is set once and for all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAPS = """
import ctypes, threading
import pandas, torch
held, done = threading.Barrier(3), threading.Barrier(3)
def take():
    block = torch.ones(2**20)
    held.wait()
    done.wait()
threads = [threading.Thread(target=take) for _ in range(2)]
[thread.start() for thread in threads]
held.wait()
libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p
described = ctypes.c_void_p(libc.fopen({file!r}, b"w"))
libc.malloc_info(0, described)
libc.fclose(described)
done.wait()
print(torch.empty(2**20).data_ptr() % 4096)
"""
FAULTS = """
import resource
from rankdrift.training import heap
heap.keep_freed_memory()
import torch
def touched():
    torch.ones(2**26)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
once = touched()
print(touched() - once)
"""


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc")
def test_threads_have_no_heap_of_their_own_and_blocks_begin_at_pages(tmp_path: Path) -> None:
    file = tmp_path / "heaps.xml"
    code = HEAPS.format(file=bytes(file))
    remainder = run("import rankdrift.cli.train, rankdrift.training\n" + code)
    assert file.read_text().count("<heap nr=") == 1
    assert int(remainder) == 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc")
def test_a_block_of_256_mib_is_taken_from_what_was_freed() -> None:
    assert int(run(FAULTS)) < 100  # of 65,536 pages of 4 KiB
