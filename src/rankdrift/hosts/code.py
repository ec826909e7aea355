"""Which code a machine runs: a digest of the package's sources, and the versions that numbers depend on."""

from __future__ import annotations

import functools
import os
import platform
from pathlib import Path

import xxhash

from rankdrift import files

PACKAGE = Path(__file__).resolve().parent.parent


@functools.cache
def code_digest() -> str:
    """Return the digest of all Python sources of this package, with their relative names."""
    total = xxhash.xxh3_128()
    for path in sorted(_sources(PACKAGE)):
        total.update(f"{path.relative_to(PACKAGE)}\n".encode())
        total.update(path.read_bytes())
    return total.hexdigest()


def versions() -> dict[str, str]:
    """Return Python's version and those of the packages that numbers depend on."""
    installed = {name: files.version(name) or "missing" for name in files.PACKAGES if name != "rankdrift"}
    return {"python": platform.python_version(), **installed}


def _sources(folder: Path) -> list[Path]:
    """Return the sources below a folder; parts of the package are links in a checkout."""
    walked = os.walk(folder, followlinks=True)
    return [Path(here) / name for here, _, names in walked for name in names if name.endswith(".py")]
