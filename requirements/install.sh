#!/bin/sh
# Make a virtual environment with exactly the tested packages, and rankdrift in place. Used by make.
#   sh requirements/install.sh [FOLDER]       default folder: .venv
# Where there is no NVIDIA GPU, torch is the CPU build: the one on the package index would bring several
# gigabytes of CUDA libraries.
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
venv=${1:-$here/.venv}
python=${PYTHON:-python3}
torch=2.13.0
cpu_index=https://download.pytorch.org/whl/cpu

fail() { echo "install: $1" >&2; exit 2; }

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
    fail "$python is not Python 3.11 or newer; install it, or name one: make PYTHON=/path/to/python3.11"
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
    fail "$python cannot make virtual environments; on Debian: apt-get install python3-venv"

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }

echo "install: build tools"
pip install -qq 'setuptools==84.2.1' 'wheel==0.48.0'
if nvidia-smi -L >/dev/null 2>&1; then
    echo "install: torch $torch for CUDA"
    pip install -qq "torch==$torch"
else
    echo "install: torch $torch for CPU"
    pip install -qq --retries 0 --extra-index-url "$cpu_index" "torch==$torch+cpu"
fi
echo "install: the locked packages"
# DeepSpeed's setup imports torch, so it must be built here and not in a clean room of pip's
DS_BUILD_OPS=0 pip install -qq --no-build-isolation -r "$here/requirements/lock.txt"
echo "install: rankdrift"
pip install -qq --no-build-isolation --no-deps --editable "$here"
