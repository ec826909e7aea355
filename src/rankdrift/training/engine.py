"""The DeepSpeed engine.

It hides the ZeRO stage: forward and backward of one micro-batch, the optimizer step, this rank's shards
of the averaged gradients, sharded checkpoints.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import deepspeed
import torch
import torch.distributed
from deepspeed.ops.op_builder import AsyncIOBuilder
from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from deepspeed.runtime.zero.utils import ZERO_SUPPORTED_OPTIMIZERS
from torch import Tensor, nn

from rankdrift.errors import UserError
from rankdrift.spec import TrainingSpec
from rankdrift.training.collectives import (
    device,
    rank,
    require_none,
    scalar,
    standard_output_muted,
    to_device,
    whole_over_ranks,
    world_size,
)
from rankdrift.training.ds_config import stage_of
from rankdrift.training.optimizer import AdamW, parameter_groups
from rankdrift.training.partitioned_model import divide
from rankdrift.zero_checkpoint.checksums import StoredFile, writing
from rankdrift.zero_checkpoint.load_state import (
    Place,
    is_kept,
    places_of,
    restore,
    set_masters,
    start_adam,
    vectors_of,
)
from rankdrift.zero_checkpoint.optimizer_state import KEPT, MOMENTS, open_training_state

ZERO_SUPPORTED_OPTIMIZERS.append(AdamW)  # torch's, which is one of them, but that it leaves groups out


@dataclass(frozen=True)
class GradientShard:
    """One rank's part of one parameter's averaged, unclipped gradient."""

    name: str
    numel: int
    """Elements of the whole parameter."""
    values: Tensor | None
    """This rank's elements, flat, in the accumulation's dtype; None where it holds none. The shards of all
    ranks together are the gradient, each element once."""
    start: int = 0
    """The first of them in the parameter."""


@dataclass(frozen=True)
class MasterShard:
    """One rank's part of a parameter's fp32 master and moments, flat; each element is on one rank."""

    name: str
    start: int
    """The part's first element in the parameter."""
    weights: Tensor
    first: Tensor
    second: Tensor
    updates: Tensor | None
    """How often AdamW has updated it, on its device; None where it never has."""
    rate: float
    """Its learning rate."""
    weight_decay: float
    betas: tuple[float, float]
    epsilon: float
    left: Tensor | None = None
    """1 where the last update left an element, 0 where it made it zero (``Engine.leave``); None left all."""


def zero_keys() -> frozenset[str]:
    """Return the keys that the installed DeepSpeed knows below ``zero_optimization``."""
    fields = DeepSpeedZeroConfig.model_fields
    return frozenset(fields) | {field.alias for field in fields.values() if field.alias}


def require_nvme(config: dict[str, Any]) -> None:
    """Raise UserError unless what is to be offloaded to NVMe can be: before anything is loaded."""
    zero = config["zero_optimization"]
    for key in ("offload_optimizer", "offload_param"):
        offload = zero.get(key) or {}
        if offload.get("device") != "nvme":
            continue
        remedy = f"or use device 'cpu' in zero_optimization.{key}"
        folder = offload.get("nvme_path")
        if not folder or not os.access(folder, os.W_OK | os.X_OK):
            raise UserError(
                f"zero_optimization.{key}.nvme_path={folder!r} is no folder that can be written to; name one "
                f"on a local disk, {remedy}"
            )
        if not AsyncIOBuilder().is_compatible(verbose=False):
            raise UserError(
                f"zero_optimization.{key}.device='nvme' needs DeepSpeed's async_io, which cannot be built "
                "here: libaio's headers are missing (Debian: apt-get install libaio-dev g++); install them, "
                f"{remedy}"
            )


class Engine:
    """A model under ZeRO.

    Parameters
    ----------
    model
        The prepared model; parameters that train have ``requires_grad``.
    training
        The optimisation's settings.
    config
        DeepSpeed's configuration, merged.
    rate
        Name of a parameter -> factor of its learning rate.
    phases
        Name of a parameter -> in which phases of the run it trains.

    """

    def __init__(
        self,
        model: nn.Module,
        training: TrainingSpec,
        config: dict[str, Any],
        rate: Callable[[str], float] = lambda name: 1.0,
        phases: Callable[[str], tuple[bool, ...]] = lambda name: (True,),
    ) -> None:
        self.stage = stage_of(config)
        trainable = [(name, param) for name, param in model.named_parameters() if param.requires_grad]
        self.numels = {name: param.numel() for name, param in trainable}
        self.shapes = {name: tuple(param.shape) for name, param in trainable}
        self.kept: dict[str, Tensor] = {}
        """What a method keeps beside weights and moments: it goes with the checkpoints."""
        self._left: dict[str, Tensor] = {}
        """Parameter -> which elements of this rank's part updates leave."""
        loaded = {name: param.data for name, param in trainable}
        # a divided parameter has no shape, by which groups are made
        self.groups = parameter_groups(trainable, rate, bool(training.weight_decay), phases)
        self.own_optimizer = optimizer = AdamW(self.groups, training)
        config = with_fitting_bucket(config, self.trained)
        with standard_output_muted():
            if divides(config):
                divide(model, deepspeed.zero.Init(module=nn.Module(), config_dict_or_path=config), device())
            self.deepspeed, self.optimizer, _, _ = deepspeed.initialize(
                model=model, optimizer=optimizer, config=config
            )
        # rank 0 alone would copy a script beside the checkpoints, and fail alone where it cannot
        self.deepspeed._copy_recovery_script = lambda folder: None
        self.parameters = self.active = trainable
        set_masters(self.deepspeed, trainable, loaded)

    @property
    def module(self) -> nn.Module:
        """The model itself."""
        return self.deepspeed.module

    @property
    def trained(self) -> int:
        """Elements of the parameters that train."""
        return sum(self.numels.values())

    @property
    def parameter_count(self) -> int:
        """Elements of all parameters, over all ranks."""
        return sum(getattr(param, "ds_numel", param.numel()) for param in self.module.parameters())

    def enter(self, phase: int, restart: bool = False) -> None:
        """Let those parameters train that do in a phase, and the others rest.

        ``restart``: those that have rested begin with moments of zero, and Adam counts their updates anew.
        """
        self.active = []
        for number, (group, options) in enumerate(zip(self.groups, self.optimizer.param_groups, strict=True)):
            active = group.phases[phase]
            if active and not options["active"] and restart:
                for vector in vectors_of(self.optimizer, number):
                    start_adam(self.optimizer, vector, 0)
            options["active"] = active
            # no gradient is computed of what rests, nor below all that trains
            for _, param in group.parameters:
                param.requires_grad_(active)
            self.active += group.parameters if active else []

    def train(self) -> None:
        """Switch dropout on, if it is not."""
        if not self.module.training:
            self.deepspeed.train()

    def forward(self, batch: dict[str, Any], **options: Any) -> Tensor:
        """Return the logits of a micro-batch, in the model's dtype; tensors are moved to the device."""
        given = {**batch, **options}
        moved = {name: to_device(x) if isinstance(x, Tensor) else x for name, x in given.items()}
        logits: Tensor = self.deepspeed(**moved).logits
        return logits

    def backward(self, loss: Tensor, last: bool = True) -> None:
        """Back-propagate one micro-batch's share of the global batch's loss; ``last``: of this step.

        DeepSpeed averages over ranks, so a share of a sum is multiplied by their number; it must not be
        divided by the accumulation steps, because the shares already add up to the mean over targets.
        """
        # a step has as many micro-batches as its rows need, not as many as DeepSpeed was told
        self.deepspeed.set_gradient_accumulation_boundary(last)
        self.deepspeed.backward(loss * world_size(), scale_wrt_gas=False)
        if not last:
            self.deepspeed.step()

    def step(self, learning_rate: float) -> Tensor:
        """Update the parameters; return the gradient norm before clipping, fp64 (1,), on the device."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * group["rate"]
        norm = self._replicated_norm() if self.stage == 0 else None
        self.deepspeed.step()
        self._count_updates()
        norm = self.deepspeed.get_global_grad_norm() if norm is None else norm
        # DeepSpeed gives a number where it has waited for it
        return norm.double().reshape(1).to(device()) if isinstance(norm, Tensor) else scalar(norm)

    def gradient_shards(self) -> Iterator[GradientShard]:
        """Yield this rank's part of every averaged gradient; only between the last backward and the step."""
        for name, param in self.active:
            yield GradientShard(name, self.numels[name], self._shard(param), self._start(param))

    def sensitivities(self) -> dict[str, Tensor]:
        """Return |w dL/dw| of what trains, whole, fp32, the same on every rank, which all must call it.

        Only between the last backward and the step.
        """
        masters = {place.name: place for place in self._places}

        def parts() -> Iterator[tuple[str, int, Tensor]]:
            for shard in self.gradient_shards():
                if shard.values is not None:
                    place, count = masters[shard.name], shard.values.numel()
                    first = place.offset + shard.start - place.start
                    weights = place.vector.detach().view(-1)[first : first + count].to(shard.values.device)
                    yield shard.name, shard.start, (weights * shard.values).abs()

        whole = whole_over_ranks(self.numels, parts())
        return {name: part.view(self.shapes[name]) for name, part in whole.items()}

    def leave(self, kept: Mapping[str, Tensor]) -> None:
        """Let the updates from now on leave these elements alone of some parameters; others become zero."""
        masks = []
        self._left = {}
        for place in self._places:
            if place.name in kept and place.count:
                values = place.vector.detach().view(-1)[place.offset : place.offset + place.count]
                mask = kept[place.name].flatten()[place.start : place.start + place.count]
                self._left[place.name] = mask.to(values)
                masks.append((values, self._left[place.name]))
        self.own_optimizer.masks = masks

    def share_penalty(self, passes: int) -> None:
        """Say how many backward passes of this rank a step has, where the model's add a penalty."""
        if penalty := getattr(self.module, "penalty", None):
            penalty.share = 1 / passes

    def watch_gradients(self, see: Callable[[int, Tensor], None]) -> contextlib.ExitStack:
        """Show what each micro-batch's backward pass finds on this rank, until the stack is closed.

        ``see`` is given the number of a parameter in ``active``, and its whole gradient before it is added
        to others or averaged: that of the loss as ``backward`` takes it, in the model's dtype.
        """
        stack = contextlib.ExitStack()
        for number, (_, param) in enumerate(self.active):
            stack.callback(param.register_hook(functools.partial(see, number)).remove)
        return stack

    @property
    def keeps_state(self) -> bool:
        """Whether masters and moments are in memory, all with one optimizer."""
        return is_kept(self.deepspeed.optimizer)

    def master_shards(self) -> Iterator[MasterShard]:
        """Yield this rank's part of every master that trains in some phase; needs ``keeps_state``.

        Parts without elements are among them. Before the first update there are no moments.
        """
        for place in self._places:
            options = self._options[place.vector]
            start, count = self._own_part(place)
            run = slice(place.offset + start, place.offset + start + count)
            state = self.deepspeed.optimizer.state[place.vector]
            master = place.vector.detach()
            first, second = (state.get(key, master).view(-1)[run] for key in MOMENTS)
            left = self._left.get(place.name)
            yield MasterShard(
                place.name,
                place.start + start,
                master.view(-1)[run],
                first,
                second,
                updates=state.get("step"),
                rate=options["lr"],
                weight_decay=options["weight_decay"],
                betas=options["betas"],
                epsilon=options["eps"],
                left=None if left is None else left[start : start + count],
            )

    def _own_part(self, place: Place) -> tuple[int, int]:
        """Return what counts as this rank's: at stage 0 every rank has all of it."""
        if self.stage:
            return 0, place.count
        size = -(-place.count // world_size())
        start = min(rank() * size, place.count)
        return start, min(size, place.count - start)

    @functools.cached_property
    def _places(self) -> list[Place]:
        return list(places_of(self.deepspeed.optimizer, self.parameters))

    @functools.cached_property
    def _options(self) -> dict[Tensor, dict[str, Any]]:
        """Vector -> the options of its group."""
        groups = enumerate(self.optimizer.param_groups)
        return {vector: group for number, group in groups for vector in vectors_of(self.optimizer, number)}

    def save(self, folder: Path, tag: str, exclude_frozen: bool) -> dict[str, StoredFile]:
        """Write this rank's shards below ``folder/tag``; return their sizes and checksums by name.

        Every rank must call it; it raises OSError on every rank where one of them could not write. The
        operating system has the files then, the disk may not.
        """
        writer = _Writer()
        self.deepspeed.checkpoint_engine = writer
        with standard_output_muted(), self._all_training():
            self.deepspeed.save_checkpoint(
                str(folder),
                tag=tag,
                client_state={KEPT: self.kept} if self.kept else {},
                save_latest=False,
                exclude_frozen_parameters=exclude_frozen,
            )
        require_none(writer.failure)
        return writer.files

    def restore(self, folder: Path) -> None:
        """Take up a checkpoint, whatever ZeRO stage and number of ranks wrote it; every rank must call it.

        The engine must not have trained yet.
        """
        with standard_output_muted():
            state = open_training_state(folder)
            restore(self.deepspeed, self.parameters, state)
        self.kept = {name: each.load().to(device()) for name, each in state.kept.items()}
        self._count_updates()

    def close(self) -> None:
        """Take DeepSpeed's hooks off the parameters, which keep these in memory when the run is over."""
        with standard_output_muted():
            self.deepspeed.destroy()

    def _count_updates(self) -> None:
        """Tell every group, of what rests as well, how many updates there were: a checkpoint has it."""
        for group in self.optimizer.param_groups:
            group["updates"] = self.deepspeed.global_steps - self.deepspeed.skipped_steps

    @contextlib.contextmanager
    def _all_training(self) -> Iterator[None]:
        """Let nothing that trains in some phase look frozen: DeepSpeed saves such otherwise, or not."""
        rests = [param for _, param in self.parameters if not param.requires_grad]
        for param in rests:
            param.requires_grad_(True)
        try:
            yield
        finally:
            for param in rests:
                param.requires_grad_(False)

    def _start(self, param: Any) -> int:
        """Return the first element of a parameter that this rank's part of its gradient is of."""
        if self.stage == 0:
            return rank() * -(-param.numel() // world_size())
        if self.stage == 3:
            return rank() * int(param.ds_tensor.ds_numel)
        return int(param._hp_mapping.lp_fragment_address.start) if param._hp_mapping else 0

    def _shard(self, param: Any) -> Tensor | None:  # DeepSpeed hangs its own attributes on a parameter
        if self.stage == 0:
            return _slice_of_rank(_averaged(param).flatten())
        if self.stage == 3:
            local = param._z3_optimizer.get_local_fp32_grad_for_param(param).flatten()
            # the last shards are padded to equal length: padding is no gradient
            held = min(max(param.ds_numel - rank() * local.numel(), 0), local.numel())
            return local[:held] if held else None
        mapping = param._hp_mapping
        if mapping is None:
            return None
        fragment = mapping.get_lp_grad_fragment(param._index_in_param_group).flatten()
        address = mapping.lp_fragment_address
        if fragment.numel() != address.numel:
            fragment = fragment.narrow(0, address.start, address.numel)
        return fragment

    def _replicated_norm(self) -> Tensor:
        """Return the norm at stage 0, where DeepSpeed gives none and every rank holds all gradients."""
        squares = [_averaged(param).double().square().sum() for _, param in self.active]
        return torch.stack(squares).sum().sqrt()


class _Writer(TorchCheckpointEngine):
    """Writes the files of one checkpoint, summed up on their way.

    A failure is kept, not raised: DeepSpeed's ranks wait for each other after writing, so one that left
    early would leave the others waiting.
    """

    def __init__(self) -> None:
        super().__init__()
        self.files: dict[str, StoredFile] = {}
        self.failure: str | None = None

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Do nothing: the folder is there."""

    def save(self, state_dict: Any, path: str) -> None:
        """Write one file."""
        try:
            with writing(Path(path)) as writer:
                torch.save(state_dict, cast(IO[bytes], writer))
        except (OSError, RuntimeError) as error:  # torch's writer says RuntimeError where a disk is full
            self.failure = self.failure or f"rank {rank()}: {Path(path).name}: {error}"
        else:
            self.files[Path(path).name] = writer.stored()


def with_fitting_bucket(config: dict[str, Any], trained: int) -> dict[str, Any]:
    """Return DeepSpeed's configuration with a bucket of gradients no larger than all of them are.

    It is allocated whole, whatever comes into it: an adapter's would have a hundred times its elements.
    """
    zero = config.get("zero_optimization") or {}
    bucket = int(zero.get("reduce_bucket_size", DeepSpeedZeroConfig().reduce_bucket_size))
    return config | {"zero_optimization": zero | {"reduce_bucket_size": min(bucket, trained)}}


def divides(config: dict[str, Any]) -> bool:
    """Whether ranks copy their parts of parameters out of the model as it was loaded, whatever its dtype.

    At stage 3, where parts are plain tensors in memory: not on NVMe, not quantised.
    """
    zero = config.get("zero_optimization") or {}
    on_disk = (zero.get("offload_param") or {}).get("device") == "nvme"
    return stage_of(config) == 3 and not on_disk and not zero.get("zero_quantized_nontrainable_weights")


def _averaged(param: nn.Parameter) -> Tensor:
    assert param.grad is not None, "the averaged gradient exists between the last backward and the step"
    return param.grad


def _slice_of_rank(flat: Tensor) -> Tensor | None:
    size = -(-flat.numel() // world_size())
    part = flat[rank() * size : (rank() + 1) * size]
    return part if part.numel() else None
