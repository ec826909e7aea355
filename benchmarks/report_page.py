"""How large is a report, and how long until a browser shows it, explorer drawn?

    python benchmarks/report_page.py outputs/demo/report.html FOLDER/runs20-.../report.html

Opens each page ``--repeats`` times, in turn and in a new profile each, with Debian's Chromium (or
``--chromium``), from its file; the clock stops when every view of the explorer is drawn. Studies of any size
are made by ``scale.py``. Needs playwright (``pip install 'rankdrift[browser]'``).
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from rankdrift import files


def opened(browser: Any, page: Path) -> dict[str, float]:
    """Return the seconds until the page was loaded, and until its explorer was drawn."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    shown = context.new_page()
    began = time.perf_counter()
    shown.goto(page.resolve().as_uri(), wait_until="load")
    loaded = time.perf_counter() - began
    shown.evaluate("typeof explorer === 'undefined' ? null : explorer.drawn")
    drawn = time.perf_counter() - began
    context.close()
    return {"loaded": loaded, "drawn": drawn}


def facts(page: Path) -> dict[str, Any]:
    """Return the size of a page and what is on it."""
    text = page.read_text(encoding="utf-8")
    runs = re.search(r"(\d+) arms? \(", text)
    return {
        "bytes": page.stat().st_size,
        "figures": text.count("<img "),
        "tables": text.count("<table"),
        "runs": len(list((page.parent / "runs").glob("*"))),
        "arms": int(runs[1]) if runs else None,
    }


def main() -> None:
    """Measure and print; write what is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pages", nargs="+", type=Path, metavar="REPORT")
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    seconds: dict[Path, list[dict[str, float]]] = {page: [] for page in arguments.pages}
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=arguments.chromium, args=["--no-sandbox"])
        version = browser.version
        opened(browser, arguments.pages[0])  # the browser's own first page
        for _ in range(arguments.repeats):
            for page in arguments.pages:
                seconds[page].append(opened(browser, page))
        browser.close()
    found = {
        page.parent.name: facts(page)
        | {
            f"seconds_until_{what}": {
                "median": round(statistics.median(values), 3),
                "least": round(min(values), 3),
                "most": round(max(values), 3),
            }
            for what in ("loaded", "drawn")
            if (values := [each[what] for each in of])
        }
        for page, of in seconds.items()
    }
    environment = files.environment() | {"command": "benchmarks/report_page.py", "chromium": version}
    result = {"repeats": arguments.repeats, "pages": found, "environment": environment}
    print(json.dumps(result, indent=2))
    if arguments.output:
        files.write_json(arguments.output, result)


if __name__ == "__main__":
    main()
