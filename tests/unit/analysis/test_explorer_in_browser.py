"""The report's explorer in a browser: sorted, filtered, brushed, its slider moved; and what axe finds.

Needs playwright and Chromium (``RANKDRIFT_CHROMIUM`` names it where it is not on the PATH); skipped without.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from made_up_study import write_study

from rankdrift.analysis.report import illustrate
from rankdrift.analysis.report.build import build_report

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = os.environ.get("RANKDRIFT_CHROMIUM") or shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")

Tables = dict[str, pd.DataFrame]
RUNS = (("full", 0, 1), ("full", 0, 2), ("lora", 8, 1), ("lora", 8, 2))
CHOSEN = "Object.values(explorer.views).map(view => view.signal('chosen'))"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, make_tables: Callable[..., Tables]) -> Path:
    study = write_study(tmp_path_factory.mktemp("study") / "demo", make_tables(RUNS, [4, 8], 3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(illustrate, "DPI", 40)
        return build_report(study, lambda *_: None, workers=1)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def page(browser: Any, report: Path) -> Iterator[Any]:
    """The report, drawn; an error of its scripts fails the test."""
    found = browser.new_page(viewport={"width": 1280, "height": 900})
    errors: list[str] = []
    asked: list[str] = []
    found.on("pageerror", lambda error: errors.append(str(error)))
    found.on("request", lambda request: asked.append(request.url))
    found.goto(report.as_uri())
    found.evaluate("explorer.drawn")
    yield found
    assert errors == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    found.close()


def runs(page: Any) -> list[str]:
    """The runs in the table, row by row."""
    return [str(text) for text in page.locator("#explorer-table tbody th").all_inner_texts()]


def marks(page: Any, view: str, kind: str) -> int:
    return int(page.locator(f"#view-{view} .mark-{kind}.role-mark path").count())


def test_the_table_is_sorted_by_any_column_both_ways(page: Any) -> None:
    heading = page.locator("#explorer-table th", has_text="NLL increase")
    values = page.locator("#explorer-table tbody tr")
    place = page.locator("#explorer-table thead th").all_inner_texts().index(heading.inner_text())

    def column() -> list[float]:
        return [float(row.locator("th, td").nth(place).inner_text()) for row in values.all()]

    heading.locator("button").click()
    assert column() == sorted(column())
    assert heading.get_attribute("aria-sort") == "ascending"
    heading.locator("button").press("Enter")
    assert column() == sorted(column(), reverse=True)
    assert heading.get_attribute("aria-sort") == "descending"


def test_a_filter_is_in_force_in_the_table_and_all_views(page: Any) -> None:
    assert marks(page, "line", "line") == 4
    page.fill("#explorer-filter", "LORA")
    page.wait_for_function(f"{CHOSEN}.every(runs => runs.length == 2)")
    assert set(runs(page)) == {"lora-r8-seed1", "lora-r8-seed2"}
    page.wait_for_function("document.querySelectorAll('#view-line .mark-line.role-mark path').length == 2")
    assert page.inner_text("#explorer-count") == "4 of 8 checkpoints"
    page.fill("#explorer-filter", "nobody")
    page.wait_for_function("document.querySelectorAll('#view-line .mark-line.role-mark path').length == 0")
    assert runs(page) == []
    page.click("#explorer-reset")
    page.wait_for_function("document.querySelectorAll('#view-line .mark-line.role-mark path').length == 4")
    assert len(runs(page)) == 8


def test_a_brush_chooses_the_runs_that_it_touches_everywhere(page: Any) -> None:
    """The upper right has what both seeds of full fine-tuning forget and learn in the end."""
    drawing = page.locator("#view-plane svg")
    drawing.scroll_into_view_if_needed()
    points = page.evaluate(
        """() => [...document.querySelectorAll('#view-plane .mark-symbol.role-mark path')]
             .map(point => point.getBoundingClientRect())
             .map(box => [box.x + box.width / 2, box.y + box.height / 2])"""
    )
    right = max(points)
    page.mouse.move(right[0] - 12, right[1] - 10)
    page.mouse.down()
    page.mouse.move(right[0] + 6, right[1] + 10, steps=6)
    page.mouse.up()
    page.wait_for_function("explorer.runs().length == 2")
    assert page.evaluate("explorer.runs()") == ["full-seed1", "full-seed2"]
    page.wait_for_function("document.querySelectorAll('#view-line .mark-line.role-mark path').length == 2")
    page.wait_for_function("explorer.views.heat.signal('chosen').length == 2")
    assert set(runs(page)) == {"full-seed1", "full-seed2"}
    assert marks(page, "plane", "symbol") == 8  # where the box can be moved on


def test_the_slider_shows_another_step(page: Any) -> None:
    slider = page.locator("#view-heat input[type=range]")
    assert "step 8" in str(page.locator("#view-heat").text_content())
    slider.focus()
    slider.press("ArrowLeft")
    page.wait_for_function("document.querySelector('#view-heat').textContent.includes('step 4')")
    assert page.evaluate("explorer.views.heat.signal('place')") == 0


def test_a_quantity_is_chosen_from_all_of_them(page: Any) -> None:
    choice = page.locator("#view-line select")
    choice.select_option(label="validation loss (nats a token)")
    assert page.evaluate("explorer.views.line.signal('metric')") == "task_loss"


def test_every_answer_leads_to_its_rows(page: Any) -> None:
    """By one click on what it rests on: its section unfolds, and rows with the arms it names are seen."""
    links = page.locator(".answers a")
    assert links.count() >= 3
    for number in range(links.count()):
        page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = false; })")
        link = links.nth(number)
        target = page.locator(link.get_attribute("href"))
        assert target.is_hidden()
        link.click()
        target.wait_for(state="visible")
        rows = target.locator("table tbody tr")
        assert rows.first.is_visible()
        assert "lora-r8" in "".join(rows.all_text_contents())


@pytest.mark.parametrize("width", [375, 1280, 1920])
def test_nothing_is_wider_than_the_page(width: int, page: Any) -> None:
    """What is, scrolls by itself."""
    page.set_viewport_size({"width": width, "height": 900})
    page.wait_for_timeout(300)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_axe_finds_nothing(page: Any) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="no axe")
    page.locator("details.numbers").first.evaluate("details => { details.open = true; }")
    found = axe.Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
