"""Ray nodes of this project: how they are started, and how a program becomes part of their cluster.

Ray is an extra (``rankdrift[cluster]``), imported where it is needed. With its own settings a link that falls
silent (no reset) leaves tasks waiting for minutes; with these, on every node and in every program, the node
is given up and its tasks are done elsewhere within half a minute.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from rankdrift.errors import UserError
from rankdrift.studies.executors.processes import NODE

PORT = 6379
FOLDER, THREADS = "RANKDRIFT_FOLDER", "RANKDRIFT_THREADS"
"""What a node is told: where studies are on it, and its user's ``OMP_NUM_THREADS``, which Ray sets."""
SETTINGS = {
    "RAY_grpc_client_keepalive_time_ms": "5000",
    "RAY_grpc_client_keepalive_timeout_ms": "5000",
    "RAY_grpc_keepalive_time_ms": "5000",
    "RAY_grpc_keepalive_timeout_ms": "5000",
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "5",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
ANSWERS = 5.0
"""Seconds for a cluster's head to answer."""


def imported() -> ModuleType:
    """Return Ray, told our settings; raise UserError where it is not installed."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError:
        raise UserError("this needs Ray, which is an extra: pip install 'rankdrift[cluster]'") from None
    module: ModuleType = ray
    return module


def start(name: str, folder: Path, options: Sequence[str]) -> None:
    """Start a Ray node on this machine; ``options`` are those of ``ray start``.

    Raises UserError, with what Ray says, where it does not start.
    """
    imported()
    if not folder.is_dir():
        raise UserError(f"--folder {folder}: no such folder; name the one that studies are to be in here")
    told = {NODE: name, FOLDER: str(folder.resolve()), THREADS: os.environ.get("OMP_NUM_THREADS", "")}
    _ray(["start", *options, "--disable-usage-stats"], told)


def stop() -> str:
    """Stop all Ray processes of this machine; return what Ray says."""
    imported()
    return _ray(["stop"], {})


def require_answer(address: str) -> None:
    """Raise UserError unless somebody answers at ``HOST:PORT``."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(f"'{address}': not the address of a cluster; give HOST:PORT, as 'cluster start' says")
    try:
        socket.create_connection((host, int(port)), timeout=ANSWERS).close()
    except OSError as error:
        raise UserError(
            f"{address}: no Ray cluster answers there ({error.strerror or error}); 'rankdrift cluster start' "
            "makes one, and prints its address"
        ) from None


def connect(address: str) -> ModuleType:
    """Become part of a cluster; return Ray.

    Parameters
    ----------
    address
        ``HOST:PORT`` of its head, or ``auto`` for the cluster that this machine is part of.

    Raises
    ------
    UserError
        Where nobody answers, this machine is not part of the cluster, or has other versions of Ray or Python.

    """
    ray = imported()
    if address != "auto":
        require_answer(address)
    if ray.is_initialized():
        return ray
    try:
        ray.init(address=address, logging_level="error", log_to_driver=False, configure_logging=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"--ray {address}: this machine cannot join the cluster ({reason}); start a node here first: "
            "'rankdrift cluster join HOST:PORT'"
        ) from None
    return ray


def go_to_folder() -> None:
    """Be where studies are on this node, with the threads that its user has asked for, or no word of them."""
    os.chdir(os.environ.get(FOLDER, os.getcwd()))
    if threads := os.environ.get(THREADS):
        os.environ["OMP_NUM_THREADS"] = threads
    else:
        os.environ.pop("OMP_NUM_THREADS", None)


def _ray(arguments: Sequence[str], variables: dict[str, str]) -> str:
    """Run the ``ray`` command of this environment."""
    program = Path(sys.executable).with_name("ray")
    environment = {**os.environ, **variables}
    done = subprocess.run([str(program), *arguments], env=environment, capture_output=True, text=True)
    if done.returncode:
        said = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        raise UserError(f"ray {arguments[0]}: {said[-1] if said else 'failed'}")
    return done.stdout
