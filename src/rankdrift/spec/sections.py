"""The sections of an experiment: a typed tree of settings, checked at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rankdrift import registry
from rankdrift.errors import did_you_mean
from rankdrift.models.families import GROUPS

PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """A part of the settings: frozen, and no key in it that is not declared."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class ModelSpec(Section):
    """Which base model, and how it is run."""

    name: str = "smollm2-135m"
    """A hub id, a local Hugging Face folder, a ``.gguf`` file, ``smollm2-135m`` or ``tiny``."""
    revision: str | None = None
    """Commit, tag or branch of a hub model."""
    head: Literal["lm", "classifier"] = "lm"
    """``lm``: labels are words predicted by the LM head; ``classifier``: a new linear head."""
    attention: Literal["auto", "sdpa", "eager"] = "auto"
    """Attention implementation of transformers; auto is sdpa where the family has it (Gemma 2 does not)."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass."""


class DataSpec(Section):
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


class MethodSpec(Section):
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
        if isinstance(self.targets, str) and self.targets not in GROUPS:
            hint = did_you_mean(self.targets, GROUPS)
            raise ValueError(
                f"'{self.targets}' is not a target group: {hint} Or give a list of module names."
            )
        return self

    @property
    def scaling_alpha(self) -> float:
        """The alpha in force: the given one, or 2r."""
        return self.alpha if self.alpha is not None else 2.0 * self.rank


class TrainingSpec(Section):
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


class ScoringSpec(Section):
    """How a checkpoint is scored."""

    batch_size: PositiveInt = 16
    """Rows scored at once."""
    limit: PositiveInt | None = None
    """Validation rows scored a task (the first ones)."""
    max_new_tokens: PositiveInt = 64
    """Longest generated answer, in tokens."""
    text_limit: PositiveInt | None = None
    """Windows of general text scored."""


class AnalysisSpec(Section):
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
    canonical: bool = False
    """Whether SVCCA and PWCCA are computed: they need ten rows for every direction that is compared."""
    keep_representations: bool = False
    """Whether the mean-pooled states behind layer drift are stored for every checkpoint."""
    gradient_rows: NonNegativeInt = 32
    """Validation rows of each task on which gradients are taken at every checkpoint; 0 is none."""
    workers: NonNegativeInt = 0
    """Processes that share the matrices; 0 is one a core, at most four a GPU where there are GPUs."""


class Spec(Section):
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
