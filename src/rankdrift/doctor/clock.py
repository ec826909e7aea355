"""How far another machine's clock is off, by asking it for the time over ssh."""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass

from rankdrift.hosts.ssh import Ssh

ASKED = 8
"""Times; the quickest answer says most."""
REMOTE = "while read x; do date +%s.%N; done"


@dataclass(frozen=True)
class Offset:
    """Another clock minus this one, seconds."""

    seconds: float
    within: float
    """Half of the way there and back: the offset is this close to ``seconds``."""

    @property
    def at_least(self) -> float:
        """How far the clocks are apart for sure."""
        return max(0.0, abs(self.seconds) - self.within)


def clock_offset(ssh: Ssh, host: str) -> Offset | None:
    """Return how far a machine's clock is off this one's; None where it does not say."""
    process = subprocess.Popen(
        [*ssh.command, host, REMOTE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdin
    assert process.stdout
    found = []
    try:
        for _ in range(ASKED):
            sent = time.time()
            process.stdin.write("\n")
            process.stdin.flush()
            answer = process.stdout.readline()
            back = time.time()
            if not answer:
                break
            found.append(Offset(float(answer) - (sent + back) / 2, (back - sent) / 2))
    except (OSError, ValueError):
        return None
    finally:
        process.kill()
        process.wait()
    return min(found, key=lambda offset: offset.within, default=None)
