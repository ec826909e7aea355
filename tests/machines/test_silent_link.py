"""Two machines, made of network namespaces, whose link goes down without a reset in the middle of a run.

Both of its ends end within the time that is promised, each naming the other; nothing is left; and once there
is a link again, the run goes on to what it would have been.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from ranks import CONFIGS, interrupted, train_jobs

from rankdrift import files
from rankdrift.layout import RunLayout, StudyLayout
from rankdrift.zero_checkpoint.manifest import Manifest, complete_steps
from rankdrift.zero_checkpoint.shards import open_checkpoint

pytestmark = [pytest.mark.machines, pytest.mark.distributed]

SECONDS = 300.0  # until what must happen has happened
PROMISED = 60.0
SILENCE = float(os.environ.get("RANKDRIFT_SILENCE", "6"))
STEPS = 20
NAMES = ("vm1", "vm2")
PORT = "29530"


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def why_not() -> str | None:
    """Say why there can be no machines here."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if not (shutil.which("ip") and shutil.which("unshare")):
        return "not installed: ip (iproute2), unshare"
    tried = subprocess.run(["unshare", "--net", "--uts", "true"], capture_output=True, text=True)
    return None if tried.returncode == 0 else f"no namespaces here: {tried.stderr.strip()}"


@dataclass
class Machines:
    """Two namespaces, joined by one link."""

    folder: Path
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def space(self, number: int) -> str:
        return f"rd{os.getpid()}-{number}"

    def connect(self) -> None:
        """Connect both to a switch, a bridge in a namespace of its own."""
        for number in (0, 1, 2):
            ip("netns", "add", self.space(number))
        switch = self.space(0)
        ip("-n", switch, "link", "add", "switch", "type", "bridge")
        for number in (1, 2):
            ends = ("name", f"port{number}", "netns", switch), ("name", "link0", "netns", self.space(number))
            ip("link", "add", *ends[0], "type", "veth", "peer", *ends[1])
            ip("-n", switch, "link", "set", f"port{number}", "master", "switch", "up")
            ip("-n", self.space(number), "addr", "add", f"10.99.7.{number}/24", "dev", "link0")
            for device in ("lo", "link0"):
                ip("-n", self.space(number), "link", "set", device, "up")
        self.mend()

    def cut(self) -> None:
        """Let nothing pass any more, of which nobody hears."""
        ip("-n", self.space(0), "link", "set", "switch", "down")

    def mend(self) -> None:
        ip("-n", self.space(0), "link", "set", "switch", "up")

    def start(self) -> list[subprocess.Popen[bytes]]:
        """Start a rank on each machine, as a launcher there would."""
        shared = {
            **{"MASTER_ADDR": "10.99.7.1", "MASTER_PORT": PORT, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"},
            **{"LOCAL_RANK": "0", "GLOO_SOCKET_IFNAME": "link0", "RANKDRIFT_SILENCE": str(SILENCE)},
            "SILENT_LINK": str(self.folder),
        }
        ranks = []
        for rank, name in enumerate(NAMES):
            place = ["ip", "netns", "exec", self.space(rank + 1), "unshare", "--uts", "sh", "-c"]
            command = [*place, f'hostname {name}; exec "$@"', "sh", sys.executable]
            command += ["-m", "rankdrift.cli.train", *self.arguments, f"output={self.folder / 'two'}"]
            here = {**os.environ, **shared, "RANK": str(rank)}
            with self.output(rank).open("wb") as handle:
                ranks.append(subprocess.Popen(command, stdout=handle, stderr=subprocess.STDOUT, env=here))
        self.started += ranks
        return ranks

    @property
    def arguments(self) -> list[str]:
        return ["--config", str(CONFIGS / "zero2.json"), "--experiment", str(self.folder / "recipe.yaml")]

    @property
    def run(self) -> RunLayout:
        return StudyLayout(self.folder / "two" / "s").run("a-seed42")

    def output(self, rank: int) -> Path:
        return self.folder / f"{NAMES[rank]}.log"

    def left(self) -> list[psutil.Process]:
        return [
            process
            for process in psutil.process_iter(["environ"])
            if (process.info["environ"] or {}).get("SILENT_LINK") == str(self.folder)
        ]

    def remove(self) -> None:
        for process in self.started:
            process.kill()
            process.wait()
        for number in (0, 1, 2):
            subprocess.run(["ip", "netns", "del", self.space(number)], capture_output=True)


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    if reason := why_not():
        pytest.skip(reason)
    made = Machines(tmp_path_factory.mktemp("machines"))
    (made.folder / "recipe.yaml").write_text(interrupted(steps=STEPS, save_every=3, eval_every=STEPS))
    try:
        made.connect()
        yield made
    finally:
        made.remove()


def wait_for(what: str, machines: Machines, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"{what}: {[machines.output(r).read_text() for r in (0, 1)]}"
        time.sleep(0.05)


def trained(run: RunLayout) -> int:
    return max((row["step"] for row in files.read_jsonl(run.metrics)), default=0)


def test_a_link_that_is_down_without_a_reset(machines: Machines, tiny: Path) -> None:
    run, ranks = machines.run, machines.start()
    wait_for("training", machines, lambda: trained(run) >= 5 or any(r.poll() is not None for r in ranks))
    machines.cut()
    began = time.monotonic()
    wait_for("the end", machines, lambda: all(rank.poll() is not None for rank in ranks))
    wait_for("nothing is left", machines, lambda: not machines.left())
    seconds = time.monotonic() - began
    assert [rank.returncode for rank in ranks] == [4, 4], machines.output(0).read_text()
    print(f"ended after {seconds:.1f} s")
    assert SILENCE < seconds < PROMISED
    for rank, other in ((0, "rank 1 on vm2"), (1, "rank 0 on vm1")):
        said = machines.output(rank).read_text()
        lines = [line for line in said.splitlines() if line.startswith("rankdrift train: ")]
        assert len(lines) == 1, said
        assert lines[0].startswith(f"rankdrift train: lost: {other} has been silent for ")
        assert "Traceback" not in said
    status = files.read_json(run.status)
    assert (status["state"], status["rank"], status["host"]) == ("lost", 1, "vm2")
    newest = complete_steps(run.checkpoints)[-1]
    assert newest >= 3
    Manifest.read(run.checkpoint(newest)).check_contents(run.checkpoint(newest))


def test_once_there_is_a_link_the_run_goes_on(machines: Machines, tiny: Path) -> None:
    machines.mend()
    ranks = machines.start()
    wait_for("the end of the run", machines, lambda: all(rank.poll() is not None for rank in ranks))
    assert [rank.returncode for rank in ranks] == [0, 0], machines.output(0).read_text()


def test_it_equals_a_run_of_one_machine(machines: Machines, tiny: Path, tmp_path: Path) -> None:
    _, config, _, recipe = machines.arguments
    train_jobs(
        tmp_path, {}, [(2, [{"recipe": recipe, "config": config, "overrides": [f"output={tmp_path}"]}])]
    )
    assert_equal(machines.run, StudyLayout(tmp_path / "s").run("a-seed42"))


def assert_equal(found: RunLayout, expected: RunLayout) -> None:
    """Assert that two runs have ended with the same weights and moments, bit for bit."""
    ours, theirs = (open_checkpoint(run.checkpoint(STEPS)) for run in (found, expected))
    assert ours.tensors.keys() == theirs.tensors.keys()
    assert all(ours.tensor(name).equal(theirs.tensor(name)) for name in ours.tensors)
