"""The checks of one sharded checkpoint: of a run of ours, or of the Hugging Face Trainer or accelerate."""

from __future__ import annotations

import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path

from rankdrift import files
from rankdrift.errors import IntegrityError, UserError
from rankdrift.export.expected_parameters import (
    ADAPTER_CONFIG,
    MODEL_CONFIG,
    Blueprint,
    Shape,
    blueprint,
    label_count,
    needs_base,
)
from rankdrift.export.finite_checks import check_finite, check_ties, check_updates
from rankdrift.layout import RunLayout
from rankdrift.verify.checks import Check, LeftOutError, Progress, check_listing, running
from rankdrift.zero_checkpoint.manifest import MANIFEST_NAME, Manifest
from rankdrift.zero_checkpoint.optimizer_state import TrainingState, open_training_state
from rankdrift.zero_checkpoint.shards import ShardedCheckpoint, Shards, read_shards, weights_of
from rankdrift.zero_checkpoint.trainer_folder import TrainerFolder


class _Sharded(ABC):
    """What is checked of shards, whoever wrote them."""

    kind = "checkpoint"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def _shards(self) -> Shards:
        return read_shards(self.folder)

    @cached_property
    def _stored(self) -> ShardedCheckpoint:
        return weights_of(self._shards)

    @property
    @abstractmethod
    def settings(self) -> Path:
        """The folder whose configuration says what model this is."""

    @property
    @abstractmethod
    def base(self) -> Path:
        """The base model's folder; of interest for an adapter alone."""

    @property
    @abstractmethod
    def step(self) -> int:
        """The step it is said to be of."""

    @property
    @abstractmethod
    def adapts(self) -> bool:
        """Whether LoRA was trained."""

    def _of_shards(self, fast: bool) -> Iterator[Check]:
        yield Check("layout", self._layout)
        yield Check("parameters", self._parameters)
        if self.adapts:
            yield Check("updates", self._updates)
        if not fast:
            yield Check("weights", self._weights)
            yield Check("moments", self._moments)

    @abstractmethod
    def _layout(self, progress: Progress) -> str: ...

    def _parameters(self, progress: Progress) -> str:
        shapes = {name: tensor.shape for name, tensor in self._stored.tensors.items()}
        model = self._blueprint(shapes)
        model.check(shapes, self._stored.aliases, self.folder)
        check_ties(self._stored.tensors, model.tied, self.folder)
        return f"{len(model.needed)} as the model's configuration has them"

    def _blueprint(self, shapes: Mapping[str, Shape]) -> Blueprint:
        if not any((self.settings / name).is_file() for name in (ADAPTER_CONFIG, MODEL_CONFIG)):
            raise LeftOutError(f"no configuration in {self.settings}, which would say what model this is")
        if needs_base(self.settings) and not self.base.is_dir():
            raise LeftOutError(f"the base model is not at {self.base}")
        return blueprint(self.settings, self.base, label_count(shapes))

    def _updates(self, progress: Progress) -> str:
        return check_updates(self._stored.tensors, self.step, self.folder)

    def _weights(self, progress: Progress) -> str:
        return f"{check_finite(self._stored.tensors, self.folder)} finite"

    def _moments(self, progress: Progress) -> str:
        moments = self._state().moments
        count = check_finite(moments["exp_avg"], self.folder, "Adam's exp_avg of ")
        count += check_finite(moments["exp_avg_sq"], self.folder, "Adam's exp_avg_sq of ", minimum=0.0)
        return f"{count} finite, no square negative"

    def _state(self) -> TrainingState:
        try:
            return open_training_state(self.folder)
        except IntegrityError:
            raise
        except UserError as error:  # another optimizer, or a layout of it that is not known
            raise LeftOutError(str(error)) from None


class CheckpointSubject(_Sharded):
    """A run's checkpoint, ``RUN/checkpoints/step-NNNNNN``."""

    def checks(self, fast: bool, reload: bool) -> Iterator[Check]:
        """Yield the checks in order; ``fast`` leaves out those that read all bytes."""
        yield Check("manifest", self._manifest)
        if not fast:
            yield Check("contents", self._contents)
        yield from self._of_shards(fast)

    @cached_property
    def manifest(self) -> Manifest:
        """Its manifest; the files have the sizes it states."""
        return Manifest.read(self.folder)

    @property
    def settings(self) -> Path:
        """The folder ``model`` of its run."""
        return RunLayout(self.folder.absolute().parent.parent).model

    @property
    def base(self) -> Path:
        """As the manifest states."""
        return Path(self.manifest.base)

    @property
    def step(self) -> int:
        """As the manifest states."""
        return self.manifest.step

    @property
    def adapts(self) -> bool:
        """Whether the run's configuration is an adapter's."""
        return (self.settings / ADAPTER_CONFIG).is_file()

    def _manifest(self, progress: Progress) -> str:
        sizes = {name: file.size for name, file in self.manifest.files.items()}
        return check_listing(self.folder, sizes, MANIFEST_NAME)

    def _contents(self, progress: Progress) -> str:
        total = sum(file.size for file in self.manifest.files.values())
        self.manifest.check_contents(self.folder, running(progress, total))
        return f"{total / 1e6:.1f} MB as written"

    def _layout(self, progress: Progress) -> str:
        found = {
            "step": self._shards.model.get("global_steps"),
            "zero_stage": self._stored.zero_stage,
            "world_size": self._stored.world_size,
        }
        for key, value in found.items():
            if value != (stated := getattr(self.manifest, key)):
                raise IntegrityError(
                    f"{self.folder}: its shards are of {key}={value!r}, {MANIFEST_NAME} states {stated!r}; "
                    "use another step"
                )
        return (
            f"step {self.manifest.step}, ZeRO-{self.manifest.zero_stage}, ranks: {self.manifest.world_size}"
        )


class TrainerSubject(_Sharded):
    """A checkpoint that no run of ours wrote: nothing states checksums but the archives themselves."""

    def __init__(self, found: TrainerFolder) -> None:
        super().__init__(found.shards)
        self.found = found

    def checks(self, fast: bool, reload: bool) -> Iterator[Check]:
        """Yield the checks in order; ``fast`` leaves out those that read all bytes."""
        if not fast:
            yield Check("contents", self._contents)
        yield from self._of_shards(fast)

    @property
    def settings(self) -> Path:
        """The folder above the shards."""
        return self.found.folder

    @property
    def base(self) -> Path:
        """As the adapter's settings state; of a whole model its own folder, which needs none."""
        if not self.adapts:
            return self.settings
        return Path(str(files.read_json(self.settings / ADAPTER_CONFIG).get("base_model_name_or_path")))

    @property
    def step(self) -> int:
        """As the folder's name states."""
        return self.found.step

    @property
    def adapts(self) -> bool:
        """Whether the settings of an adapter lie beside the shards."""
        return (self.settings / ADAPTER_CONFIG).is_file()

    def _contents(self, progress: Progress) -> str:
        paths = sorted(self.folder.glob("*_states.pt"))
        sizes = [path.stat().st_size for path in paths]
        for number, path in enumerate(paths, start=1):
            self._check_archive(path)
            progress(sum(sizes[:number]), sum(sizes))
        return f"{len(paths)} archives, {sum(sizes) / 1e6:.1f} MB, as their CRC-32 state"

    def _check_archive(self, path: Path) -> None:
        try:
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
        except (zipfile.BadZipFile, EOFError) as error:
            raise IntegrityError(f"{path}: damaged ({error}); copy the file again") from None
        if damaged:
            raise IntegrityError(f"{path}: {damaged} is not what was written; copy the file again")

    def _layout(self, progress: Progress) -> str:
        counted, stage = self._shards.model.get("global_steps"), self._stored.zero_stage
        return f"step {counted}, ZeRO-{stage}, ranks: {self._stored.world_size}"
