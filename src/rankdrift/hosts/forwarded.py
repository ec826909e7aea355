"""The variables that ranks on other machines are given, in the file that DeepSpeed's launcher reads.

Through ssh a rank has the environment of a login and nothing of the shell it was started from. DeepSpeed
forwards what a file (``DS_ENV_FILE``) says, a line ``NAME=VALUE`` each, besides PYTHON*.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path

from rankdrift import files
from rankdrift.errors import UserError

PREFIXES = ("NCCL_", "GLOO_", "UCX_", "HF_", "RANKDRIFT_", "TORCH_", "DEEPSPEED_")
NAMES = ("PATH", "LD_LIBRARY_PATH", "DS_ACCELERATOR", "OMP_NUM_THREADS", "TOKENIZERS_PARALLELISM")
SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|API_KEY")
"""Of a variable that the processes of a machine's other users must not show."""
UNSAFE = re.compile(r"[\"$`\\\n]")
"""What a shell reads between double quotes, which are DeepSpeed's."""
OWN_FILES = (Path.home() / ".deepspeed_env", Path(".deepspeed_env"))
"""What the user has written for DeepSpeed, which reads one file alone."""


def forwarded(environment: Mapping[str, str], further: Iterable[str] = ()) -> dict[str, str]:
    """Return the variables that ranks need; ``further`` are NAME=VALUE, or NAME of one that is set here.

    Raises UserError where one is not set, or a value would not arrive as it is.
    """
    chosen = {
        name: value
        for name, value in environment.items()
        if (name.startswith(PREFIXES) or name in NAMES) and not SECRET.search(name)
    }
    for text in further:
        name, given, value = text.partition("=")
        if not given and name not in environment:
            raise UserError(f"--env {name}: not set here; set it, or give --env {name}=VALUE")
        chosen[name] = value if given else environment[name]
    for name, value in chosen.items():
        if not re.fullmatch(r"\w+", name) or UNSAFE.search(value):
            raise UserError(
                f"{name}={value!r} would not arrive as it is (quotes, $, backslash); set it on the hosts"
            )
    return dict(sorted(chosen.items()))


def write_forwarded(path: Path, variables: Mapping[str, str]) -> None:
    """Write the file, before it what the user has written for DeepSpeed."""
    own = [
        line for file in OWN_FILES if file.is_file() for line in file.read_text().splitlines() if "=" in line
    ]
    kept = [line for line in own if line.partition("=")[0].strip() not in variables]
    lines = [*kept, *(f"{name}={value}" for name, value in variables.items())]
    files.write_text(path, "\n".join(lines) + "\n")
    os.chmod(path, 0o600)


def as_a_rank(folder: Path, variables: Mapping[str, str], command: Iterable[str]) -> str:
    """Return the line by which a shell elsewhere runs a command as DeepSpeed's launcher would run a rank."""
    python = {name: value for name, value in os.environ.items() if name.startswith("PYTHON")}
    python["PYTHONPATH"] = os.pathsep.join(filter(None, (str(folder), python.get("PYTHONPATH"))))
    given = [f"{name}={value}" for name, value in {**variables, **python}.items()]
    return f"cd {shlex.quote(str(folder))} && exec {shlex.join(['env', *given, *command])}"
