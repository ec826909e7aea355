"""torch.save files read without torch.load: the same tensors, nothing executed, damage named."""

from __future__ import annotations

import io
import os
import pickle
import random
import re
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rankdrift.errors import IntegrityError, UserError
from rankdrift.zero_checkpoint import torch_file
from rankdrift.zero_checkpoint.torch_file import Inert, StoredTensor, read_archive


def saved(path: Path, value: Any) -> Path:
    torch.save(value, path)
    return path


def archive(path: Path, pickled: bytes, storage: bytes = b"\0" * 64) -> Path:
    """Write an archive around a pickle of our own."""
    with zipfile.ZipFile(path, "w") as handle:
        handle.writestr("x/data.pkl", pickled)
        handle.writestr("x/data/0", storage)
        handle.writestr("x/version", "3\n")
    return path


STORED = {
    "fp32": torch.randn(3, 5, generator=torch.Generator().manual_seed(1)),
    "bf16": torch.arange(6, dtype=torch.bfloat16).view(2, 3),
    "fp16": torch.arange(4, dtype=torch.float16),
    "fp64": torch.tensor(2.5, dtype=torch.float64),
    "int64": torch.arange(4),
    "bool": torch.tensor([True, False]),
    "transposed": torch.arange(6.0).view(2, 3).T,
    "slice": torch.arange(10.0)[3:7],
    "columns": torch.arange(12.0).view(3, 4)[:, 1:3],
    "expanded by one": torch.arange(3.0).expand(1, 3),
    "empty": torch.empty(0, 4),
}


@pytest.mark.parametrize("name", STORED)
def test_tensors_equal_those_torch_loads(tmp_path: Path, name: str) -> None:
    path = saved(tmp_path / "x.pt", {"t": STORED[name]})
    stored, loaded = read_archive(path)["t"], torch.load(path)["t"]
    assert isinstance(stored, StoredTensor)
    assert stored.numel == loaded.numel()
    assert torch.equal(stored.load(), loaded)
    assert stored.load().dtype == loaded.dtype


@pytest.mark.parametrize("name", STORED)
def test_an_older_torch_is_asked_otherwise(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One whose tensors on the meta device do not know their places."""
    path = saved(tmp_path / "x.pt", {"t": STORED[name]})
    expected = read_archive(path)["t"]
    monkeypatch.setattr(torch_file, "_on_meta", lambda handle: {"t": torch.empty(1, device="meta")})
    assert read_archive(path)["t"] == expected


def test_containers_and_plain_values(tmp_path: Path) -> None:
    state = torch.nn.Linear(2, 2).state_dict()  # an OrderedDict with an attribute
    value = {"list": [1, (2.5, None)], "size": torch.Size([2, 3]), "state": state}
    tree = read_archive(saved(tmp_path / "x.pt", value))
    assert tree["list"] == [1, (2.5, None)]
    assert tree["size"] == (2, 3)
    assert list(tree["state"]) == ["weight", "bias"]


def test_a_tensor_with_attributes_is_a_tensor(tmp_path: Path) -> None:
    marked = torch.arange(4.0)
    marked.ds_id = "0_3"  # type: ignore[attr-defined]
    assert torch.equal(read_archive(saved(tmp_path / "x.pt", marked)).load(), torch.arange(4.0))


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

    def resident() -> int:
        maps = Path("/proc/self/smaps").read_text()
        found = re.search(rf"{re.escape(str(path))}\n(?:.*\n)*?Rss: +(\d+)", maps)
        return int(found[1]) if found else 0

    tree = read_archive(path)
    assert tree["small"].load().sum() == 16
    assert 0 < resident() < 4 * 1024  # KiB: the small tensor and what the kernel maps around a fault
    assert tree["large"].load().sum() == 16 * 2**20
    assert resident() > 60 * 1024


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
    with pytest.raises(IntegrityError, match=r"x\.pt: .*(nothing was run|is of protocol 4)"):
        read_archive(path)
    assert not trace.exists()


@pytest.mark.parametrize(
    "name",
    [
        "deepspeed.runtime.engine DeepSpeedEngine",
        "deepspeed.launcher.runner main",
        "deepspeed.ops.op_builder CPUAdamBuilder",
        "deepspeed run",
        "numpy.core.multiarray _reconstruct",
        "torch.storage _load_from_bytes",
        "torch.jit load",
        "collections OrderedDict.fromkeys",
    ],
)
def test_names_that_no_checkpoint_holds_are_refused(tmp_path: Path, name: str) -> None:
    module, _, attribute = name.partition(" ")
    text = f"\x80\x02c{module}\n{attribute}\n)R.".encode("latin-1")
    message = rf"nothing was run: .*Unsupported global: GLOBAL {module}\.{attribute} was"
    with pytest.raises(IntegrityError, match=message):
        read_archive(archive(tmp_path / "x.pt", text))


def test_deepspeed_classes_are_stand_ins(tmp_path: Path) -> None:
    text = b"\x80\x02cdeepspeed.runtime.fp16.loss_scaler\nLossScaler\n)\x81}X\x01\x00\x00\x00aK\x01sb."
    assert isinstance(read_archive(archive(tmp_path / "x.pt", text)), Inert)


def got(owner: str, name: str) -> bytes:
    """The pickle of a member of an enumeration by Python 3.11.0 to 3.11.3, whose module is called so here."""
    member = b"X" + len(name).to_bytes(4, "little") + name.encode()
    return b"\x80\x02c__builtin__\ngetattr\nc" + owner.encode() + b"\n" + member + b"\x86R."


STAGE = "deepspeed.runtime.zero.config\nZeroStageEnum"


def test_a_stage_is_read_as_older_pythons_write_it(tmp_path: Path) -> None:
    for value, name in enumerate(("disabled", "optimizer_states", "gradients", "weights")):
        assert read_archive(archive(tmp_path / "x.pt", got(STAGE, name))) == value


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (STAGE, "__init__"),
        (STAGE, "from_bytes"),
        ("collections\nOrderedDict", "fromkeys"),
        ("torch._utils\n_rebuild_tensor_v2", "__globals__"),
        ("__builtin__\ngetattr", "weights"),
    ],
)
def test_nothing_else_is_got_of_anything(tmp_path: Path, owner: str, name: str) -> None:
    with pytest.raises(IntegrityError, match="nothing was run"):
        read_archive(archive(tmp_path / "x.pt", got(owner, name)))


def number(value: int) -> bytes:
    return b"\x8a" + bytes([len(encoded := pickle.encode_long(value))]) + encoded


def numbers(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x10tQ"


def tensor_pickle(
    start: int, shape: tuple[int, ...], stride: tuple[int, ...], storage: bytes = STORAGE
) -> bytes:
    """A pickle of one tensor, of whatever shape, in a storage of 16 fp32 numbers."""
    arguments = storage + number(start) + numbers(shape) + numbers(stride) + b"\x89N"
    return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR."


def test_a_tensor_written_by_hand_is_read(tmp_path: Path) -> None:
    values = torch.arange(16.0)
    path = archive(tmp_path / "x.pt", tensor_pickle(2, (2, 3), (6, 1)), values.numpy().tobytes())
    assert torch.equal(read_archive(path).load(), values[2:14].view(2, 6)[:, :3])


@pytest.mark.parametrize(
    ("start", "shape", "stride", "message"),
    [
        (0, (17,), (1,), "exceeds its storage"),
        (10, (2, 4), (4, 1), "exceeds its storage"),
        (0, (2, 2), (15, 1), "exceeds its storage"),
        (17, (0,), (1,), "exceeds its storage"),
        (0, (2**40,), (0,), "overlaps itself"),
        (0, (3, 3), (2, 1), "overlaps itself"),
        (-1, (4,), (1,), "nothing was run"),
        (0, (-4,), (1,), "nothing was run"),
        (0, (0, 2**63), (1, 1), "nothing was run"),
        (0, (1, 2), (1,), "nothing was run"),
    ],
)
def test_a_tensor_that_its_storage_cannot_hold_is_refused(
    tmp_path: Path, start: int, shape: tuple[int, ...], stride: tuple[int, ...], message: str
) -> None:
    with pytest.raises(IntegrityError, match=message):
        read_archive(archive(tmp_path / "x.pt", tensor_pickle(start, shape, stride)))


@pytest.mark.parametrize(
    "storage",
    [
        STORAGE.replace(b"\x000X", b"\x001X"),
        STORAGE.replace(b"storagec", b"filepthc"),
        STORAGE.replace(b"ctorch\nFloatStorage\n", b"K\x04"),
        STORAGE.replace(b"cpuK\x10tQ", b"cpuK\x10t"),
        b"K\x05Q",
    ],
    ids=["missing", "kind", "dtype", "not stored", "number"],
)
def test_a_tensor_of_no_storage_is_refused(tmp_path: Path, storage: bytes) -> None:
    with pytest.raises(IntegrityError, match="nothing was run"):
        read_archive(archive(tmp_path / "x.pt", tensor_pickle(0, (2,), (1,), storage)))


def write_zip(path: Path, names: list[str], **options: Any) -> None:
    with zipfile.ZipFile(path, "w", **options) as handle:
        for name in names:
            handle.writestr(name, pickle.dumps(7, protocol=2))


def bomb(path: Path) -> None:
    """A pickle that a few bytes inflate to."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as handle:
        handle.writestr("x/data.pkl", b"\0" * 2**24)


def gap(path: Path) -> None:
    """Bytes between the last member and the directory, whose end record is told of them."""
    write_zip(path, ["x/data.pkl"])
    data = path.read_bytes()
    start, end = data.index(b"PK\1\2"), data.index(b"PK\5\6")
    moved = struct.pack("<I", struct.unpack_from("<I", data, end + 16)[0] + 8)
    path.write_bytes(data[:start] + b"\0" * 8 + data[start : end + 16] + moved + data[end + 20 :])


def patched(change: Callable[[bytearray, int], None]) -> Callable[[Path], None]:
    """Save a tensor and change its directory's entry, which begins at the given offset."""

    def make(path: Path) -> None:
        torch.save(torch.ones(1000), path)
        data = bytearray(path.read_bytes())
        change(data, data.rindex(b"PK\x01\x02", 0, data.rindex(b"/data/0")))
        path.write_bytes(data)

    return make


def larger(data: bytearray, entry: int) -> None:
    data[entry + 20 : entry + 28] = struct.pack("<II", 2**20, 2**20)


def smaller(data: bytearray, entry: int) -> None:
    data[entry + 20 : entry + 28] = struct.pack("<II", 3999, 3999)


def moved(data: bytearray, entry: int) -> None:
    offset = struct.unpack_from("<I", data, entry + 42)[0]
    struct.pack_into("<I", data, entry + 42, offset + 4)


def lies_in_64_bits(data: bytearray, entry: int) -> None:
    data[entry + 20 : entry + 28] = b"\xff" * 8
    data[entry + 30 : entry + 32] = struct.pack("<H", 0)


def shifts_its_data(data: bytearray, entry: int) -> None:
    offset = struct.unpack_from("<I", data, entry + 42)[0]
    extra = struct.unpack_from("<H", data, offset + 28)[0]
    struct.pack_into("<H", data, offset + 28, extra - 4)  # the local header's length of padding


def encrypted(data: bytearray, entry: int) -> None:
    data[entry + 8] |= 1


ZIPS: dict[str, tuple[Callable[[Path], None], str]] = {
    "a name twice": (lambda path: write_zip(path, ["x/data.pkl", "x/data.pkl"]), "a second"),
    "two top folders": (lambda path: write_zip(path, ["x/data.pkl", "y/data/0"]), "a second"),
    "climbing names": (lambda path: write_zip(path, ["../data.pkl", "/etc/data.pkl"]), "a second"),
    "compressed": (lambda path: write_zip(path, ["x/data.pkl"], compression=8), "compressed"),
    "a bomb": (bomb, "compressed"),
    "no pickle": (lambda path: write_zip(path, ["x/readme.txt"]), "without data.pkl"),
    "no member": (lambda path: write_zip(path, []), "without data.pkl"),
    "a gap": (gap, "belong to no member"),
    "larger": (patched(larger), "does not end where"),
    "smaller": (patched(smaller), "does not end where"),
    "moved": (patched(moved), "not where the one before it ends"),
    "zip64": (patched(lies_in_64_bits), "zip|does not end where"),
    "shifted data": (patched(shifts_its_data), "does not end where"),
    "encrypted": (patched(encrypted), "header of member .* is damaged"),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", ZIPS)
def test_a_zip_archive_that_torch_does_not_write_is_refused(tmp_path: Path, name: str) -> None:
    make, message = ZIPS[name]
    make(tmp_path / "x.pt")
    with pytest.raises(IntegrityError, match=rf"x\.pt: .*{message}"):
        read_archive(tmp_path / "x.pt")


def test_another_byte_order_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as handle:
        handle.writestr("x/data.pkl", pickle.dumps(7, protocol=2))
        handle.writestr("x/byteorder", {"little": "big", "big": "little"}[sys.byteorder])
    with pytest.raises(IntegrityError, match="byte order"):
        read_archive(tmp_path / "x.pt")


def damage(path: Path, kind: str) -> None:
    whole = path.read_bytes()
    path.unlink()
    if kind == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("not a checkpoint")
    elif kind == "old format":
        torch.save({"t": torch.ones(3)}, path, _use_new_zipfile_serialization=False)
    elif kind == "bytes before":
        path.write_bytes(b"\0" * 8 + whole)
    elif kind == "bytes after":
        path.write_bytes(whole + b"\0" * 70000)
    elif kind == "folder":
        path.mkdir()
    elif kind == "link to itself":
        path.symlink_to(path)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("truncated", "damaged, or not a torch checkpoint"),
        ("empty", "damaged, or not a torch checkpoint"),
        ("text", "damaged, or not a torch checkpoint"),
        ("old format", "damaged, or not a torch checkpoint"),
        ("bytes before", "damaged"),
        ("bytes after", "damaged"),
        ("missing", "no such file"),
        ("folder", "cannot be read .*directory"),
        ("link to itself", "cannot be read .*symbolic links"),
    ],
)
def test_damaged_and_foreign_files_are_named(tmp_path: Path, kind: str, message: str) -> None:
    path = saved(tmp_path / "x.pt", {"t": torch.ones(1000)})
    damage(path, kind)
    with pytest.raises(IntegrityError, match=rf"x\.pt: .*{message}"):
        read_archive(path)


def test_a_file_that_may_not_be_read_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)  # file modes do not stop root
    with pytest.raises(UserError, match=r"x\.pt: may not be read") as caught:
        read_archive(tmp_path / "x.pt")
    assert not isinstance(caught.value, IntegrityError)


# Fuzzing: one file, changed at random; seeds are fixed, so a failure names the one to run again.

VALUE = {
    "module": torch.nn.Linear(3, 5).state_dict(),
    "shapes": [torch.Size([3, 5]), (1, 2.5, None, True)],
    "groups": [torch.arange(40.0), torch.arange(7, dtype=torch.bfloat16)],
    "names": {"a": "b", "counts": [2, 2]},
}


def plain(tree: Any) -> Any:
    """A tree with its tensors as lists, which can be compared."""
    if isinstance(tree, StoredTensor):
        return str(tree.dtype), tree.load().tolist()
    if isinstance(tree, dict):
        return {key: plain(value) for key, value in tree.items()}
    return [plain(value) for value in tree] if isinstance(tree, list | tuple) else tree


def outcome(path: Path) -> Any:
    """What is read, or None where the file is refused; anything else is an exception."""
    try:
        return plain(read_archive(path))
    except IntegrityError:
        return None


def outside_of_storages(data: bytes) -> list[int]:
    """The offsets of all bytes but those that only a checksum of the whole file protects."""
    protected = set(range(len(data)))
    with zipfile.ZipFile(io.BytesIO(data)) as handle:
        for info in handle.infolist():
            if "/data/" in info.filename:
                name, extra = struct.unpack_from("<HH", data, info.header_offset + 26)
                start = info.header_offset + 30 + name + extra
                protected -= set(range(start, start + info.file_size))
    return sorted(protected)


@pytest.mark.parametrize("seed", range(4))
def test_flipped_bits_are_refused_or_change_nothing(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    path = saved(tmp_path / "x.pt", VALUE)
    whole, expected = path.read_bytes(), outcome(path)
    places = outside_of_storages(whole)
    refused = 0
    for _ in range(300):
        changed = bytearray(whole)
        for place in draw.sample(places, draw.choice([1, 1, 1, 2, 8])):
            changed[place] ^= 1 << draw.randrange(8)
        path.write_bytes(changed)
        found = outcome(path)
        refused += found is None
        assert found in (None, expected), (seed, changed)
    assert refused > 60


@pytest.mark.parametrize("seed", range(2))
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    path = saved(tmp_path / "x.pt", VALUE)
    whole = path.read_bytes()
    for length in draw.sample(range(len(whole)), 200):
        path.write_bytes(whole[:length])
        assert outcome(path) is None, length


@pytest.mark.parametrize("seed", range(4))
def test_a_forged_pickle_is_refused_or_read_as_data(tmp_path: Path, seed: int) -> None:
    """Changed bytes under a checksum that is right: what no accident, but an attacker can make."""
    draw = random.Random(seed)
    with zipfile.ZipFile(saved(tmp_path / "whole.pt", VALUE)) as handle:
        contents = {info.filename.partition("/")[2]: handle.read(info) for info in handle.infolist()}
    path = tmp_path / "x.pt"
    refused = 0
    for _ in range(300):
        pickled = bytearray(contents["data.pkl"])
        for place in draw.sample(range(len(pickled)), draw.choice([1, 1, 2, 8])):
            pickled[place] = draw.choice([draw.randrange(256), pickled[place] ^ 1 << draw.randrange(8)])
        with zipfile.ZipFile(path, "w") as handle:
            for name, content in (contents | {"data.pkl": bytes(pickled)}).items():
                handle.writestr(f"x/{name}", content)
        refused += outcome(path) is None
    assert refused > 60
