"""The heap of a CPU rank, each case in a process of its own: it is set once and for all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rankdrift.studies.launcher import WHOLE_HOLES

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
PLACES = """
import ctypes
from rankdrift.training import heap
heap.keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
def aligned(size):
    place = ctypes.c_void_p()
    libc.posix_memalign(ctypes.byref(place), ctypes.c_size_t(4096), ctypes.c_size_t(size))
    return place.value
def is_taken_again(offset):
    libc.malloc(ctypes.c_size_t(2**20 + offset))  # so that rests are of every size
    first = aligned(2**22)
    libc.malloc(ctypes.c_size_t(2**14))  # something behind, larger than what is left over
    libc.free(ctypes.c_void_p(first))
    return aligned(2**22) == first
is_taken_again(0)  # the interpreter takes what it needs later
taken = bytearray(64)  # a list would grow meanwhile, into what is left over
for number in range(64):
    taken[number] = is_taken_again(64 * number)
print(sum(taken))
"""


def run(code: str, **environment: str) -> str:
    environment = {**os.environ, "GLIBC_TUNABLES": "", **environment}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc")
def test_threads_have_no_heap_of_their_own_and_blocks_begin_at_pages(tmp_path: Path) -> None:
    file = tmp_path / "heaps.xml"
    code = HEAPS.format(file=bytes(file))
    remainder = run("import rankdrift.cli.train, rankdrift.training\n" + code)
    assert file.read_text().count("<heap nr=") == 1
    assert int(remainder) == 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc")
def test_a_block_of_256_mib_is_taken_from_what_was_freed() -> None:
    assert int(run(FAULTS, GLIBC_TUNABLES=WHOLE_HOLES)) < 100  # of 65,536 pages of 4 KiB


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc")
def test_a_block_has_room_where_one_of_its_size_was() -> None:
    whole, broken = int(run(PLACES, GLIBC_TUNABLES=WHOLE_HOLES)), int(run(PLACES))
    assert whole >= 63  # of 64: now and then the interpreter takes what is left over
    assert broken < whole  # where rests go into the thread's cache of small blocks
