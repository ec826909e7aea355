"""docs/start.md from its first line to its last, on the tiny model."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from forked import run_command

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```(sh|yaml)\n(.*?)^```", re.DOTALL | re.MULTILINE)


@pytest.mark.timeout(1200)
def test_everything_on_the_page_runs(cache: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    ran = 0
    for language, code in BLOCK.findall((ROOT / "docs" / "start.md").read_text(encoding="utf-8")):
        if language == "yaml":
            name, _, text = code.removeprefix("# ").partition("\n")
            small = text.replace("smollm2-135m", "tiny").replace("[42, 1337]", "[42]")
            (tmp_path / name).write_text(small, encoding="utf-8")
            continue
        if not code.startswith("rankdrift"):
            subprocess.run(["bash", "-e", "-c", code], cwd=tmp_path, env=environment, check=True)
            continue
        for line in code.splitlines():
            command, _, may_fail = line.split("  #")[0].partition("||")
            words = shlex.split(command)
            status, said = run_command(*words[1:], folder=tmp_path)
            assert status in ((0, 1) if may_fail else (0,)), f"{line}\n{said[-4000:]}"
            ran += 1
    assert ran == 11
    study = tmp_path / "outputs" / "tickets"
    assert "full against lora-r8" in (tmp_path / "outputs/comparison/comparison.html").read_text()
    for written in ("report.html", "notebooks/rq1.ipynb", "export/croissant.json", "export/latex/all.tex"):
        assert (study / written).exists()
