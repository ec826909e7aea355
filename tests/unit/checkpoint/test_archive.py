"""torch.save files read without torch.load: the same tensors, nothing executed, damage named."""

from __future__ import annotations

import io
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from rankdrift.checkpoint.archive import StoredTensor, read_archive
from rankdrift.errors import UserError


def saved(path: Path, value: Any) -> Path:
    torch.save(value, path)
    return path


def archive(path: Path, pickled: bytes, compression: int = zipfile.ZIP_STORED) -> Path:
    """Write an archive around a pickle of our own."""
    with zipfile.ZipFile(path, "w", compression) as handle:
        handle.writestr("x/data.pkl", pickled, zipfile.ZIP_STORED)
        handle.writestr("x/data/0", b"\0" * 64)
    return path


STORED = {
    "fp32": torch.randn(3, 5, generator=torch.Generator().manual_seed(1)),
    "bf16": torch.arange(6, dtype=torch.bfloat16).view(2, 3),
    "fp16": torch.arange(4, dtype=torch.float16),
    "fp64": torch.tensor(2.5, dtype=torch.float64),
    "int64": torch.arange(4),
    "bool": torch.tensor([True, False]),
    "uint16": torch.tensor([1, 65535], dtype=torch.uint16),  # untyped storage
    "transposed": torch.arange(6.0).view(2, 3).T,
    "slice": torch.arange(10.0)[3:7],
    "empty": torch.empty(0, 4),
    "parameter": torch.nn.Parameter(torch.arange(3.0)),
}


@pytest.mark.parametrize("name", STORED)
def test_tensors_equal_those_torch_loads(tmp_path: Path, name: str) -> None:
    path = saved(tmp_path / "x.pt", {"t": STORED[name]})
    stored, loaded = read_archive(path)["t"], torch.load(path)["t"]
    assert isinstance(stored, StoredTensor)
    assert stored.numel == loaded.numel()
    assert torch.equal(stored.load(), loaded.detach())
    assert stored.load().dtype == loaded.dtype


def test_containers_and_plain_values(tmp_path: Path) -> None:
    state = torch.nn.Linear(2, 2).state_dict()  # an OrderedDict with an attribute
    value = {"list": [1, (2.5, None)], "size": torch.Size([2, 3]), "dtype": torch.bfloat16, "state": state}
    tree = read_archive(saved(tmp_path / "x.pt", value))
    assert tree["list"] == [1, (2.5, None)]
    assert tree["size"] == (2, 3)
    assert tree["dtype"] is torch.bfloat16
    assert isinstance(tree["state"], OrderedDict)
    assert list(tree["state"]) == ["weight", "bias"]


def test_a_tensor_with_attributes_is_a_tensor(tmp_path: Path) -> None:
    marked = torch.arange(4.0)
    marked.ds_id = "0_3"  # type: ignore[attr-defined]
    assert torch.equal(read_archive(saved(tmp_path / "x.pt", marked)).load(), torch.arange(4.0))


def test_random_states_are_left_out(tmp_path: Path) -> None:
    import random

    import numpy as np

    value = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    tree = read_archive(saved(tmp_path / "x.pt", value))
    assert tree["python"] == random.getstate()
    assert tree["torch"].dtype == torch.uint8


def test_shared_storage_is_seen(tmp_path: Path) -> None:
    weight = torch.randn(3, 3)
    tree = read_archive(saved(tmp_path / "x.pt", {"a": weight, "b": weight, "c": weight.clone()}))
    assert tree["a"] == tree["b"] != tree["c"]


def test_writing_to_a_loaded_tensor_leaves_the_file_alone(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pt", torch.ones(4))
    before = path.read_bytes()
    read_archive(path).load().zero_()
    assert path.read_bytes() == before


def test_only_what_is_asked_for_is_read(tmp_path: Path) -> None:
    """Resident pages of the mapping, from the kernel's own account of it."""
    path = saved(tmp_path / "x.pt", {"large": torch.ones(16 * 2**20), "small": torch.ones(16)})
    code = f"""
import re, torch
from pathlib import Path
from rankdrift.checkpoint.archive import read_archive
tree = read_archive(Path({str(path)!r}))
def resident():
    maps = Path("/proc/self/smaps").read_text()
    return int(re.search(r"x[.]pt\\n(?:.*\\n)*?Rss: +(\\d+)", maps)[1])
print(tree["small"].load().sum().item(), resident(), tree["large"].load().sum().item(), resident())
"""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    small, before, large, after = map(float, output.split())
    assert (small, large) == (16, 16 * 2**20)
    assert before < 4 * 1024  # KiB: the small tensor and what the kernel maps around a fault
    assert after > 60 * 1024


class Hostile:
    """Unpickled, calls a function with arguments of its choice."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize(
    "function",
    [os.system, exec, eval, getattr, subprocess.check_output, torch.load, torch.hub.load, os.mkdir],
    ids=lambda function: f"{function.__module__}.{function.__name__}",
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_hostile_pickle_executes_nothing(tmp_path: Path, function: Any, protocol: int) -> None:
    trace = tmp_path / "trace"
    argument = str(trace) if function is os.mkdir else f"mkdir {trace}"
    path = archive(tmp_path / "x.pt", pickle.dumps({"module": Hostile(function, argument)}, protocol))
    with pytest.raises(UserError, match="nothing of it was run"):
        read_archive(path)
    assert not trace.exists()


def test_deepspeed_classes_are_stand_ins_that_are_never_imported(tmp_path: Path) -> None:
    calls = b"cdeepspeed.runtime.fp16.loss_scaler\nLossScaler\n(V1\ntR}V__setstate__\nV1\nsb."
    tree = read_archive(archive(tmp_path / "x.pt", b"\x80\x02" + calls))
    assert type(tree).__name__ == "Inert"
    code = "import sys, rankdrift.checkpoint.consolidate; sys.exit('deepspeed' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_tensor_beyond_its_storage_is_refused(tmp_path: Path) -> None:
    # A pickle that claims 1000 elements of a storage of 64 bytes, as a crafted or damaged file may.
    text = (
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((Vstorage\nctorch\nFloatStorage\nV0\nVcpu\nI16\ntQ"
        b"I0\n(I1000\nt(I1\ntI00\nNtR."
    )
    with pytest.raises(UserError, match="exceeds its storage"):
        read_archive(archive(tmp_path / "x.pt", text))


def damaged(path: Path, kind: str) -> Path:
    torch.save({"t": torch.ones(1000)}, path)
    whole = path.read_bytes()
    if kind == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("not a checkpoint")
    elif kind == "old format":
        torch.save({"t": torch.ones(3)}, path, _use_new_zipfile_serialization=False)
    elif kind == "other zip":
        with zipfile.ZipFile(path, "w") as handle:
            handle.writestr("readme.txt", "hello")
    elif kind == "compressed":
        buffer = io.BytesIO(whole)
        with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
            for name in old.namelist():
                new.writestr(name, old.read(name))
    elif kind == "overlong member":
        entry = whole.rindex(b"PK\x01\x02", 0, whole.rindex(b"/data/0"))  # in the central directory
        sizes = struct.pack("<II", 2**20, 2**20)
        path.write_bytes(whole[: entry + 20] + sizes + whole[entry + 28 :])
    elif kind == "bad pickle":
        archive(path, b"\x80\x02}(X")
    elif kind == "missing":
        path.unlink()
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("truncated", "truncated, or not a torch checkpoint"),
        ("empty", "truncated, or not a torch checkpoint"),
        ("text", "truncated, or not a torch checkpoint"),
        ("old format", "truncated, or not a torch checkpoint"),
        ("other zip", "it has no data.pkl"),
        ("compressed", "storage 0 is missing or compressed"),
        ("overlong member", "truncated inside storage 0"),
        ("bad pickle", "its pickle is damaged"),
        ("missing", "no such file"),
    ],
)
def test_damaged_and_foreign_files_are_named(tmp_path: Path, kind: str, message: str) -> None:
    with pytest.raises(UserError, match=rf"x\.pt: .*{message}"):
        read_archive(damaged(tmp_path / "x.pt", kind))
