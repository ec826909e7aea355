"""The DeepSpeed engine, and the only module that imports deepspeed.

It hides the ZeRO stage: forward and backward of one micro-batch, the optimizer step, this rank's shards
of the averaged gradients, sums over ranks, sharded checkpoints.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import deepspeed
import deepspeed.ops
import deepspeed.utils.nvtx
import torch
import torch.distributed
from deepspeed.constants import default_pg_timeout
from deepspeed.ops.op_builder import AsyncIOBuilder
from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from deepspeed.runtime.zero.utils import ZERO_SUPPORTED_OPTIMIZERS
from deepspeed.utils import logger as deepspeed_logger
from torch import Tensor, nn

from rankdrift import files
from rankdrift.errors import RankError, UserError
from rankdrift.hosts.interface import interface_towards
from rankdrift.layout import RunLayout
from rankdrift.spec import TrainingSpec
from rankdrift.training import heap
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

logger = logging.getLogger(__name__)

ZERO_SUPPORTED_OPTIMIZERS.append(AdamW)  # torch's, which is one of them, but that it leaves groups out
TIMEOUT = default_pg_timeout
"""How long a rank waits for another one: $DEEPSPEED_TIMEOUT minutes, or DeepSpeed's default of 10."""


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


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Join the process group that the launcher describes; without a launcher, be a group of one.

    On a CPU, DeepSpeed would compile an operator (a minute, and 138 MB of /dev/shm that nobody removes)
    which only tensor-parallel inference calls: it is switched off.

    Raises
    ------
    RankError
        If another rank is lost, or keeps this one waiting for longer than ``TIMEOUT``.

    """
    deepspeed_logger.setLevel(logging.WARNING)
    # torch's notes to DeepSpeed's authors, twice a step
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    if "RANK" not in os.environ:
        alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
        os.environ.update(alone, MASTER_PORT="0")  # any free port: nobody else has to know it
    _choose_interface()
    if not torch.cuda.is_available():
        heap.keep_freed_memory()
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.utils.nvtx.enable_nvtx = False  # ranges for a GPU's profiler, thousands a step at stage 3
        _share_cores()
    _take_device()
    try:
        with _standard_output_muted():
            deepspeed.init_distributed(verbose=False, timeout=TIMEOUT)
        # ZeRO works in groups of its own, which DeepSpeed gives torch's time-out of half an hour
        deepspeed.comm.comm.cdb.new_group = functools.partial(torch.distributed.new_group, timeout=TIMEOUT)
        yield
    except RuntimeError as error:
        if not _is_of_lost_rank(error):
            raise
        logger.info("another rank is lost", exc_info=True)
        raise RankError(f"rank {os.environ['RANK']} has lost another rank: {_first_line(error)}") from error
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


@contextlib.contextmanager
def alone_in(folder: Path, leads: bool) -> Iterator[None]:
    """Hold a folder for this run; raise UserError on every rank if another run holds it.

    One rank of each machine's folder ``leads``. The lock dies with its process, so a killed run never blocks
    its successor.
    """
    with contextlib.ExitStack() as stack:
        free = True
        if leads:
            free = stack.enter_context(files.held(RunLayout(folder).lock, wait=False))
        if max_over_ranks(0.0 if free else 1.0):
            raise UserError(f"{folder}: another process is training in it; wait for it or stop it")
        yield


def rank() -> int:
    """Return this process's rank."""
    return torch.distributed.get_rank()


def world_size() -> int:
    """Return the number of ranks."""
    return torch.distributed.get_world_size()


def device() -> torch.device:
    """Return this rank's device."""
    return torch.device(deepspeed.get_accelerator().current_device_name())


def to_device(values: Tensor) -> Tensor:
    """Return a tensor of the CPU on this rank's device; nobody waits until it is there."""
    if device().type == "cpu":
        return values
    return values.pin_memory().to(device(), non_blocking=True)


def scalar(value: float) -> Tensor:
    """Return a number as a vector of one element, fp64, on this rank's device."""
    return to_device(torch.tensor([value], dtype=torch.float64))


def wait_for_device() -> None:
    """Wait until the device has done all it was given."""
    deepspeed.get_accelerator().synchronize()


def barrier() -> None:
    """Wait until every rank is here."""
    torch.distributed.barrier()


def sum_over_ranks(values: Tensor) -> Tensor:
    """Return the element-wise sum over ranks; every rank must call it with the same shape."""
    total = values.to(device())
    torch.distributed.all_reduce(total)
    return total


def shares_of_ranks(values: Tensor) -> Tensor:
    """Return what all ranks have of this rank's share of a matrix' columns, shape (ranks, rows, share).

    Every rank must call it with the same shape, and as many columns as ranks can share evenly.
    """
    given = values.unflatten(1, (world_size(), -1)).transpose(0, 1).contiguous()
    taken = torch.empty_like(given)
    torch.distributed.all_to_all_single(taken, given)
    return taken


def whole_over_ranks(
    numels: Mapping[str, int], parts: Iterable[tuple[str, int, Tensor]]
) -> dict[str, Tensor]:
    """Return tensors whole on every rank, flat, fp32, from all ranks' parts, by one exchange.

    Every rank must call it, with the same names and elements, and parts of its own: name, first element and
    values. Each element is in one rank's.
    """
    begins = dict(zip(numels, itertools.accumulate(numels.values(), initial=0), strict=False))
    flat = torch.zeros(sum(numels.values()), device=device())
    for name, start, values in parts:
        first = begins[name] + start
        flat[first : first + len(values)] = values
    whole = sum_over_ranks(flat).split(list(numels.values()))
    return dict(zip(numels, whole, strict=True))


def gather_vectors(values: Tensor) -> Tensor:
    """Return every rank's vector, shape (ranks, n), on the CPU: this waits for the device.

    Every rank must give the same length, on its device.
    """
    every = [torch.empty_like(values) for _ in range(world_size())]
    torch.distributed.all_gather(every, values)
    return torch.stack(every).cpu()


def gather(value: Any) -> list[Any]:
    """Return every rank's value, in the order of the ranks, on every rank; for small things."""
    values: list[Any] = [None] * world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def from_rank(source: int, values: Tensor) -> Tensor:
    """Return a rank's vector on every rank, on the CPU; every rank must give one of the same length."""
    moved = values.to(device())
    torch.distributed.broadcast(moved, src=source)
    return moved.cpu()


def require_none(failure: str | None) -> None:
    """Raise OSError on every rank if any rank reports a failure; every rank must call it."""
    if failures := [found for found in gather(failure) if found]:
        raise OSError(failures[0])


def on_rank_0(action: Callable[[], None]) -> None:
    """Do something on rank 0 while the others wait; raise OSError on every rank where it fails."""
    failure = None
    if rank() == 0:
        try:
            action()
        except (OSError, UserError) as error:
            failure = str(error)
    require_none(failure)


def max_over_ranks(value: float) -> float:
    """Return the largest value of any rank."""
    largest = scalar(value)
    torch.distributed.all_reduce(largest, op=torch.distributed.ReduceOp.MAX)
    return float(largest)


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
        with _standard_output_muted():
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
        with _standard_output_muted(), self._all_training():
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
        with _standard_output_muted():
            state = open_training_state(folder)
            restore(self.deepspeed, self.parameters, state)
        self.kept = {name: each.load().to(device()) for name, each in state.kept.items()}
        self._count_updates()

    def close(self) -> None:
        """Take DeepSpeed's hooks off the parameters, which keep these in memory when the run is over."""
        with _standard_output_muted():
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


def _choose_interface() -> None:
    """Let gloo listen where rank 0 can be reached, unless the user has said where, or one machine has all."""
    address = os.environ["MASTER_ADDR"]
    if (
        _local_ranks() < int(os.environ["WORLD_SIZE"])
        and address not in ("127.0.0.1", "localhost")
        and (found := interface_towards(address))
    ):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", found)


def _take_device() -> None:
    """Make this rank's GPU the current one, before any exchange: else a machine's ranks all use its first.

    Raises UserError where the launcher started more ranks here than there are GPUs.
    """
    accelerator, local = deepspeed.get_accelerator(), int(os.environ.get("LOCAL_RANK", "0"))
    if accelerator.device_name() == "cpu":
        return
    if local >= accelerator.device_count():
        raise UserError(
            f"rank {os.environ['RANK']} is number {local} of this machine's ranks, which has "
            f"{accelerator.device_count()} GPUs; start at most one rank a GPU (--num_gpus, hostfile slots)"
        )
    accelerator.set_device(local)


def _is_of_lost_rank(error: RuntimeError) -> bool:
    """Whether an error says that an exchange failed: gloo's errors are of no class of their own."""
    return isinstance(error, torch.distributed.DistError) or "/gloo/" in str(error)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def _averaged(param: nn.Parameter) -> Tensor:
    assert param.grad is not None, "the averaged gradient exists between the last backward and the step"
    return param.grad


def _slice_of_rank(flat: Tensor) -> Tensor | None:
    size = -(-flat.numel() // world_size())
    part = flat[rank() * size : (rank() + 1) * size]
    return part if part.numel() else None


def _share_cores() -> None:
    """Give each rank of this machine its share of the cores, unless the user has said otherwise."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // _local_ranks()))


def _local_ranks() -> int:
    """Return how many ranks this machine has, as torchrun or DeepSpeed's launcher says; else all."""
    said = (os.environ.get(name) for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE", "WORLD_SIZE"))
    return int(next(filter(None, said)))


@contextlib.contextmanager
def _standard_output_muted() -> Iterator[None]:
    """Keep DeepSpeed's bare prints out of the progress display; its logger still warns."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield
