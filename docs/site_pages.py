"""Pages of the site whose text lies elsewhere in the repository: the README is its first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

PAGES = {"README.md": "index.md", "benchmarks/README.md": "benchmarks.md", "CHANGELOG.md": "changelog.md"}
LINKS = {"](docs/": "](", "](benchmarks/README.md": "](benchmarks.md", "](README.md": "](index.md"}


def on_files(files: Files, config: Any) -> Files:
    """Add the pages, with links as they are on the site."""
    root = Path(config.config_file_path).parent
    for source, page in PAGES.items():
        text = (root / source).read_text(encoding="utf-8")
        for there, here in LINKS.items():
            text = text.replace(there, here)
        files.append(File.generated(config, page, content=text))
    return files
