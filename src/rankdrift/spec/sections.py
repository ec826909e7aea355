"""The sections of an experiment: a typed tree of settings, checked at once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, SerializeAsAny, field_validator, model_validator

from rankdrift import registry
from rankdrift.errors import did_you_mean
from rankdrift.settings import Fraction, NonNegativeFloat, NonNegativeInt, OpenFraction, PositiveInt, Section
from rankdrift.spec.phases import PhaseSpec, phases, read_schedule


class ModelSpec(Section):
    """Which base model, and how it is run."""

    name: str = "smollm2-135m"
    """A hub id, a local Hugging Face folder, a ``.gguf`` file, ``smollm2-135m`` or ``tiny``."""
    revision: str | None = None
    """Commit, tag or branch of a hub model."""
    head: Literal["lm", "classifier"] = "lm"
    """``lm``: labels are words predicted by the LM head; ``classifier``: a new linear head."""
    heads: Literal["per_task", "shared"] = "per_task"
    """Classes of a new head: each task has its own, or tasks with as many classes have the same ones."""
    attention: Literal["auto", "sdpa", "eager"] = "auto"
    """Attention implementation of transformers; auto is sdpa where the family has it (Gemma 2 does not)."""
    gradient_checkpointing: bool | Literal["selective"] = False
    """Recompute activations in the backward pass: all, or all but those of matrix products and attention."""
    compile: bool = False
    """Compile the blocks (``torch.compile``) for training: by a C++ compiler or Triton; not at stage 3."""
    liger: bool = False
    """Norms and gated MLPs are Liger's fused kernels (``pip install 'rankdrift[liger]'``); on a GPU."""

    @model_validator(mode="after")
    def _fuses_once(self) -> ModelSpec:
        if self.liger and self.compile:
            raise ValueError("liger and compile fuse the same operations: choose one of them")
        return self


class MixtureSpec(Section):
    """How several training tasks are mixed; by default in proportion to their rows."""

    weights: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] | Literal["balanced"] | None = None
    """Task -> its share of the rows that are trained on, of every task and up to a factor; ``balanced`` gives
    all the same."""
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """T of shares in proportion to rows^(1/T): 1 is proportional, large ones are balanced."""
    caps: dict[str, PositiveInt] | PositiveInt | None = None
    """Most rows of a task, or of each task, that are in the mixture, spread evenly over the task's rows."""

    @model_validator(mode="after")
    def _one_rule(self) -> MixtureSpec:
        if self.weights is not None and self.temperature != 1:
            raise ValueError(
                f"weights={self.weights} and temperature={self.temperature} both set the shares: give one"
            )
        return self

    def named(self) -> dict[str, list[str]]:
        """Return the tasks that each setting names."""
        given = {"weights": self.weights, "caps": self.caps}
        return {key: list(value) for key, value in given.items() if isinstance(value, dict)}


class DataSpec(Section):
    """Which tasks, from where, and how rows become tokens."""

    tasks: tuple[str, ...] = ("topic",)
    """What is trained on: files in ``tasks/``, groups of them (``similar``, ``dissimilar``, ``glue``), or a
    YAML file of one's own."""
    mixture: MixtureSpec = MixtureSpec()
    """How the rows of several tasks are mixed."""
    root: str | None = None
    """Folder of data sets in the hub's layout (``<root>/<folder>/<split>.parquet``, .jsonl, .json or .csv);
    None reads the hub or a generator."""
    carve: tuple[str, ...] = ()
    """Tasks whose test split is not to be had: their validation split reports, a tenth of train selects."""
    max_length: PositiveInt = 128
    """Longest row in tokens, target included; prompts are cut from the left to fit."""
    train_limit: PositiveInt | None = None
    """Use at most this many training rows (the first ones)."""
    validation_limit: PositiveInt | None = None
    """Use at most this many validation rows (the first ones) to select by."""
    general_text: Literal["auto", "builtin", "wikitext2"] = "auto"
    """Held-out text that measures forgetting; auto is wikitext2 where ``data.root`` has it."""

    @field_validator("tasks")
    @classmethod
    def _of_groups(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        return registry.tasks_of(given)


class MethodSpec(Section):
    """How the model is trained; each file of ``methods/`` declares the rest of its own section."""

    name: str = "lora"
    """A file in ``methods/``."""
    schedule: tuple[PhaseSpec, ...] = ()
    """Which of what it trains does when: ``both->mlp->attn``, ``early@0.25->late``, or a list of phases with
    ``train``, ``layers`` and ``until``; without one all of it does at every step."""
    restart: bool = False
    """Whether what has rested begins a phase with moments of zero, instead of those it was left with."""

    @field_validator("schedule", mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        return read_schedule(value)

    def in_force(self) -> dict[str, Any]:
        """Return the settings that the method uses, as it uses them, in plain JSON types."""
        settings = self.model_dump(mode="json")
        if not self.schedule:  # so a run without one is what it was before there were any
            del settings["schedule"], settings["restart"]
        return settings

    @property
    def adapter_rank(self) -> int:
        """The rank that bounds the update of a matrix; 0 where nothing does."""
        return 0

    @property
    def is_random(self) -> bool:
        """Whether a training step draws random numbers."""
        return False


class TrainingSpec(Section):
    """The optimisation. DeepSpeed's JSON must not set the same knobs to other values."""

    steps: PositiveInt = 30
    """Optimizer steps; without ``epochs`` and ``tokens``, which say it otherwise."""
    epochs: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Passes over the rows of the mixture, in the place of ``steps``."""
    tokens: PositiveInt | None = None
    """Tokens to train on, padding left out, in the place of ``steps``: as many steps as have them."""
    global_batch: PositiveInt = 16
    """Rows an optimizer step, over all ranks and accumulation steps."""
    micro_batch: PositiveInt | Literal["auto"] = 8
    """Most rows a rank puts through the model at once; lowered where it does not divide the batch. auto is
    what a GPU has room for, found in the first steps, and on a CPU, where more at once gain nothing, 8."""
    packing: Literal["auto", "on", "off"] = "auto"
    """Rows put through at once lie end to end, each attending to itself alone, instead of being filled up to
    the longest; auto packs where the model's family, its head and its attention allow it."""
    micro_batch_tokens: PositiveInt | None = None
    """Most tokens a rank puts through the model at once, however many rows these are (of rows that are filled
    up, as many of the longest as it has room for); None is what ``micro_batch`` of the longest have."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    """Peak learning rate; of a run that does not say, its method's (docs/methods.md)."""
    schedule: Literal["constant", "linear", "cosine", "wsd"] = "linear"
    """Course after warm-up: constant; down to ``minimum_rate``; or stable, and down at the end (wsd)."""
    warmup_steps: NonNegativeInt = 3
    """Steps of linear warm-up from zero."""
    warmup_ratio: Fraction | None = None
    """Fraction of the steps that is warm-up, in the place of ``warmup_steps``."""
    minimum_rate: Fraction = 0.0
    """What linear, cosine and wsd go down to, over the peak."""
    decay_ratio: OpenFraction = 0.2
    """Last fraction of the steps, in which wsd goes down, linearly."""
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
    deterministic: bool = False
    """Whether none but deterministic algorithms are taken: the same seed gives the same bits on a GPU too."""
    log_every: PositiveInt = 1
    """Steps between lines of metrics.jsonl."""
    eval_every: PositiveInt | None = None
    """Steps between evaluations of the validation loss; None evaluates where it saves."""
    eval_steps: tuple[NonNegativeInt, ...] = ()
    """Further steps to evaluate at."""
    eval_rows: PositiveInt = 64
    """Validation rows of each task used for that loss."""
    eval_items: NonNegativeInt = 0
    """Validation items of each task whose metrics are taken at the same time, as scoring takes them."""
    save_every: PositiveInt | None = None
    """Steps between checkpoints; the last step is always saved."""
    save_steps: tuple[PositiveInt, ...] = ()
    """Further steps to save at; they are always kept."""
    keep_last: PositiveInt | None = None
    """Keep so many of the newest checkpoints; without any ``keep_`` setting all are kept."""
    keep_every: PositiveInt | None = None
    """Keep checkpoints whose step is a multiple of it."""
    keep_best: PositiveInt | None = None
    """Keep so many of the best checkpoints, by ``best``."""
    best: str = "validation/loss"
    """The logged value that selects: the mean of the tasks' losses, ``validation/TASK/loss``, or with
    ``eval_items`` ``validation/TASK/METRIC``."""
    patience: PositiveInt | None = None
    """Evaluations in a row that are no better, after which the run ends; None never ends it early."""
    min_delta: NonNegativeFloat = 0.0
    """By how much an evaluation has to be better to count as such."""
    mirrors: tuple[Literal["wandb", "trackio"], ...] = ()
    """Services that are shown what is logged, each an extra (``pip install 'rankdrift[wandb]'``)."""
    probe_every: NonNegativeInt = 10
    """Steps between the probes' measurements; 0 switches them off."""
    probe_conflict: bool = False
    """Whether probes compare the gradients of several tasks: in the steps that are probed, their rows are put
    through the model by themselves."""
    profile: tuple[PositiveInt, ...] = ()
    """Steps that every rank writes a trace of, below ``traces`` of the run, for Perfetto; it slows them."""

    @property
    def warmup(self) -> int:
        """Steps of warm-up."""
        return self.warmup_steps if self.warmup_ratio is None else round(self.warmup_ratio * self.steps)

    @property
    def decay(self) -> int:
        """Steps in which the rate goes down at the end, if the schedule is wsd."""
        return max(1, round(self.decay_ratio * self.steps))

    @field_validator("packing", mode="before")
    @classmethod
    def _switch(cls, value: Any) -> Any:
        """Return on and off for what YAML makes of these words."""
        return {True: "on", False: "off"}[value] if isinstance(value, bool) else value

    @model_validator(mode="after")
    def _has_one_length(self) -> TrainingSpec:
        names = [n for n in ("steps", "epochs", "tokens") if n in self.model_fields_set and getattr(self, n)]
        if len(names) > 1:
            given = ", ".join(f"{name}={getattr(self, name)}" for name in names)
            raise ValueError(f"{given} each say how long the run is: give one of them")
        return self

    @property
    def is_open(self) -> bool:
        """Whether ``steps`` is yet to be told, by the data."""
        return self.epochs is not None or self.tokens is not None

    @model_validator(mode="after")
    def _fits_together(self) -> TrainingSpec:
        if self.micro_batch == "auto" and self.micro_batch_tokens is not None:
            raise ValueError(
                f"micro_batch=auto finds the tokens that micro_batch_tokens={self.micro_batch_tokens} sets: "
                "give one of them"
            )
        if not self.is_open:
            self._fits_the_steps()
        return self

    def _fits_the_steps(self) -> None:
        warmup, decay = self.warmup, self.decay if self.schedule == "wsd" else 0
        if warmup >= self.steps:
            given = (
                "warmup_steps" if self.warmup_ratio is None else f"warmup_ratio={self.warmup_ratio}, warm-up"
            )
            raise ValueError(f"{given}={warmup} leaves no step of steps={self.steps} after it")
        if warmup + decay > self.steps:
            raise ValueError(
                f"decay_ratio={self.decay_ratio} of steps={self.steps} and a warm-up of {warmup} steps "
                "overlap; lower one"
            )
        for name in ("save_steps", "eval_steps"):
            late = [step for step in getattr(self, name) if step > self.steps]
            if late:
                raise ValueError(f"{name} {late} come after the last step, steps={self.steps}")


class ScoringSpec(Section):
    """How a checkpoint is scored."""

    tasks: tuple[str, ...] | None = None
    """Tasks and groups of them; None is those trained on, and of ``retention`` what there is data for: all of
    it from the hub, of ``data.root`` what it holds, none where every trained task is built in."""
    splits: tuple[Literal["validation", "test"], ...] = ("test",)
    """Test reports; validation, which selects, may be scored as well."""
    limit: PositiveInt | None = None
    """Items scored a task and split (the first ones)."""
    batch_tokens: PositiveInt = 4096
    """Tokens put through the model at once, padding included."""
    max_length: PositiveInt | None = None
    """Longest input of tasks that were not trained on, in tokens; None is the model's own. Those trained on
    are cut as in training (``data.max_length``)."""
    max_new_tokens: PositiveInt | None = None
    """Longest generated answer, in tokens; None is what each task says."""
    text_limit: PositiveInt | None = None
    """Windows of general text scored, and prompts of each trained task; None is ``limit``."""
    merge: bool = True
    """Whether an adapter is merged into the base, in fp32, before it is scored."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the model; auto is bf16 on a GPU and fp32 on a CPU. Log-softmax is fp32 in any case."""

    @field_validator("tasks")
    @classmethod
    def _of_groups(cls, given: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return None if given is None else registry.tasks_of(given)

    @field_validator("splits")
    @classmethod
    def _one_or_both(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        if not given or len(set(given)) < len(given):
            raise ValueError("name validation, test or both, each once")
        return given


class AnalysisSpec(Section):
    """How checkpoints are analysed; every other key is an analysis, with the settings its file declares."""

    model_config = ConfigDict(extra="allow")

    workers: NonNegativeInt = 0
    """Processes that share the matrices; 0 is one a core, at most four a GPU where there are GPUs."""

    @property
    def given(self) -> dict[str, Any]:
        """Analysis -> its settings as they are given, unchecked: it takes seconds to import them."""
        return dict(self.model_extra or {})


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
    storage: str | None = None
    """Folder or fsspec URL (``s3://bucket/prefix``) where finished cells are put, and taken from by any
    machine."""
    model: ModelSpec = ModelSpec()
    data: DataSpec = DataSpec()
    method: SerializeAsAny[MethodSpec] = Field(default_factory=MethodSpec)
    training: TrainingSpec = TrainingSpec()
    scoring: ScoringSpec = ScoringSpec()
    analysis: AnalysisSpec = AnalysisSpec()

    @model_validator(mode="before")
    @classmethod
    def _rate_of_the_method(cls, tree: Any) -> Any:
        """Take the method's learning rate where none is given: LoRA's is not that of full fine-tuning."""
        training, method = (
            (tree.get(key) or {} for key in ("training", "method"))
            if isinstance(tree, dict)
            else (None, None)
        )
        if not isinstance(training, dict) or not isinstance(method, dict) or "learning_rate" in training:
            return tree
        if (name := method_name(method)) not in registry.names("method"):
            return tree
        rate = registry.load("method", name).learning_rate
        return {**tree, "training": {**training, "learning_rate": rate}}

    @field_validator("method", mode="before")
    @classmethod
    def _as_its_method(cls, given: Any) -> Any:
        """Check the section of a method as that method declares it.

        Arms share settings, so those of another method may be there as well: they are left out.
        """
        tree = given.model_dump() if isinstance(given, MethodSpec) else given
        if not isinstance(tree, dict):
            return tree
        own = method_section(method_name(tree))
        others = {key for name in registry.names("method") for key in method_section(name).model_fields}
        kept = {key: value for key, value in tree.items() if key in own.model_fields or key not in others}
        return own.model_validate(kept)

    @model_validator(mode="after")
    def _names_exist(self) -> Spec:
        if not self.data.tasks and not self.scoring.tasks:
            raise ValueError("data.tasks is empty: name at least one task")
        tasks = dict.fromkeys((*self.data.tasks, *(self.scoring.tasks or ())))
        for task in tasks:
            registry.require("task", task)
        own = [registry.load("task", task).name for task in tasks if task.endswith(registry.TASK_FILES)]
        for name in own:
            if own.count(name) > 1:
                raise ValueError(f"two files of tasks have the name '{name}': give one another")
        for name in self.data.carve:
            if name.endswith(registry.TASK_FILES):
                raise ValueError(f"data.carve={name}: give the name that is in the file")
            if name not in own:
                registry.require("task", name)
        return self

    @model_validator(mode="after")
    def _phases_fit_the_steps(self) -> Spec:
        if self.method.schedule and not self.training.is_open:
            try:
                phases(self.method.schedule, self.training.steps)
            except ValueError as error:
                raise ValueError(f"method.schedule: {error}") from None
        return self

    @model_validator(mode="after")
    def _mixture_is_of_these_tasks(self) -> Spec:
        named = self.data.mixture.named()
        tasks = [registry.load("task", task).name for task in self.data.tasks] if named else []
        for key, names in named.items():
            for task in names:
                if task not in tasks:
                    raise ValueError(
                        f"data.mixture.{key} names '{task}', which data.tasks has not: "
                        f"{did_you_mean(task, tasks)}"
                    )
        missing = sorted(set(tasks) - set(named.get("weights", tasks)))
        if missing:
            raise ValueError(
                f"data.mixture.weights has no weight of {', '.join(missing)}: give every task one"
            )
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
        """Return plain JSON types; of a run whose steps are yet to be told, none."""
        tree = self.model_dump(mode="json")
        if self.training.is_open:
            del tree["training"]["steps"]
        return tree


def method_name(section: Mapping[str, Any]) -> str:
    """Return the method that a section is of, as it was given."""
    return str(section.get("name", MethodSpec.model_fields["name"].default))


def method_section(name: str) -> type[MethodSpec]:
    """Return the section that a method's file declares; raise UserError if there is no such method."""
    section: type[MethodSpec] = registry.load("method", name).settings
    return section
