"""A process ends with the one that started it, also where that is gone before it can ask for this."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest


def run(program: str, own_group: bool = False, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", f"from rankdrift import signals; {program}"],
        env={**os.environ, **variables},
        start_new_session=own_group,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_whose_parent_is_gone_already_is_stopped_at_once() -> None:
    assert run("signals.end_with_parent(1 << 30); print('alive')").returncode == -signal.SIGTERM
    assert run(f"signals.end_with_parent({os.getpid()}); print('alive')").stdout == "alive\n"


@pytest.mark.parametrize(
    ("own_group", "variables", "parent_is_known"),
    [
        (False, {}, True),
        (True, {}, True),  # torchrun gives its ranks a group of their own
        (False, {"CROSS_RANK": "0"}, True),
        (True, {"CROSS_RANK": "0"}, False),
    ],
)
def test_an_orphan_of_deepspeeds_launcher_is_known_by_its_group(
    own_group: bool, variables: dict[str, str], parent_is_known: bool
) -> None:
    expected = os.getpid() if parent_is_known else 0
    assert run("print(signals.launcher_pid())", own_group, **variables).stdout == f"{expected}\n"
