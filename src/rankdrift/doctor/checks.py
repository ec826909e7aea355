"""The checks of a machine, one function each; none changes anything, files it writes are removed."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import socket
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
import torch
from packaging.requirements import Requirement

from rankdrift.doctor.exchange import all_reduce_speed
from rankdrift.errors import UserError

State = Literal["fine", "note", "bad"]
GIB = 2**30
WRITTEN = 256 * 2**20
"""Bytes written to judge a disk."""
SLOW_DISK = 100e6  # bytes a second: a checkpoint of 1.1 B parameters would take more than two minutes
SMALL_SHM = 2**29
"""Bytes of /dev/shm below which NCCL and the workers of data loaders may fail."""
DRIVER = Path("/dev/nvidiactl")
"""What NVIDIA's driver makes."""
HUB = "https://huggingface.co"
HUB_TIMEOUT = 5.0  # seconds


@dataclass(frozen=True)
class Finding:
    """What a check has found."""

    name: str
    state: State
    """``note``: something cannot be done here, which many runs do not need; ``bad``: training will fail."""
    what: str
    remedy: str = ""


def packages() -> Iterator[Finding]:
    """Whether what the project requires is there, in a version that it takes."""
    required = [Requirement(line) for line in importlib.metadata.requires("rankdrift") or ()]
    shown = {"torch", "deepspeed", "transformers", "peft"}
    found = [f"Python {platform.python_version()}"]
    for one in required:
        if one.marker and not one.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(one.name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding("packages", "bad", f"{one.name} is not installed", f"pip install '{one}'")
            continue
        if not one.specifier.contains(version, prereleases=True):
            yield Finding("packages", "bad", f"{one.name} {version}", f"pip install '{one}'")
        if one.name in shown:
            found.append(f"{one.name} {version}")
    yield Finding("packages", "fine", ", ".join(found))


def gpus() -> Iterator[Finding]:
    """Which GPUs torch sees."""
    if not torch.cuda.is_available():
        built = "torch was built for CPUs" if torch.version.cuda is None else "torch finds no NVIDIA GPU"
        if DRIVER.exists():
            remedy = "install torch for the driver's CUDA (pytorch.org), see nvidia-smi"
            yield Finding("GPUs", "bad", f"there is an NVIDIA driver, but {built}", remedy)
        else:
            yield Finding("GPUs", "note", f"{built}: training runs on CPUs, in fp32")
        return
    for number in range(torch.cuda.device_count()):
        free, total = (size / GIB for size in torch.cuda.mem_get_info(number))
        what = f"{number}: {torch.cuda.get_device_name(number)}, {free:.0f} of {total:.0f} GiB free"
        crowded = free < 0.9 * total
        yield Finding("GPUs", "note" if crowded else "fine", what, "others use it" if crowded else "")


def compilers() -> Iterator[Finding]:
    """What is needed to compile: blocks (``model.compile``), and DeepSpeed's operators for NVMe."""
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    if compiler and shutil.which(compiler):
        yield Finding("compiler", "fine", str(shutil.which(compiler)))
    else:
        remedy = "Debian: apt-get install g++"
        yield Finding("compiler", "note", "no C++ compiler: no model.compile, no offload to NVMe", remedy)
    if not shutil.which("ninja"):
        remedy = "put the environment's bin folder first on PATH"
        yield Finding("compiler", "note", "no ninja on PATH: DeepSpeed compiles no operators", remedy)


def memory() -> Iterator[Finding]:
    """Main memory, and the shared memory in which ranks of a machine meet."""
    now = psutil.virtual_memory()
    cores = len(os.sched_getaffinity(0))
    yield Finding(
        "memory", "fine", f"{now.available / GIB:.1f} of {now.total / GIB:.1f} GiB available, {cores} cores"
    )
    shm = shutil.disk_usage("/dev/shm")
    what = f"/dev/shm: {shm.free / GIB:.1f} of {shm.total / GIB:.1f} GiB free"
    if shm.free > SMALL_SHM:
        yield Finding("memory", "fine", what)
    else:  # several GPUs of a machine exchange through it
        state: State = "bad" if torch.cuda.device_count() > 1 else "note"
        yield Finding("memory", state, what, "remove what dead processes left; docker run --shm-size=8g")


def disk(folder: Path) -> Iterator[Finding]:
    """How fast the folder of the outputs takes a file, down to the disk, and what is free."""
    present = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.is_dir())
    free = shutil.disk_usage(present).free
    block = os.urandom(2**20)
    try:
        with tempfile.TemporaryFile(dir=present) as file:
            began = time.perf_counter()
            for _ in range(WRITTEN // len(block)):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            rate = WRITTEN / (time.perf_counter() - began)
    except OSError as error:
        yield Finding("disk", "bad", f"{present}: {error.strerror}", "choose another output=FOLDER")
        return
    slow = rate < SLOW_DISK
    what = f"{present}: {rate / 1e6:.0f} MB/s written, {free / GIB:.0f} GiB free"
    yield Finding("disk", "note" if slow else "fine", what, "a local disk saves faster" if slow else "")


def network() -> Iterator[Finding]:
    """Whether this machine knows itself, and the model hub answers."""
    name = socket.gethostname()
    try:
        yield Finding("network", "fine", f"{name} is {socket.gethostbyname(name)}")
    except OSError as error:
        remedy = "add it to /etc/hosts, or launch with --master_addr"
        yield Finding("network", "note", f"{name} has no address ({error.strerror})", remedy)
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        yield Finding("network", "note", "HF_HUB_OFFLINE=1: models and data from local folders")
        return
    hub = os.environ.get("HF_ENDPOINT", HUB)
    try:
        with urllib.request.urlopen(urllib.request.Request(hub, method="HEAD"), timeout=HUB_TIMEOUT):
            yield Finding("network", "fine", f"{hub} answers")
    except OSError as error:
        reason = getattr(error, "reason", error)
        yield Finding("network", "note", f"{hub} does not answer ({reason})", "use local folders")


def exchange(ranks: int) -> Iterator[Finding]:
    """Whether ranks of this machine reach each other, and how fast they add up a vector."""
    try:
        speed, backend = all_reduce_speed(ranks)
    except UserError as error:
        yield Finding("exchange", "bad", str(error), "see the other lines, firewalls, NCCL_DEBUG=INFO")
    else:
        yield Finding("exchange", "fine", f"{ranks} ranks over {backend}: {speed / 1e9:.2f} GB/s added up")


def all_checks(output: Path, ranks: int) -> list[tuple[str, Callable[[], Iterator[Finding]]]]:
    """Return every check with its name, quick ones first."""
    return [
        ("packages", packages),
        ("GPUs", gpus),
        ("compiler", compilers),
        ("memory", memory),
        ("disk", lambda: disk(output)),
        ("network", network),
        ("exchange", lambda: exchange(ranks)),
    ]
