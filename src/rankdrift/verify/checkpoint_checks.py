"""The checks of one sharded checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path

from rankdrift.errors import IntegrityError, UserError
from rankdrift.export.expected_parameters import Blueprint, Shape, blueprint, label_count, needs_base
from rankdrift.export.finite_checks import check_finite, check_ties, check_updates
from rankdrift.layout import RunLayout
from rankdrift.verify.checks import Check, LeftOutError, Progress, check_listing, running
from rankdrift.zero_checkpoint.manifest import MANIFEST_NAME, Manifest
from rankdrift.zero_checkpoint.optimizer_state import TrainingState, open_training_state
from rankdrift.zero_checkpoint.shards import ShardedCheckpoint, Shards, read_shards, weights_of


class CheckpointSubject:
    """A checkpoint's folder, ``RUN/checkpoints/step-NNNNNN``."""

    kind = "checkpoint"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def checks(self, fast: bool, reload: bool) -> Iterator[Check]:
        """Yield the checks in order; ``fast`` leaves out those that read all bytes."""
        yield Check("manifest", self._manifest)
        if not fast:
            yield Check("contents", self._contents)
        yield Check("layout", self._layout)
        yield Check("parameters", self._parameters)
        if self.manifest.method == "lora":
            yield Check("updates", self._updates)
        if not fast:
            yield Check("weights", self._weights)
            yield Check("moments", self._moments)

    @cached_property
    def manifest(self) -> Manifest:
        """Its manifest; the files have the sizes it states."""
        return Manifest.read(self.folder)

    @cached_property
    def _shards(self) -> Shards:
        return read_shards(self.folder)

    @cached_property
    def _stored(self) -> ShardedCheckpoint:
        return weights_of(self._shards)

    @property
    def _model(self) -> Path:
        """What the checkpoint is one of: the configuration in its run's folder."""
        return RunLayout(self.folder.absolute().parent.parent).model

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

    def _parameters(self, progress: Progress) -> str:
        shapes = {name: tensor.shape for name, tensor in self._stored.tensors.items()}
        model = self._blueprint(shapes)
        model.check(shapes, self._stored.aliases, self.folder)
        check_ties(self._stored.tensors, model.tied, self.folder)
        return f"{len(model.needed)} as the model's configuration has them"

    def _blueprint(self, shapes: Mapping[str, Shape]) -> Blueprint:
        if not self._model.is_dir():
            raise LeftOutError(f"no folder {self._model}, which says what model this is")
        base = Path(self.manifest.base)
        if needs_base(self._model) and not base.is_dir():
            raise LeftOutError(f"the base model is not at {base}")
        return blueprint(self._model, base, label_count(shapes))

    def _updates(self, progress: Progress) -> str:
        return check_updates(self._stored.tensors, self.manifest.step, self.folder)

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
