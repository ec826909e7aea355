"""The experiment: a typed tree of settings, read from YAML, changed by dotted overrides, checked at once.

A recipe (``launch/recipes/*.yaml``) holds these settings, and may hold ``arms`` (named sets of
overrides: the methods that are compared) and ``seeds``. One run is one arm at one seed. What DeepSpeed
does with memory and communication is not here but in ``ds_configs/`` (see ``training/ds_config.py``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rankdrift import files, registry
from rankdrift.errors import UserError, did_you_mean

RECIPES = Path(__file__).resolve().parent / "recipes"
DEFAULT_RECIPE = RECIPES / "demo.yaml"
RECORD_KEYS = frozenset(
    {"log_every", "eval_every", "eval_rows", "save_every", "save_steps", "probe_every"}
    | {"keep_last", "keep_every", "keep_best"}
)
"""Settings of training that say what is recorded of it, and change no weight."""
TARGET_GROUPS = ("qv", "attention", "mlp", "both", "all")

PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class ModelSpec(_Section):
    """Which base model, and how it is run."""

    name: str = "smollm2-135m"
    """A hub id, a local Hugging Face folder, a ``.gguf`` file, ``smollm2-135m`` or ``tiny``."""
    revision: str | None = None
    """Commit, tag or branch of a hub model."""
    head: Literal["lm", "classifier"] = "lm"
    """``lm``: labels are words predicted by the LM head; ``classifier``: a new linear head."""
    attention: Literal["sdpa", "eager"] = "sdpa"
    """Attention implementation of transformers."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass."""


class DataSpec(_Section):
    """Which tasks, from where, and how rows become tokens."""

    tasks: tuple[str, ...] = ("topic",)
    """Names of files in ``tasks/``; more than one are mixed in proportion to their size."""
    root: str | None = None
    """Folder of Parquet slices (``<root>/<folder>/<split>.parquet``); None reads the hub or a generator."""
    max_length: PositiveInt = 128
    """Longest row in tokens, target included; prompts are cut from the left to fit."""
    train_limit: PositiveInt | None = None
    """Use at most this many training rows (the first ones)."""
    validation_limit: PositiveInt | None = None
    """Use at most this many validation rows (the first ones)."""
    general_text: Literal["auto", "builtin", "wikitext2"] = "auto"
    """Held-out text that measures forgetting; auto is wikitext2 where ``data.root`` has it."""


class MethodSpec(_Section):
    """How the model is trained."""

    name: str = "lora"
    """A file in ``methods/``: full or lora."""
    rank: PositiveInt = 8
    """LoRA rank r."""
    alpha: Annotated[float, Field(gt=0)] | None = None
    """LoRA alpha; None is 2r. The update is (alpha / r) B A."""
    dropout: Fraction = 0.0
    """Dropout on the input of A."""
    targets: str | tuple[str, ...] = "both"
    """qv, attention, mlp, both (attention and mlp), all (with embeddings and head), or module names."""

    @model_validator(mode="after")
    def _known_group(self) -> MethodSpec:
        if isinstance(self.targets, str) and self.targets not in TARGET_GROUPS:
            hint = did_you_mean(self.targets, TARGET_GROUPS)
            raise ValueError(
                f"'{self.targets}' is not a target group: {hint} Or give a list of module names."
            )
        return self

    @property
    def scaling_alpha(self) -> float:
        """The alpha in force: the given one, or 2r."""
        return self.alpha if self.alpha is not None else 2.0 * self.rank


class TrainingSpec(_Section):
    """The optimisation. DeepSpeed's JSON must not set the same knobs to other values."""

    steps: PositiveInt = 30
    """Optimizer steps."""
    global_batch: PositiveInt = 16
    """Rows an optimizer step, over all ranks and accumulation steps."""
    micro_batch: PositiveInt = 8
    """Most rows a rank puts through the model at once; lowered where it does not divide the batch."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    """Peak learning rate."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """Course after warm-up: constant, or down to zero."""
    warmup_steps: NonNegativeInt = 3
    """Steps of linear warm-up from zero."""
    weight_decay: NonNegativeFloat = 0.0
    """AdamW's decoupled weight decay, on matrices only."""
    beta1: Fraction = 0.9
    """AdamW's first decay rate."""
    beta2: Fraction = 0.999
    """AdamW's second decay rate."""
    epsilon: Annotated[float, Field(gt=0)] = 1e-8
    """AdamW's epsilon."""
    clip: NonNegativeFloat = 1.0
    """Largest global gradient norm; 0 does not clip."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the model; auto is bf16 on a GPU and fp32 on a CPU. Master weights are fp32."""
    log_every: PositiveInt = 1
    """Steps between lines of metrics.jsonl."""
    eval_every: PositiveInt | None = None
    """Steps between evaluations of the validation loss; None evaluates where it saves."""
    eval_rows: PositiveInt = 64
    """Validation rows of each task used for that loss."""
    save_every: PositiveInt | None = None
    """Steps between checkpoints; the last step is always saved."""
    save_steps: tuple[PositiveInt, ...] = ()
    """Further steps to save at; they are always kept."""
    keep_last: PositiveInt | None = None
    """Keep so many of the newest checkpoints; without any ``keep_`` setting all are kept."""
    keep_every: PositiveInt | None = None
    """Keep checkpoints whose step is a multiple of it."""
    keep_best: PositiveInt | None = None
    """Keep so many checkpoints of the lowest validation loss, the mean of tasks."""
    probe_every: NonNegativeInt = 10
    """Steps between gradient statistics; 0 switches them off."""

    @model_validator(mode="after")
    def _steps_in_range(self) -> TrainingSpec:
        if self.warmup_steps >= self.steps:
            raise ValueError(
                f"warmup_steps={self.warmup_steps} leaves no step of steps={self.steps} after it"
            )
        late = [step for step in self.save_steps if step > self.steps]
        if late:
            raise ValueError(f"save_steps {late} come after the last step, steps={self.steps}")
        return self


class ScoringSpec(_Section):
    """How a checkpoint is scored."""

    batch_size: PositiveInt = 16
    """Rows scored at once."""
    limit: PositiveInt | None = None
    """Validation rows scored a task (the first ones)."""
    max_new_tokens: PositiveInt = 64
    """Longest generated answer, in tokens."""
    text_limit: PositiveInt | None = None
    """Windows of general text scored."""


class AnalysisSpec(_Section):
    """What is measured on a checkpoint's weights and representations."""

    top_k: PositiveInt = 10
    """Leading singular vectors compared: intruders, principal angles."""
    intruder_threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """A vector is an intruder where its largest |cosine| with the base's is below this."""
    intruder_thresholds: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    """The grid of thresholds over which intruders are counted."""
    vector_counts: tuple[PositiveInt, ...] = (1, 2, 5, 10, 20, 32, 64)
    """The grid of leading singular vectors over which subspaces are compared and intruders counted."""
    drift_rows: PositiveInt = 64
    """Inputs over which layer drift is measured."""
    keep_representations: bool = False
    """Whether the mean-pooled states behind layer drift are stored for every checkpoint."""
    gradient_rows: NonNegativeInt = 32
    """Validation rows of each task on which gradients are taken at every checkpoint; 0 is none."""
    workers: NonNegativeInt = 0
    """Processes that share the matrices; 0 is one a core, at most four a GPU where there are GPUs."""


class Spec(_Section):
    """One run: the whole experiment."""

    study: str = "demo"
    """Name of the study's folder."""
    arm: str = "lora-r8"
    """Name of this run's arm within the study."""
    seed: NonNegativeInt = 42
    """Seed of initialisation, data order and dropout."""
    output: str = "outputs"
    """Folder that holds the study's folder."""
    model: ModelSpec = ModelSpec()
    data: DataSpec = DataSpec()
    method: MethodSpec = MethodSpec()
    training: TrainingSpec = TrainingSpec()
    scoring: ScoringSpec = ScoringSpec()
    analysis: AnalysisSpec = AnalysisSpec()

    @model_validator(mode="after")
    def _names_exist(self) -> Spec:
        if not self.data.tasks:
            raise ValueError("data.tasks is empty: name at least one task")
        for task in self.data.tasks:
            registry.require("task", task)
        registry.require("method", self.method.name)
        return self

    @property
    def run_name(self) -> str:
        """The run's folder name: ``<arm>-seed<seed>``."""
        return f"{self.arm}-seed{self.seed}"

    @property
    def study_root(self) -> Path:
        """The study's folder."""
        return Path(self.output) / self.study

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return self.model_dump(mode="json")

    def digest(self) -> str:
        """Return the SHA-256 of everything that can change a trained weight (not names, places, records)."""
        tree = self.as_dict()
        kept = {key: tree[key] for key in ("seed", "model", "data", "method")}
        training = {key: value for key, value in tree["training"].items() if key not in RECORD_KEYS}
        return files.digest_json({**kept, "training": training})


class Recipe(_Section):
    """A recipe as it was read: shared settings, arms and seeds."""

    shared: dict[str, Any]
    arms: dict[str, dict[str, Any]]
    seeds: tuple[int, ...]
    overrides: tuple[str, ...] = ()

    def spec(self, arm: str | None = None, seed: int | None = None) -> Spec:
        """Return one run's settings; the first arm and seed unless named. Overrides come last."""
        arm = arm if arm is not None else next(iter(self.arms))
        if arm not in self.arms:
            raise UserError(f"unknown arm '{arm}': {did_you_mean(arm, self.arms)}")
        tree = _merged(self.shared, self.arms[arm])
        tree = _merged(tree, {"arm": arm, "seed": seed if seed is not None else self.seeds[0]})
        return parse_spec(apply_overrides(tree, self.overrides))

    def runs(self) -> list[Spec]:
        """Return every arm at every seed; they must share the base model and the data to be compared."""
        runs = [self.spec(arm, seed) for seed in self.seeds for arm in self.arms]
        for other in runs[1:]:
            for section in ("model", "data"):
                if getattr(other, section) != getattr(runs[0], section):
                    raise UserError(
                        f"arms '{runs[0].arm}' and '{other.arm}' differ in '{section}': a study compares "
                        "methods on one base model and the same data; make two studies"
                    )
        return runs


def load_recipe(path: Path | None = None, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe (the demo's by default); raise UserError naming the path and key that is wrong."""
    path = path or DEFAULT_RECIPE
    tree = _read_yaml(path)
    arms = tree.pop("arms", None) or {tree.get("arm", Spec.model_fields["arm"].default): {}}
    seeds = tree.pop("seeds", None) or [tree.get("seed", Spec.model_fields["seed"].default)]
    if not isinstance(arms, dict) or not all(isinstance(arm, dict) for arm in arms.values()):
        raise UserError(f"{path}: 'arms' must map each arm's name to its settings, got {arms!r}")
    if not isinstance(seeds, list) or not all(type(seed) is int for seed in seeds):
        raise UserError(f"{path}: 'seeds' must be a list of whole numbers, got {seeds!r}")
    if any(override.startswith("seed=") for override in overrides):
        seeds = seeds[:1]
    recipe = Recipe(shared=tree, arms=arms, seeds=tuple(seeds), overrides=tuple(overrides))
    try:
        recipe.runs()
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return recipe


def read_spec(path: Path) -> Spec:
    """Read the ``spec.json`` of a run."""
    try:
        return parse_spec(files.read_json(path))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def parse_spec(tree: Mapping[str, Any]) -> Spec:
    """Check a tree of plain values; raise UserError that names the key, the value and the near miss."""
    try:
        return Spec.model_validate(tree)
    except ValidationError as error:
        problems = "\n  ".join(_explain(problem) for problem in error.errors())
        raise UserError(f"the experiment is not valid:\n  {problems}") from None


def apply_overrides(tree: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return the tree with ``key.path=value`` overrides applied; values are read as YAML."""
    result = _merged(tree, {})
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator or not key:
            raise UserError(f"override '{override}' is not of the form key.path=value")
        nested: Any = _parse_value(override, value)
        for part in reversed(key.split(".")):
            nested = {part: nested}
        result = _merged(result, nested)
    return result


def _parse_value(override: str, value: str) -> Any:
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UserError(f"override '{override}': the value is not valid YAML ({error})") from None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        names = ", ".join(sorted(str(recipe) for recipe in RECIPES.glob("*.yaml")))
        raise UserError(f"{path}: no such recipe; recipes that come with rankdrift: {names}") from None
    except (yaml.YAMLError, UnicodeDecodeError, IsADirectoryError) as error:
        raise UserError(f"{path}: not a valid YAML recipe ({error})") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: a recipe is a mapping of settings, got {type(tree).__name__}")
    return tree


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in changes.items():
        below = result.get(key)
        result[key] = _merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return result


def _explain(problem: Any) -> str:
    path = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        fields = _fields_at(problem["loc"][:-1])
        return (
            f"unknown key '{path}' (value {problem['input']!r}): {did_you_mean(problem['loc'][-1], fields)}"
        )
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return f"{path}: {message}" if path else message
    return f"{path}={problem['input']!r}: {message}"


def _fields_at(path: Sequence[Any]) -> list[str]:
    section: type[BaseModel] = Spec
    for part in path:
        annotation = section.model_fields[part].annotation
        assert isinstance(annotation, type)
        section = annotation
    return list(section.model_fields)
