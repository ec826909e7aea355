"""Merge the experiment into the DeepSpeed configuration; a knob set in both to other values is an error.

The recipe owns batch, clipping, precision, optimizer and schedule. The JSON owns stage, offload, buckets
and communication; files written for the Hugging Face Trainer, with "auto" in them, are taken as they are.
DeepSpeed checks the keys below ``zero_optimization`` but ignores unknown ones at the top level, so a typo
there would change a run silently: here it is refused. docs/ds_configs.md lists what becomes of each key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankdrift import files
from rankdrift.errors import UserError, did_you_mean
from rankdrift.spec import Spec

HONOURED = frozenset(
    {
        *("aio", "checkpoint", "comms_logger", "communication_data_type", "data_types", "disable_allgather"),
        *("disable_python_gc", "dump_state", "flops_profiler", "gradient_predivide_factor", "log_level"),
        *("memory_breakdown", "prescale_gradients", "steps_per_print", "timers", "wall_clock_breakdown"),
        *("zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "zero_optimization"),
    }
)
"""Top-level keys that reach DeepSpeed as they are."""
_MONITORS = "the recipe owns monitoring: metrics.jsonl and TensorBoard in the run's folder have all values"
REFUSED = {
    "optimizer": "the recipe has it: training.learning_rate, beta1, beta2, epsilon, weight_decay",
    "scheduler": "the recipe has it: training.schedule, warmup_steps, minimum_rate",
    "fp16": "the recipe has it: training.precision (fp32 or bf16)",
    "amp": "the recipe has it: training.precision",
    "torch_autocast": "the recipe has it: training.precision",
    **dict.fromkeys(("tensorboard", "wandb", "csv_monitor", "comet"), _MONITORS),
    "activation_checkpointing": "it only acts on models that call DeepSpeed's own function; the recipe has "
    "model.gradient_checkpointing",
    "compile": "it only acts where engine.compile() is called, which no run does",
    "dataloader_drop_last": "batches are the recipe's: training.global_batch",
    "seed": "the recipe has it: seed",
    **dict.fromkeys(
        ("autotuning", "elasticity", "nebula", "datastates", "data_efficiency", "curriculum_learning"),
        "it changes batches or checkpoints, which are the recipe's and rankdrift's",
    ),
    **dict.fromkeys(
        (
            *("pipeline", "tensor_parallel", "expert_parallel", "hybrid_engine", "sequence_parallel_size"),
            *("use_data_before_expert_parallelism", "seq_parallel_communication_data_type"),
        ),
        "ranks share data alone: no run is cut along layers, matrices, experts or rows' lengths",
    ),
    **dict.fromkeys(
        (
            *("compression_training", "weight_quantization", "progressive_layer_drop", "eigenvalue"),
            *("sparse_attention", "sparse_gradients", "quantize_training"),
        ),
        "it changes what is computed, so that runs could not be compared",
    ),
    "gradient_allreduce_op": "gradients are averaged, or losses would depend on the number of ranks",
    "managed_gradient_accumulation": "accumulation is the recipe's: training.global_batch, micro_batch",
    "vocabulary_size": "it is the model's",
}
"""Top-level keys that are not accepted -> why, and what to use; harmless where they are switched off."""
ZERO_DEFAULTS: dict[str, Any] = {"stage": 0}
BUCKETS: dict[str, Callable[[int], int]] = {
    "reduce_bucket_size": lambda width: width * width,
    "stage3_prefetch_bucket_size": lambda width: int(0.9 * width * width),
    "stage3_param_persistence_threshold": lambda width: 10 * width,
}
"""Sizes that may be "auto", from the model's width (transformers 5.23, integrations/deepspeed.py)."""


@dataclass(frozen=True)
class BatchPlan:
    """How the global batch is cut: micro_batch x accumulation x world_size = global batch."""

    micro_batch: int
    accumulation: int
    world_size: int


def merge(
    spec: Spec, path: Path, plan: BatchPlan, precision: str, zero_keys: frozenset[str], hidden_size: int
) -> tuple[dict[str, Any], list[str]]:
    """Return DeepSpeed's configuration and the sentences that say what was changed in it.

    Parameters
    ----------
    spec
        The experiment.
    path
        The DeepSpeed JSON file.
    plan
        The cut of the global batch.
    precision
        "fp32" or "bf16", resolved.
    zero_keys
        The keys that the installed DeepSpeed knows below ``zero_optimization``.
    hidden_size
        The model's width, from which buckets that are "auto" follow.

    Raises
    ------
    UserError
        For unknown keys, knobs of the recipe, or knobs set differently in both: all of them at once.

    """
    given = files.read_json(path)
    if not isinstance(given, dict):
        raise UserError(f"{path}: a DeepSpeed configuration is a JSON object, got {type(given).__name__}")
    owned = _recipe_knobs(spec, plan, precision)
    given, zero = _without_inert(given), given.get("zero_optimization", {})
    problems = [*_unknown_keys(given, owned), *_zero_problems(zero, zero_keys), *_conflicts(given, owned)]
    if problems:
        listed = problems[0] if len(problems) == 1 else "".join(f"\n  {problem}" for problem in problems)
        raise UserError(f"{path}: {listed}")
    given["zero_optimization"] = _with_buckets(zero, hidden_size)
    config = {**given, **{key: value for key, (value, _) in owned.items()}}
    config["zero_optimization"] = {**ZERO_DEFAULTS, **given["zero_optimization"]}
    config.setdefault("steps_per_print", 2**31 - 1)  # our own log has these lines
    # torch's fused AdamW also runs on the CPU; DeepSpeed's own would be compiled at first use
    config.setdefault("zero_force_ds_cpu_optimizer", False)
    config, notes = _without_stage0_bf16(config, precision)
    if precision == "bf16":
        notes += _accumulate_in_fp32(config)
    return config, notes + _not_resumable(config["zero_optimization"])


def _not_resumable(zero: Mapping[str, Any]) -> list[str]:
    """Return a warning where masters or moments will not be in memory, from which a run is restored."""
    offloads = {key: zero.get(key) or {} for key in ("offload_optimizer", "offload_param")}
    nvme = [key for key, offload in offloads.items() if offload.get("device") == "nvme"]
    if not nvme and offloads["offload_optimizer"].get("ratio", 1.0) == 1.0:
        return []
    what = f"{nvme[0]}.device=nvme" if nvme else "offload_optimizer.ratio below 1"
    return [f"{what}: this run cannot resume from its checkpoints; use device=cpu with ratio 1 if it must"]


def stage_of(config: Mapping[str, Any]) -> int:
    """Return the ZeRO stage of a merged configuration."""
    return int(config["zero_optimization"]["stage"])


def _without_stage0_bf16(config: dict[str, Any], precision: str) -> tuple[dict[str, Any], list[str]]:
    """Run bf16 without ZeRO as stage 1: the same arithmetic as stages 1 to 3.

    At stage 0 DeepSpeed switches to an optimizer whose initialisation takes a step with zero gradients,
    so Adam's counter and weight decay move: its losses would not compare with any other stage's.
    """
    if precision != "bf16" or stage_of(config) != 0:
        return config, []
    zero = {**config["zero_optimization"], "stage": 1}
    note = (
        "stage 0 in bf16 is run as ZeRO stage 1: DeepSpeed's stage 0 optimizer for bf16 takes a step with "
        "zero gradients at start and does not compare with stages 1-3"
    )
    return {**config, "zero_optimization": zero}, [note]


def _accumulate_in_fp32(config: dict[str, Any]) -> list[str]:
    """Add up and reduce gradients in fp32 unless the JSON says otherwise; return a sentence where it does.

    DeepSpeed's default is the model's dtype: in bf16, whose sums stop growing once a term is below 1/256 of
    them, what many accumulation steps add up to is wrong.
    """
    config["data_types"] = {"grad_accum_dtype": "fp32", **config.get("data_types", {})}
    config.setdefault("communication_data_type", "fp32")
    chosen = config["data_types"]["grad_accum_dtype"], config["communication_data_type"]
    if chosen == ("fp32", "fp32"):
        return []
    return [
        f"gradients are added up in {chosen[0]} and reduced in {chosen[1]}, as data_types.grad_accum_dtype "
        "and communication_data_type ask: sums of many micro-batches or ranks lose digits"
    ]


def _recipe_knobs(spec: Spec, plan: BatchPlan, precision: str) -> dict[str, tuple[Any, str]]:
    """Return DeepSpeed's key -> (value, the recipe's key) for all that the recipe owns."""
    return {
        "train_batch_size": (spec.training.global_batch, "training.global_batch"),
        "train_micro_batch_size_per_gpu": (plan.micro_batch, "training.micro_batch"),
        "gradient_accumulation_steps": (
            plan.accumulation,
            "training.global_batch / (micro_batch x ranks)",
        ),
        "gradient_clipping": (spec.training.clip, "training.clip"),
        "bf16": ({"enabled": precision == "bf16"}, "training.precision"),
    }


def _without_inert(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration without keys that are refused but say nothing: switched off, or all "auto"."""
    return {key: value for key, value in given.items() if key not in REFUSED or _says_something(value)}


def _says_something(value: Any) -> bool:
    if isinstance(value, dict):
        if "enabled" in value:
            return bool(value["enabled"] not in (False, "auto"))
        values = [inner for key, inner in value.items() if key != "type"]
        return not values or any(_says_something(inner) for inner in values)
    return bool(value not in (None, False, "auto"))


def _unknown_keys(given: Mapping[str, Any], owned: Mapping[str, Any]) -> Iterator[str]:
    for key, value in given.items():
        if key in REFUSED:
            yield f"'{key}'={value!r} is not taken from here: {REFUSED[key]}; remove it"
        elif key not in HONOURED and key not in owned:
            hint = did_you_mean(key, HONOURED | set(owned))
            yield f"unknown key '{key}' (value {value!r}), which DeepSpeed would ignore: {hint}"


def _zero_problems(zero: Any, known: frozenset[str]) -> Iterator[str]:
    if not isinstance(zero, dict):
        yield f"'zero_optimization' must be an object, got {zero!r}"
        return
    for key, value in zero.items():
        if key not in known:
            yield f"unknown key 'zero_optimization.{key}' (value {value!r}): {did_you_mean(key, known)}"
        elif value == "auto" and key not in BUCKETS:
            yield f"zero_optimization.{key}='auto' means nothing here; give its value, or remove it"
    if zero.get("elastic_checkpoint"):
        yield (
            "zero_optimization.elastic_checkpoint=true writes checkpoints that no run can go on from; remove "
            "it (a run resumes on any number of ranks without it)"
        )
    stage = zero.get("stage", 0)
    if type(stage) is not int or not 0 <= stage <= 3:
        yield f"zero_optimization.stage={stage!r}; the stages are 0, 1, 2 and 3"
    if zero.get("round_robin_gradients"):
        # 0.19.8: safe_get_full_fp32_param is wrong for most parameters on two ranks
        yield (
            "zero_optimization.round_robin_gradients=true makes DeepSpeed map parameters to other "
            "parameters' partitions, so gradient statistics would be wrong; remove it"
        )


def _conflicts(given: Mapping[str, Any], owned: Mapping[str, tuple[Any, str]]) -> Iterator[str]:
    for key, (value, recipe_key) in owned.items():
        if key in given and given[key] not in (value, "auto", {"enabled": "auto"}):
            yield (
                f"'{key}' is {given[key]!r} here, but {recipe_key} of the recipe gives {value!r}; remove it "
                "here (the recipe owns it) or make them equal"
            )


def _with_buckets(zero: Mapping[str, Any], hidden_size: int) -> dict[str, Any]:
    """Return the section with "auto" replaced by what transformers' integration takes for it."""
    return {key: BUCKETS[key](hidden_size) if value == "auto" else value for key, value in zero.items()}
