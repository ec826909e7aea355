"""Where the members of a ``torch.save`` archive lie: its zip directory, believed only where the file agrees.

Such an archive holds its members uncompressed, end to end, from the first byte to the directory. All of
that is checked (local headers, data descriptors, no gap, no overlap, no name twice), because a flipped bit
in a header would otherwise shift every element of a tensor without a sign.
Format: PKWARE's APPNOTE 6.3, sections 4.3 to 4.5.
"""

from __future__ import annotations

import mmap
import struct
import zipfile
import zlib
from dataclasses import dataclass
from typing import BinaryIO

_LOCAL_HEADER = struct.Struct("<4sHHH4xL8xHH")  # signature, version, flags, compression, CRC, lengths
_DESCRIPTORS = (struct.Struct("<4sLLL"), struct.Struct("<4sLQQ"))  # signature, CRC, sizes; zip64
_HAS_DESCRIPTOR, _IS_UTF8 = 0x0008, 0x0800  # flags


@dataclass(frozen=True)
class Member:
    """The bytes of one member: where in the file, how many, and their CRC-32 as stated."""

    start: int
    size: int
    crc: int


def members(handle: BinaryIO, buffer: mmap.mmap) -> dict[str, Member]:
    """Return an archive's members by their names below its one top folder.

    Raises ValueError, which says what is wrong, where the file is not such an archive.
    """
    infos, end = _directory(handle)
    found: dict[str, Member] = {}
    position = 0
    tops = set()
    for info in sorted(infos, key=lambda info: info.header_offset):
        member, position = _member(buffer, info, position)
        top, _, name = info.orig_filename.partition("/")
        tops.add(top)
        if name in found or len(tops) > 1:
            raise ValueError(f"a second '{info.orig_filename}' in the archive")
        found[name] = member
    if position != end:
        raise ValueError("bytes that belong to no member")
    return found


def content(buffer: mmap.mmap, member: Member) -> bytes:
    """Return a member's bytes; raise ValueError where they do not have the stated CRC-32."""
    data = buffer[member.start : member.start + member.size]
    if zlib.crc32(data) != member.crc:
        raise ValueError("a member whose CRC-32 is not the stated one")
    return data


def _directory(handle: BinaryIO) -> tuple[list[zipfile.ZipInfo], int]:
    """Return the directory's entries, and the offset at which it starts."""
    try:
        with zipfile.ZipFile(handle) as archive:
            return archive.infolist(), archive.start_dir
    except Exception as error:  # a damaged directory makes zipfile raise anything
        raise ValueError(f"no zip archive that can be read ({error})") from error


def _member(buffer: mmap.mmap, info: zipfile.ZipInfo, position: int) -> tuple[Member, int]:
    """Return the member that must begin at ``position``, and where it ends."""
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
        raise ValueError(f"member '{info.orig_filename}' is compressed, which torch never does")
    if info.header_offset != position or position + _LOCAL_HEADER.size > len(buffer):
        raise ValueError(f"member '{info.orig_filename}' is not where the one before it ends")
    signature, _, flags, method, _, name_length, extra_length = _LOCAL_HEADER.unpack_from(buffer, position)
    name_start = position + _LOCAL_HEADER.size
    name = info.orig_filename.encode("utf-8" if info.flag_bits & _IS_UTF8 else "cp437")
    stated = (signature, flags, method, buffer[name_start : name_start + name_length])
    if stated != (b"PK\3\4", info.flag_bits, info.compress_type, name):
        raise ValueError(f"the header of member '{info.orig_filename}' is damaged")
    member = Member(name_start + name_length + extra_length, info.file_size, info.CRC)
    end = member.start + member.size
    return member, _after_descriptor(buffer, member, end) if flags & _HAS_DESCRIPTOR else end


def _after_descriptor(buffer: mmap.mmap, member: Member, position: int) -> int:
    """Return where a member's data descriptor ends, which repeats its CRC and sizes."""
    stated = (b"PK\7\x08", member.crc, member.size, member.size)
    for descriptor in _DESCRIPTORS:
        end = position + descriptor.size
        if end <= len(buffer) and descriptor.unpack_from(buffer, position) == stated:
            return end
    raise ValueError("a member does not end where its size says")
