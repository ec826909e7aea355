"""What the hub's library would show as bars, told as bytes."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from tqdm import tqdm


def bar_class(progress: Callable[[int, int], None], total: int) -> type[tqdm]:
    """Return a bar for the hub's library that shows nothing and tells of bytes, so many of ``total``."""

    class Bar(tqdm):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            self.counts_bytes = options.get("unit") == "B"  # others count files
            super().__init__(*arguments, **{**options, "file": io.StringIO()})

        def display(self, *_: Any, **__: Any) -> None:
            if self.counts_bytes and self.n:
                progress(min(int(self.n), total), total)

    return Bar
