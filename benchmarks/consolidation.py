"""Does consolidation read the fp32 weights alone, hold no model in memory, and cost less than zero_to_fp32?

    python benchmarks/consolidation.py --params 400e6 --repeats 5

Two CPU ranks train one bf16 step of a Llama model under ZeRO-2 and ZeRO-3 and save it. Then rankdrift and
each mode of ``deepspeed.utils.zero_to_fp32`` turn the same checkpoint into one model, in turn and each in a
fresh process, with the checkpoint's files out of the page cache and then in it. Imports are timed apart. Both
sides' output is on the disk when the clock stops (rankdrift flushes it itself, for the other side it is done
here; ``returned_s`` is without that). Every output is compared, tensor by tensor, with rankdrift's.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import mmap
import os
import re
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rankdrift import files
from rankdrift.layout import RunLayout, step_name

HERE = Path(__file__).resolve().parent
RANKS, STEP, VOCABULARY = 2, 1, 32000
OURS = "rankdrift"
SIDES = (
    OURS,
    "zero_to_fp32: state dict, save_file",
    "zero_to_fp32: lazy state dict, save_file",
    "zero_to_fp32: convert, safetensors, 5GB",
    "zero_to_fp32: convert, safetensors, 500MB",
    "zero_to_fp32: convert, bin, 5GB",
)
OWN_VARIANTS = (
    OURS,
    "rankdrift: through the page cache",
    "rankdrift: without sums",
    "rankdrift: without sums, every file read and checked first",
)
"""What past-the-cache reading and the CRC-32 of storages cost and save (``--own``)."""
SAMPLE_SECONDS = 0.01


# ---- the checkpoints, made by two ranks


def llama_config(params: float) -> Any:
    """Return the configuration of an untied Llama model of at least ``params`` parameters."""
    from transformers import LlamaConfig

    hidden = 1536 if params >= 200e6 else 256
    intermediate = 8 * hidden // 3
    layer = 4 * hidden**2 + 3 * hidden * intermediate
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=max(1, math.ceil((params - 2 * VOCABULARY * hidden) / layer)),
        num_attention_heads=hidden // 64,
        tie_word_embeddings=False,
    )


def save_checkpoint(folder: Path, stage: int, params: float) -> None:
    """Train one step on this rank and save the run folder that both sides read."""
    import deepspeed
    import deepspeed.ops
    import torch
    from transformers import LlamaForCausalLM

    from rankdrift.zero_checkpoint.manifest import Manifest

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # needs a compiler, serves inference only
    deepspeed.init_distributed("gloo")
    torch.manual_seed(0)
    model = LlamaForCausalLM(llama_config(params)).bfloat16()
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
    }
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    engine = deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]
    tokens = torch.arange(8)[None] + 100 * deepspeed.comm.get_rank()
    engine.backward(engine(input_ids=tokens, labels=tokens).loss)
    engine.step()
    run = RunLayout(folder)
    engine.save_checkpoint(str(run.checkpoints), tag=step_name(STEP))
    if deepspeed.comm.get_rank() == 0:
        engine.module.config.save_pretrained(run.model)
        manifest = Manifest(
            step=STEP,
            world_size=RANKS,
            zero_stage=stage,
            method="full",
            precision="bf16",
            spec_digest="",
            base="",
            base_digest="",
            data_position=RANKS,
            seed=0,
        )
        manifest.write(run.checkpoint(STEP))
    deepspeed.comm.barrier()


def make(folder: Path, stage: int, params: float) -> None:
    """Start the ranks that save one checkpoint, unless it is there."""
    if RunLayout(folder).checkpoint(STEP).joinpath("checkpoint.json").exists():
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": RANKS, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "DS_ACCELERATOR": "cpu"}
    command = [sys.executable, __file__, "make", str(folder), str(stage), str(params)]
    ranks = []
    for rank in range(RANKS):
        settings = {key: str(value) for key, value in (shared | {"RANK": rank, "LOCAL_RANK": rank}).items()}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        ranks.append(
            subprocess.Popen(command, env={**os.environ, **settings, "OMP_NUM_THREADS": "1", "PATH": path})
        )
    if any([rank.wait() for rank in ranks]):
        raise RuntimeError(f"a rank of stage {stage} failed")


# ---- one side, in a process of its own


def side_function(side: str) -> Callable[[RunLayout, Path], None]:
    """Import what a side needs and return the function that turns a checkpoint into a model folder."""
    if side.startswith(OURS):
        return own_function(side)
    import huggingface_hub  # noqa: F401  # what convert imports when it is called
    from deepspeed.utils import zero_to_fp32
    from safetensors.torch import save_file

    def save(run: RunLayout, output: Path) -> None:
        lazy = "lazy" in side
        state = zero_to_fp32.get_fp32_state_dict_from_zero_checkpoint(str(run.checkpoints), lazy_mode=lazy)
        output.mkdir(parents=True)
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, output / "model.safetensors")

    def convert(run: RunLayout, output: Path) -> None:
        zero_to_fp32.convert_zero_checkpoint_to_fp32_state_dict(
            str(run.checkpoints),
            str(output),
            max_shard_size=side.rpartition(", ")[2],
            safe_serialization="safetensors" in side,
        )

    return convert if "convert" in side else save


def own_function(side: str) -> Callable[[RunLayout, Path], None]:
    """Return consolidation as it is, or with a part of it replaced."""
    from rankdrift.export import consolidate as consolidation
    from rankdrift.zero_checkpoint import direct_io
    from rankdrift.zero_checkpoint.manifest import Manifest

    class NoSums:
        def __init__(self, *_: Any) -> None: ...
        def take(self, *_: Any) -> None: ...
        def check(self) -> None: ...

    if "page cache" in side:
        direct_io._open_direct = lambda path, flags: os.open(path, flags, 0o666)
    if "without sums" in side:
        consolidation.StorageSums = NoSums  # type: ignore[assignment,misc]

    def work(run: RunLayout, output: Path) -> None:
        if "checked first" in side:
            Manifest.read(run.checkpoint(STEP)).check_contents(run.checkpoint(STEP))
        consolidation.consolidate(run, STEP)

    return work


def run_side(side: str, folder: Path) -> None:
    """Do the work once; print the measurements as the last line."""
    run = RunLayout(folder)
    output = run.export(STEP)
    work, imports = timed(lambda: side_function(side))
    before = memory()["RssAnon"]
    print("imported", flush=True)
    sys.stdin.readline()  # until the memory is ready
    read, written = disk_bytes()
    returned = time.perf_counter()
    _, measured = timed(lambda: work(run, output))
    returned = time.perf_counter() - returned
    if not side.startswith(OURS):
        _, flushed = timed(lambda: flush(output))
        measured = {key: value + flushed[key] for key, value in measured.items()}
    facts = {
        **measured,
        "returned_s": returned,
        "import_wall_s": imports["wall_s"],
        "import_cpu_s": imports["cpu_s"],
        "anonymous_after_import_mb": before / 1e6,
        "peak_rss_mb": memory()["VmHWM"] / 1e6,
        "device_read_mb": (disk_bytes()[0] - read) / 1e6,
        "device_written_mb": (disk_bytes()[1] - written) / 1e6,
    }
    print(json.dumps(facts), flush=True)


def timed(function: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """Return what a function returns, and the wall and CPU seconds (of children too) that it took."""
    wall, cpu = time.perf_counter(), cpu_seconds()
    value = function()
    return value, {"wall_s": time.perf_counter() - wall, "cpu_s": cpu_seconds() - cpu}


def cpu_seconds() -> float:
    """Return the user and system seconds of this process and its children so far."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def memory(pid: int | str = "self") -> dict[str, int]:
    """Return a process's memory in bytes: RssAnon, VmHWM ..."""
    found = re.findall(r"^(\w+):\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return {key: 1024 * int(value) for key, value in found}


def disk_bytes() -> tuple[int, int]:
    """Return the bytes this process has made the disk read, and has written."""
    found = dict(re.findall(r"(\w+): (\d+)", Path("/proc/self/io").read_text()))
    return int(found["read_bytes"]), int(found["write_bytes"])


def flush(folder: Path) -> None:
    """Bring all files below a folder to the disk."""
    for path in files_of(folder):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


# ---- the page cache


def files_of(folder: Path) -> list[Path]:
    """Return all files below a folder."""
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def resident_bytes(folder: Path) -> int:
    """Return how much of a folder's files is in the page cache (mincore)."""
    return sum(_resident(path) for path in files_of(folder) if path.stat().st_size)


def _resident(path: Path) -> int:
    with open(path, "rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        size = len(mapped)
        pages = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
        start = ctypes.c_char.from_buffer(mapped)
        failed = ctypes.CDLL(None).mincore(
            ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(size), pages
        )
        del start
        if failed:
            raise OSError(f"mincore of {path} failed")
        return mmap.PAGESIZE * sum(page & 1 for page in bytes(pages))


def evict(folder: Path) -> None:
    """Drop a folder's files from the page cache; raise RuntimeError if some of them stay."""
    flush(folder)
    for path in files_of(folder):
        with open(path, "rb") as handle:
            os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if left := resident_bytes(folder):
        raise RuntimeError(f"{left} bytes of {folder} stay in the page cache")


def warm(folder: Path) -> None:
    """Read a folder's files into the page cache."""
    for path in files_of(folder):
        with open(path, "rb", buffering=0) as handle:
            while handle.read(2**24):
                pass


# ---- the comparison


def measure(side: str, folder: Path, cold: bool) -> dict[str, float]:
    """Run one side once in a fresh process; its output is left in the run's folder."""
    run = RunLayout(folder)
    size = sum(master_sizes(run))
    shutil.rmtree(run.exports, ignore_errors=True)
    os.sync()
    (evict if cold else warm)(run.checkpoints)
    command = [sys.executable, __file__, "side", side, str(folder)]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu"}
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    ) as process:
        assert process.stdin
        assert process.stdout
        while process.stdout.readline() != "imported\n":
            if process.poll() is not None:
                raise RuntimeError(f"{side}: failed before its work")
        touch_memory(2 * size)  # the tensors and the file
        print("go", file=process.stdin, flush=True)
        anonymous = max(sampled_anonymous(process), default=0)
        lines = process.stdout.read().splitlines()
    if process.returncode:
        raise RuntimeError(f"{side}: failed")
    facts: dict[str, float] = json.loads(lines[-1])
    read = facts.pop("device_read_mb")
    facts["anonymous_mb"] = anonymous / 1e6 - facts["anonymous_after_import_mb"]
    facts["output_mb"] = sum(path.stat().st_size for path in files_of(run.export(STEP))) / 1e6
    if cold:
        facts["read_mb"] = read
        facts["left_in_page_cache_mb"] = resident_bytes(run.checkpoints) / 1e6
    return facts


def touch_memory(size: int) -> None:
    """Take and free memory just before a side starts.

    A virtual machine returns what has been free for seconds to its host; taking it back costs whoever writes
    to it next about a second of system time a gigabyte, which has nothing to do with either side.
    """
    np.ones(size, dtype=np.uint8)


def master_sizes(run: RunLayout) -> list[int]:
    """Return the bytes of each fp32 master weight; together they are the consolidated model."""
    from rankdrift.zero_checkpoint.shards import open_checkpoint

    tensors = open_checkpoint(run.checkpoint(STEP)).tensors
    return [4 * math.prod(tensor.shape) for tensor in tensors.values()]


def sampled_anonymous(process: subprocess.Popen[str]) -> Iterator[int]:
    """Yield a process's anonymous memory in bytes until it ends."""
    while process.poll() is None:
        try:
            yield memory(process.pid).get("RssAnon", 0)
        except OSError:
            return
        time.sleep(SAMPLE_SECONDS)


def tensor_digests(folder: Path) -> dict[str, str]:
    """Return a checksum of every tensor's shape, dtype and bytes below an output folder."""
    import torch
    import xxhash
    from safetensors import safe_open

    def digest(tensor: torch.Tensor) -> str:
        data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
        return f"{tuple(tensor.shape)} {tensor.dtype} {xxhash.xxh3_128(data).hexdigest()}"

    found = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            found |= {name: digest(file.get_tensor(name)) for name in file.offset_keys()}
    for path in folder.glob("*.bin"):
        tensors = torch.load(path, mmap=True, weights_only=True)
        found |= {name: digest(tensor) for name, tensor in tensors.items()}
    return found


def compare(folder: Path, repeats: int, sides: tuple[str, ...]) -> dict[str, Any]:
    """Measure all sides on one checkpoint; return all runs, medians, ratios and whether outputs agree."""
    runs: dict[str, dict[str, list[dict[str, float]]]] = {"cold": {}, "warm": {}}
    digests: dict[str, dict[str, str]] = {}
    for repeat in range(repeats):
        for cache, found in runs.items():
            for side in sides:
                facts = measure(side, folder, cache == "cold")
                found.setdefault(side, []).append(facts)
                if side not in digests:
                    digests[side] = tensor_digests(RunLayout(folder).export(STEP))
                print(f"{folder.name} {cache} {repeat + 1}/{repeats} {side}: {_brief(facts)}", flush=True)
    shutil.rmtree(RunLayout(folder).exports)
    medians = {
        cache: {side: _medians(of_side) for side, of_side in found.items()} for cache, found in runs.items()
    }
    return {
        **_fp32_facts(RunLayout(folder)),
        "same_output": {side: found == digests[OURS] for side, found in digests.items()},
        "medians": medians,
        "theirs_to_ours": {
            cache: {side: _ratios(values, found[OURS]) for side, values in found.items() if side != OURS}
            for cache, found in medians.items()
        },
        "runs": runs,
    }


def _fp32_facts(run: RunLayout) -> dict[str, float]:
    sizes = master_sizes(run)
    stored = sum(path.stat().st_size for path in files_of(run.checkpoint(STEP)))
    return {
        "parameters": sum(sizes) // 4,
        "fp32_mb": sum(sizes) / 1e6,
        "largest_tensor_mb": max(sizes) / 1e6,
        "checkpoint_mb": stored / 1e6,
    }


def _medians(runs: list[dict[str, float]]) -> dict[str, float]:
    return {key: round(statistics.median(run[key] for run in runs), 3) for key in runs[0]}


def _ratios(theirs: dict[str, float], ours: dict[str, float]) -> dict[str, float]:
    keys = ("wall_s", "returned_s", "cpu_s", "anonymous_mb", "peak_rss_mb", "read_mb")
    return {key: round(theirs[key] / ours[key], 3) for key in keys if ours.get(key)}


def _brief(facts: dict[str, float]) -> str:
    keys = ("wall_s", "cpu_s", "anonymous_mb", "read_mb")
    return ", ".join(f"{key} {facts[key]:.2f}" for key in keys if key in facts)


def arguments_of(argv: list[str]) -> argparse.Namespace:
    """Return the command's settings."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--params", type=float, default=400e6)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--small", action="store_true", help="20 M parameters, one repeat: a trial of a minute or two"
    )
    parser.add_argument("--own", action="store_true", help="compare rankdrift with variants of itself")
    parser.add_argument(
        "--folder", type=Path, help="where checkpoints are made and kept (default: a temporary one)"
    )
    parser.add_argument("--output", type=Path, default=HERE / "results" / "consolidation.json")
    arguments = parser.parse_args(argv)
    if arguments.small:
        arguments.params, arguments.repeats = 20e6, 1
    return arguments


def main(arguments: argparse.Namespace, folder: Path) -> None:
    """Make the checkpoints, compare, write the result."""
    stages = {}
    for stage in (2, 3):
        make(folder / f"zero-{stage}", stage, arguments.params)
        stages[f"zero-{stage}"] = compare(
            folder / f"zero-{stage}", arguments.repeats, OWN_VARIANTS if arguments.own else SIDES
        )
    files.write_json(
        arguments.output,
        {
            "claim": "consolidation reads the fp32 weights alone, in constant memory, for less CPU",
            "settings": {"params": arguments.params, "repeats": arguments.repeats, "ranks": RANKS},
            "stages": stages,
            "environment": files.environment(),
        },
    )
    for name, found in stages.items():
        print(name, json.dumps({key: found[key] for key in ("same_output", "theirs_to_ours")}, indent=2))


if __name__ == "__main__":
    if sys.argv[1:2] == ["make"]:
        save_checkpoint(Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
    elif sys.argv[1:2] == ["side"]:
        run_side(sys.argv[2], Path(sys.argv[3]))
    else:
        parsed = arguments_of(sys.argv[1:])
        with tempfile.TemporaryDirectory() as temporary:
            main(parsed, parsed.folder or Path(temporary))
