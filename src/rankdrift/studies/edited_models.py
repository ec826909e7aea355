"""Edited models of a run's step, exported and scored: causal interventions, and lines through weight space.

Each is a folder ``variants/step-NNNNNN/<name>/`` of the run with ``edit.json`` (what was done, and how
large it is), the model as an ordinary export, and its scores on the items of the run's own scores.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from rankdrift import files
from rankdrift.analysis.mathematics.spectral import interventions
from rankdrift.analysis.mathematics.spectral.interventions import ARMS, Edit
from rankdrift.analysis.measures._matrix_comparison import compare
from rankdrift.analysis.sources.naming import Projection
from rankdrift.analysis.sources.weights import TunedWeights, open_weights
from rankdrift.data.dataset import num_labels
from rankdrift.errors import UserError
from rankdrift.export.consolidate import consolidate
from rankdrift.layout import RunLayout, StudyLayout
from rankdrift.models.base import load_model, load_tokenizer, resolve
from rankdrift.models.exports import load_export
from rankdrift.scoring.run import score_run, score_targets
from rankdrift.scoring.score import Target, scoring_inputs
from rankdrift.spec import Spec, read_spec

Say = Callable[[str], None]
SPARE = 4
"""Leading vectors looked at for each that may be an intruder, so that controls are found among the others."""


@dataclass(frozen=True)
class Settings:
    """What is done to intruder dimensions."""

    strength: float = 0.0
    """Their singular values are multiplied with it: 0 removes them."""
    top_k: int = 10
    threshold: float = 0.5
    first_only: bool = False
    """Only the largest intruder of each matrix, as arXiv 2410.21228 does."""
    seed: int = 0
    """Of the random directions."""

    def __post_init__(self) -> None:
        """Raise UserError for a value that is no edit, or finds what is no intruder."""
        if not 0 <= self.strength < 1:
            raise UserError(f"--strength {self.strength:g}: 0 removes an intruder, 1 keeps it; give [0, 1)")
        if self.top_k < 1:
            raise UserError(f"--top-k {self.top_k}: how many leading vectors are looked at; give 1 or more")
        if not 0 < self.threshold < 1:
            raise UserError(f"--threshold {self.threshold:g}: a cosine; give one between 0 and 1")

    @property
    def label(self) -> str:
        """What tells edits of one step apart."""
        number = "first" if self.first_only else "all"
        return f"{self.strength:g}-{number}-of-{self.top_k}-below-{self.threshold:g}"


@dataclass(frozen=True)
class Source:
    """A run's step, and what it is compared with."""

    run: RunLayout
    step: int
    spec: Spec
    base: Path

    @classmethod
    def of(cls, run: RunLayout, step: int) -> Source:
        """Return a run's step, exported if it was not; raise UserError where there is none."""
        spec = read_spec(run.spec)
        if not run.export(step).is_dir():
            consolidate(run, step)
        return cls(run, step, spec, resolve(spec.model.name, spec.model.revision))

    @property
    def export(self) -> Path:
        """The model or adapter."""
        return self.run.export(self.step)

    def model(self) -> PreTrainedModel:
        """Return the whole tuned model, fp32, an adapter merged into its base."""
        plain = self.spec.model.model_copy(update={"gradient_checkpointing": False})
        model = load_export(self.export, self.base, plain, num_labels(self.spec))
        return model.merge_and_unload() if isinstance(model, PeftModel) else model

    def inputs(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return what an edited model depends on."""
        model = {"model": files.content_digest(self.export), "base": files.content_digest(self.base)}
        return {**model, "settings": dict(settings)}


def intervene(run: RunLayout, step: int, settings: Settings, say: Say) -> list[Path]:
    """Export and score every arm of the intervention on a step's intruders; return the scores' paths.

    Raises
    ------
    UserError
        If the step is missing, or no matrix of the blocks has an intruder.

    """
    source = Source.of(run, step)
    inputs = source.inputs(dataclasses.asdict(settings))
    names = {arm: f"{arm}-{settings.label}" for arm in ARMS}
    if not all(_is_current(run.variant(step, name), inputs) for name in names.values()):
        planned = _plan(source, settings, say)
        for arm, name in names.items():
            say(f"{name}: {ARMS[arm]}{_shortfall(arm, planned)}")
            _export_arm(source, arm, name, planned, inputs)
    return _score(source, list(names.values()), say)


def interpolate(run: RunLayout, step: int, positions: Sequence[float], say: Say) -> list[Path]:
    """Export and score W0 + t (W - W0) for every position t; return the scores' paths.

    All parameters that the base has are interpolated; a new classification head stays as trained.

    Raises
    ------
    UserError
        If the step is missing, or a position is no number, or twice there.

    """
    names = _line_names(positions)
    source = Source.of(run, step)
    for position, name in zip(positions, names, strict=True):
        inputs = source.inputs({"position": position})
        if not _is_current(run.variant(step, name), inputs):
            say(f"{name}: W0 + {position:g} (W - W0)")
            _export_interpolation(source, position, name, inputs)
    return _score(source, names, say)


def _line_names(positions: Sequence[float]) -> list[str]:
    """Return the folder names of points on the line from base to step."""
    if odd := [position for position in positions if not math.isfinite(position)]:
        raise UserError(f"--at {odd[0]}: not a point between or beyond base (0) and step (1); give numbers")
    names = [f"interpolation-{position:g}" for position in positions]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"--at {' '.join(map(str, positions))}: two are {twice[0]}; give each once")
    return names


Planned = dict[Projection, dict[str, Edit]]
"""Matrix -> arm -> what is done to it."""


@dataclass
class Sizes:
    """Squared Frobenius norms, summed over matrices."""

    edit: float = 0.0
    """Of W' - W."""
    update: float = 0.0
    """Of W' - W0."""
    base: float = 0.0
    """Of W0."""

    def add(self, base: Tensor, tuned: Tensor, edited: Tensor) -> None:
        """Count a matrix, given W0, W and W' in float64."""
        self.edit += float((edited - tuned).square().sum())
        self.update += float((edited - base).square().sum())
        self.base += float(base.square().sum())

    def relative(self) -> dict[str, float]:
        """Return the norms of edit and update relative to W0."""
        return {
            "relative_edit_norm": math.sqrt(self.edit / self.base),
            "relative_update_norm": math.sqrt(self.update / self.base),
        }


def _plan(source: Source, settings: Settings, say: Say) -> Planned:
    """Return the edits of every matrix that has an intruder."""
    weights = open_weights(source.base, source.export)
    study = StudyLayout(source.run.root.resolve().parent.parent)
    generator = np.random.default_rng(settings.seed)
    found: Planned = {}
    inside = _inside(weights)
    for number, projection in enumerate(inside, start=1):
        edited = _edits(weights, projection, study.base / "cache", settings, generator)
        if edited:
            found[projection] = edited
        if number % 50 == 0 or number == len(inside):
            say(f"looking for intruders: {number}/{len(inside)} matrices, {len(found)} have one")
    if not found:
        raise UserError(
            f"{source.export}: no intruder among the {settings.top_k} leading vectors of any matrix at "
            f"threshold {settings.threshold:g}: nothing to intervene on; raise --top-k or --threshold, "
            "or take a run with a higher learning rate"
        )
    return found


def _shortfall(arm: str, planned: Planned) -> str:
    """Return what is to be said of the control that scales other vectors where there are too few of them."""
    wanted, found = (sum(edits[of].vectors for edits in planned.values()) for of in ("intruders", arm))
    if arm != "neighbours" or found == wanted:
        return ""
    return f"; only {found} for {wanted} intruders, so it is the weaker edit: lower --threshold"


def _inside(weights: TunedWeights) -> list[Projection]:
    """Return the matrices of the blocks."""
    return [projection for projection in weights.projections if projection.layer >= 0]


def _edits(
    weights: TunedWeights,
    projection: Projection,
    cache: Path,
    settings: Settings,
    generator: np.random.Generator,
) -> dict[str, Edit]:
    found = compare(weights, projection, cache, SPARE * settings.top_k)
    if not found.update.any():
        return {}
    cosines = found.cosines["left"][: found.defined]  # other vectors are arbitrary, their cosines 0
    chosen = interventions.intruders_of(cosines, settings.threshold, settings.top_k, settings.first_only)
    if not chosen:
        return {}
    neighbours = interventions.neighbours_of(chosen, cosines, settings.threshold)
    update = found.pair.update.dense().numpy()
    return interventions.edits(found.tuned, update, chosen, neighbours, settings.strength, generator)


def _export_arm(source: Source, arm: str, name: str, planned: Planned, inputs: Mapping[str, Any]) -> None:
    weights = open_weights(source.base, source.export)
    model = source.model()
    parameters = _parameters(model, weights.base.tensors.names)
    sizes = Sizes()
    with torch.no_grad():
        for projection in _inside(weights):
            pair = weights.pair(projection)
            base, tuned = pair.base.double(), pair.tuned
            edited = tuned
            if projection in planned:
                values = planned[projection][arm].tuned(base.numpy(), (tuned - base).numpy())
                edited, place = torch.from_numpy(values), weights.base.places[projection]
                place.put(parameters[place.weight], edited)
            sizes.add(base, tuned, edited)
    counts = {
        "matrices": len(planned),
        "vectors": sum(edited[arm].vectors for edited in planned.values()),
    }
    chosen = {key: inputs["settings"][key] for key in ("top_k", "threshold", "first_only")}
    document = {"kind": "intervention", "arm": arm, "at": inputs["settings"]["strength"], **chosen, **counts}
    _write(source, name, model, {**document, **sizes.relative(), "inputs": dict(inputs)})


def _export_interpolation(source: Source, position: float, name: str, inputs: Mapping[str, Any]) -> None:
    plain = source.spec.model.model_copy(update={"gradient_checkpointing": False})
    model = source.model()
    stored = open_weights(source.base, source.export).base.tensors.names
    base = _parameters(load_model(source.base, plain, num_labels(source.spec)), stored)
    sizes = Sizes()
    shared = _parameters(model, stored)
    with torch.no_grad():
        for name_in_base, weight in shared.items():
            start, end = base[name_in_base].double(), weight.double()
            edited = start + position * (end - start)
            sizes.add(start, end, edited)
            weight.copy_(edited)
    chosen = dict.fromkeys(("top_k", "threshold", "first_only"))
    document = {"kind": "interpolation", "arm": "interpolation", "at": position, **chosen}
    counts = {"matrices": len(shared), "vectors": 0}
    _write(source, name, model, {**document, **counts, **sizes.relative(), "inputs": dict(inputs)})


def _parameters(model: PreTrainedModel, stored: Collection[str]) -> dict[str, nn.Parameter]:
    """Return a model's parameters by their names in the base, which lack a prefix in a backbone's folder."""
    prefix = f"{model.base_model_prefix}."
    found = {}
    for name, parameter in model.named_parameters():
        for own in (name, name.removeprefix(prefix)):
            if own in stored:
                found[own] = parameter
    return found


def _write(source: Source, name: str, model: PreTrainedModel, edit: Mapping[str, Any]) -> None:
    """Write an edited model as an export; what says what it is comes last."""
    variant = source.run.variant(source.step, name)
    shutil.rmtree(variant.root, ignore_errors=True)
    folder = variant.export(source.step)
    folder.mkdir(parents=True)
    model.save_pretrained(folder)
    load_tokenizer(source.base).save_pretrained(folder)
    files.write_json(variant.edit, edit)


def _is_current(variant: RunLayout, inputs: Mapping[str, Any]) -> bool:
    return variant.edit.exists() and files.read_json(variant.edit)["inputs"] == dict(inputs)


def _score(source: Source, names: Sequence[str], say: Say) -> list[Path]:
    """Score the edited models, and the step itself beside the base where that is still to do."""
    score_run(source.run, [source.step], base=True, progress=say)
    targets = []
    for name in names:
        variant = source.run.variant(source.step, name)
        folder = variant.export(source.step)
        inputs = scoring_inputs(source.spec, folder, source.base, "test")
        targets.append(Target(variant, source.step, folder, inputs, name=name))
    return score_targets(source.spec, source.base, targets, say)
