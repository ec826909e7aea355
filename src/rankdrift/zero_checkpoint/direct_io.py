"""Read and write large files past the page cache, open(2)'s ``O_DIRECT``.

What is read once, or flushed to the disk at once, has no use for a copy in memory: making it costs a third
of a second of a processor a gigabyte (several times that in a virtual machine, whose host must find the
memory), and it pushes out what others read. What is in memory already is read from there.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import io
import mmap
import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

BLOCK = 4096  # bytes; a multiple of any disk's block, as places in file and memory have to be
_BUFFER = 2048 * BLOCK


class _DirectIO(io.FileIO):
    """A file that is direct for as long as the file system takes it."""

    def is_direct(self) -> bool:
        return bool(fcntl.fcntl(self.fileno(), fcntl.F_GETFL) & os.O_DIRECT)

    def be_ordinary(self) -> None:
        flags = fcntl.fcntl(self.fileno(), fcntl.F_GETFL)
        fcntl.fcntl(self.fileno(), fcntl.F_SETFL, flags & ~os.O_DIRECT)

    def refuses(self, error: OSError) -> bool:
        """Return whether an error means that direct access is not possible; some systems say so only now."""
        return error.errno == errno.EINVAL and self.is_direct()


class DirectFile(_DirectIO):
    """A new file; whole buffers go straight to the disk, the rest when it is closed.

    The disk writes one buffer while the caller fills the other, so an error may be raised by a later call
    than the one whose data it is of. Where the file system does not know such writes, it is an ordinary file.
    As with any other, only a flush to the disk (fsync) after closing makes it survive a power cut.
    """

    def __init__(self, path: Path) -> None:
        # such memory lies at a page's start
        self._buffer, self._written = (memoryview(mmap.mmap(-1, _BUFFER)) for _ in range(2))
        self._filled = 0
        self._pending: Future[None] | None = None
        super().__init__(path, "wb", opener=_open_direct)
        self._disk = ThreadPoolExecutor(1)

    def write(self, data: Any) -> int:
        """Take all of the data; return its size in bytes."""
        view = memoryview(data).cast("B")
        taken = 0
        while taken < len(view):
            part = view[taken : taken + _BUFFER - self._filled]
            self._buffer[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            taken += len(part)
            if self._filled == _BUFFER:
                self._hand_over()
        return taken

    def close(self) -> None:
        """Write what is left, which need not be whole blocks, and close the file."""
        if self.closed:
            return
        try:
            self._wait()
            self.be_ordinary()
            self._write_all(self._buffer[: self._filled])
        finally:
            self._disk.shutdown()
            super().close()

    def _hand_over(self) -> None:
        self._wait()
        self._buffer, self._written = self._written, self._buffer
        self._filled = 0
        self._pending = self._disk.submit(self._write_all, self._written)

    def _wait(self) -> None:
        pending, self._pending = self._pending, None
        if pending:
            pending.result()

    def _write_all(self, data: memoryview) -> None:
        while data:
            data = data[self._write_some(data) :]

    def _write_some(self, data: memoryview) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if not self.refuses(error):
                raise
        self.be_ordinary()
        return super().write(data)


class BlockReader(_DirectIO):
    """A file to read in blocks, and nothing beside them.

    Parameters
    ----------
    path
        The file.
    mapped
        A mapping of it, to ask what is in memory.
    start, stop
        The bytes that will be read.
    direct
        Read past the page cache, unless they are all in it.

    """

    def __init__(self, path: Path, mapped: mmap.mmap, start: int, stop: int, direct: bool) -> None:
        past = direct and not is_cached(mapped, start, stop)
        super().__init__(path, "rb", opener=_open_direct if past else None)
        os.posix_fadvise(self.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # no read-ahead into what lies beside

    def read_blocks(self, data: memoryview, offset: int, needed: int) -> None:
        """Fill ``data`` from an offset, both multiples of BLOCK, with at least ``needed`` bytes.

        Raises OSError where the file ends before.
        """
        done = 0
        while done < needed:
            try:
                count = os.preadv(self.fileno(), [data[done:]], offset + done)
            except OSError as error:
                if not self.refuses(error):
                    raise
                self.be_ordinary()
                continue
            if not count:
                raise OSError(f"{self.name!s} ends early")
            done += count


def is_cached(mapped: mmap.mmap, start: int, stop: int) -> bool:
    """Return whether all bytes of a mapped file from ``start`` to ``stop`` are in the page cache, mincore(2).

    Of a file that the process may not write the system tells nothing, and this returns True.
    """
    first = start // mmap.PAGESIZE * mmap.PAGESIZE
    pages = (ctypes.c_ubyte * -(-(stop - first) // mmap.PAGESIZE))()
    place = ctypes.c_char.from_buffer(mapped, first)
    ask = ctypes.CDLL(None, use_errno=True).mincore
    failed = ask(ctypes.c_void_p(ctypes.addressof(place)), ctypes.c_size_t(stop - first), pages)
    return bool(failed) or all(page & 1 for page in bytes(pages))


def _open_direct(path: str, flags: int) -> int:
    try:
        return os.open(path, flags | os.O_DIRECT, 0o666)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    return os.open(path, flags, 0o666)
