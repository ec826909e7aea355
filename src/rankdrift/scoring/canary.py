"""A frozen model on frozen inputs: does this environment still score as the one that scored before?

A public study that was run again with newer libraries lost 1.6 points of accuracy on average, with the same
training losses: as much as most of its methods differ. So with every checkpoint a reference is scored whose
answers are stored (``canary.json``); where they move, it is scoring that moved and not what was trained.

The model has the shape of ``tiny``. Its weights are exact fractions of a stream of random numbers that NumPy
promises never to change (NEP 19), not what a library draws to initialise a model. Nothing of it is trained,
so that its answers mean nothing but themselves.

``python -m rankdrift.scoring.canary`` checks this environment and prints what it finds; with ``--write`` it
stores this environment's answers as the reference, which is right only where the inputs themselves changed (a
new version of ``topic`` or ``describe``), and never to silence a warning.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.metadata
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from rankdrift import files, registry
from rankdrift.data.general_text import load_windows
from rankdrift.models.tiny import tiny_config, tiny_tokenizer
from rankdrift.scoring.answers import answer
from rankdrift.scoring.detokenizer import Detokenizer
from rankdrift.scoring.items import task_items
from rankdrift.scoring.retention import GeneralText, measure_windows
from rankdrift.spec import parse_spec
from rankdrift.tasks.kinds import Request

REFERENCE = Path(__file__).with_name("canary.json")
TOLERANCE = 1e-3
"""Nats by which an answer may differ: 40 times what thread counts, attention implementations and batch sizes
make of it (2.4e-5 at most), a third of what 1e-5 for 1e-6 in the norms does (docs/log.md)."""
PACKAGES = ("torch", "transformers", "tokenizers", "peft", "numpy", "sacrebleu", "rouge-score", "nltk")
"""What scores are computed by."""
CHOSEN, WRITTEN, WINDOWS = 24, 8, 8
"""Items of `topic` by likelihood, of `describe` in writing, and paragraphs of the built-in text."""
BATCH_TOKENS = 2048
SETTINGS = {
    "model": {"name": "tiny"},
    "data": {"tasks": ["topic", "describe"], "max_length": 160, "general_text": "builtin"},
    "scoring": {"limit": CHOSEN, "max_new_tokens": 16},
}


@dataclass(frozen=True)
class Canary:
    """How the reference model's answers differ from the stored ones."""

    largest_difference: float | None
    """Largest |difference| of a log-likelihood, nats (of a window: nats a token); None where the inputs are
    others."""
    texts_changed: int
    """Of the texts that it wrote."""
    moved: bool
    reason: str
    """What moved; empty where nothing did."""
    device: str
    versions: dict[str, str]
    """Package -> version here."""
    reference_versions: dict[str, str]
    """Package -> version where the stored answers were given."""


@dataclass(frozen=True)
class Answers:
    """What the reference model says."""

    inputs: str
    """Digest of its weights and of all tokens it reads."""
    likelihoods: tuple[float, ...]
    """Of the choices, nats, then of the windows, nats a token."""
    texts: tuple[str, ...]
    versions: dict[str, str] = field(default_factory=dict)


@functools.cache
def check_canary() -> Canary:
    """Return how this environment scores the reference model, found once a process (well below 2 s)."""
    stored = files.read_json(REFERENCE)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: Any = frozen_model()
    with _one_thread():  # a model as small is slowed down by more
        found = reference_answers(model.to(device))
    return compared(found, Answers(**stored), device)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def compared(found: Answers, stored: Answers, device: str) -> Canary:
    """Return the difference of two environments' answers."""
    place: dict[str, Any] = {
        "device": device,
        "versions": found.versions,
        "reference_versions": stored.versions,
    }
    if found.inputs != stored.inputs:
        return Canary(None, 0, True, "the reference's own tokens or weights are others here", **place)
    difference = float(np.max(np.abs(np.subtract(found.likelihoods, stored.likelihoods))))
    texts = sum(one != other for one, other in zip(found.texts, stored.texts, strict=True))
    reasons = []
    if not difference <= TOLERANCE:  # NaN has moved too
        reasons.append(f"log-likelihoods by up to {difference:.2g} nats")
    if texts:
        reasons.append(f"{texts} of {len(stored.texts)} texts")
    return Canary(difference, texts, bool(reasons), ", ".join(reasons), **place)


def frozen_model() -> PreTrainedModel:
    """Return the reference model, fp32, on the CPU: the same weights on every machine and with any library.

    Matrices are uniform in ±1/2, which makes predictions sharp; vectors (of norms) are 1.
    """
    with torch.random.fork_rng(devices=[]):
        model: PreTrainedModel = LlamaForCausalLM(tiny_config()).eval()
    stream = np.random.RandomState(0)  # of NumPy's streams the frozen one
    with torch.no_grad():
        for _, weight in sorted(model.named_parameters()):
            values = stream.random_sample(tuple(weight.shape)) - 0.5 if weight.ndim > 1 else 1.0
            weight.copy_(torch.as_tensor(values, dtype=weight.dtype))
    model.config.use_cache = False
    return model


def reference_answers(model: PreTrainedModel) -> Answers:
    """Return what a model says to the canary's requests and windows."""
    tokenizer = tiny_tokenizer()
    requests, text = _workload(tokenizer)
    told: list[Any] = list(answer(model, requests, Detokenizer.of(tokenizer), BATCH_TOKENS))
    windows = measure_windows(model, text)
    likelihoods = [one.log_likelihood for one in told if not isinstance(one, str)]
    likelihoods += list(-windows["nll"] / windows["tokens"])
    return Answers(
        inputs=_digest(model, requests, text),
        likelihoods=tuple(map(float, likelihoods)),
        texts=tuple(one for one in told if isinstance(one, str)),
        versions={name: importlib.metadata.version(name) for name in PACKAGES},
    )


def _workload(tokenizer: PreTrainedTokenizerBase) -> tuple[list[Request], GeneralText]:
    spec, context = parse_spec(SETTINGS), tiny_config().max_position_embeddings
    chosen, written = (
        task_items(spec, registry.load("task", name), "test", tokenizer, context)
        for name in ("topic", "describe")
    )
    asked = [*chosen.items, *written.items[:WRITTEN]]
    windows = load_windows(spec.data, tokenizer, WINDOWS)
    text = GeneralText(tuple(windows), tokenizer.pad_token_id, BATCH_TOKENS)
    return [request for item in asked for request in item.requests], text


def _digest(model: PreTrainedModel, requests: Sequence[Request], text: GeneralText) -> str:
    weights = [
        [name, files.digest_text(weight.detach().float().cpu().numpy().tobytes().hex())]
        for name, weight in sorted(model.named_parameters())
    ]
    # a setting that requests get one day, and these leave as it is, changes nothing
    read = [[value for value in dataclasses.asdict(request).values() if value] for request in requests]
    return files.digest_json([weights, read, [window.input_ids for window in text.windows]])


def main(arguments: Sequence[str]) -> int:
    """Check this environment, or write its answers down; return 1 where they moved."""
    if list(arguments) == ["--write"]:
        files.write_json(REFERENCE, dataclasses.asdict(reference_answers(frozen_model())))
        return 0
    found = check_canary()
    print("\n".join(f"{name}: {value}" for name, value in dataclasses.asdict(found).items()))
    return int(found.moved)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
