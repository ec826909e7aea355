"""The checks of one export: a model's folder, an adapter's, or a merged model's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import pydantic
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rankdrift import layout
from rankdrift.errors import IntegrityError
from rankdrift.export.consolidate import PROVENANCE_NAME
from rankdrift.export.expected_parameters import ADAPTER_CONFIG, Blueprint, blueprint, label_count, needs_base
from rankdrift.export.finite_checks import check_finite, check_ties, check_updates
from rankdrift.export.peft_names import disk_name
from rankdrift.export.safetensors_writer import DTYPES
from rankdrift.layout import RunLayout
from rankdrift.verify.checks import Check, LeftOutError, Progress, check_contents, check_listing
from rankdrift.verify.reload import Exported, compare
from rankdrift.zero_checkpoint.checksums import StoredFile

INDEX_NAME = "model.safetensors.index.json"
_CODES = {"fp32": "F32", "bf16": "BF16", "fp16": "F16"}  # of the format safetensors

_Parsed = TypeVar("_Parsed")


@dataclass(frozen=True)
class _Base:
    folder: str


@dataclass(frozen=True)
class Provenance:
    """What is needed here of ``provenance.json``."""

    step: int
    method: str
    dtype: str
    merged: bool
    base: _Base
    outputs: dict[str, StoredFile]

    @classmethod
    def read(cls, folder: Path) -> Provenance:
        """Return an export's manifest; raise IntegrityError where it is malformed or of another folder."""
        path = folder / PROVENANCE_NAME
        provenance = _parsed(cls, path)
        if provenance.dtype not in DTYPES:
            raise IntegrityError(f"{path}: dtype {provenance.dtype!r} is not known; export the step again")
        if layout.step_of(folder.name) not in (None, provenance.step):
            raise IntegrityError(f"{path}: states step {provenance.step}; the folder was renamed or swapped")
        return provenance


@dataclass(frozen=True)
class _Index:
    weight_map: dict[str, str]


@dataclass(frozen=True)
class ExportedTensor:
    """One tensor of a safetensors file, mapped when it is asked for."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    """As the format spells it: F32, BF16 ..."""
    file: Any = field(repr=False)

    def pieces(self) -> Iterator[Tensor]:
        """Yield all elements, flat, in the stored dtype."""
        yield self.file.get_tensor(self.name).reshape(-1)


class ExportSubject:
    """An export's folder, ``RUN/exports/step-NNNNNN`` or ``RUN/merged/step-NNNNNN``."""

    kind = "export"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def checks(self, fast: bool, reload: bool) -> Iterator[Check]:
        """Yield the checks in order; ``fast`` leaves out what reads all bytes, ``reload`` adds the logits."""
        yield Check("manifest", self._manifest)
        if not fast:
            yield Check("contents", self._contents)
        yield Check("parameters", self._parameters)
        if self._is_adapter:
            yield Check("updates", self._updates)
        if not fast:
            yield Check("weights", self._weights)
        if reload:
            yield Check("logits", self._logits)

    @cached_property
    def provenance(self) -> Provenance:
        """Its manifest."""
        return Provenance.read(self.folder)

    @property
    def _is_adapter(self) -> bool:
        return (self.folder / ADAPTER_CONFIG).is_file()

    @cached_property
    def _stored(self) -> dict[str, ExportedTensor]:
        """Every tensor by its name on disk; only the files' headers are read."""
        files = sorted(self.folder.glob("*.safetensors"))
        return {tensor.name: tensor for path in files for tensor in _tensors(path)}

    def _manifest(self, progress: Progress) -> str:
        sizes = {name: output.size for name, output in self.provenance.outputs.items()}
        return check_listing(self.folder, sizes, PROVENANCE_NAME)

    def _contents(self, progress: Progress) -> str:
        return check_contents(self.folder, self.provenance.outputs, progress)

    def _parameters(self, progress: Progress) -> str:
        self._check_index()
        wanted = _CODES[self.provenance.dtype]
        for tensor in self._stored.values():
            if tensor.dtype != wanted:
                raise IntegrityError(
                    f"{self.folder}: '{tensor.name}' is {tensor.dtype}, {PROVENANCE_NAME} states {wanted}; "
                    "export the step again"
                )
        shapes = {name: tensor.shape for name, tensor in self._stored.items()}
        model = self._blueprint(label_count(shapes))
        model.check(shapes, {}, self.folder)
        check_ties(self._stored, model.tied, self.folder)
        return f"{len(model.needed)} as the configuration has them, in {wanted}"

    def _blueprint(self, labels: int) -> Blueprint:
        """Return what the folder must hold, under the names on disk."""
        base = Path(self.provenance.base.folder)
        if needs_base(self.folder) and not base.is_dir():
            raise LeftOutError(f"the base model is not at {base}")
        model = blueprint(self.folder, base, labels)
        if not self._is_adapter:
            return model
        on_disk = {disk_name(name): shape for name, shape in model.needed.items()}
        return Blueprint(needed=on_disk, known=on_disk, tied={})

    def _check_index(self) -> None:
        path = self.folder / INDEX_NAME
        if not path.exists():
            return
        for name, file in _parsed(_Index, path).weight_map.items():
            if not (self.folder / file).is_file() or name not in self._stored:
                raise IntegrityError(f"{path}: '{name}' is not in {file}; export the step again")

    def _updates(self, progress: Progress) -> str:
        return check_updates(self._stored, self.provenance.step, self.folder)

    def _weights(self, progress: Progress) -> str:
        return f"{check_finite(self._stored, self.folder)} finite"

    def _logits(self, progress: Progress) -> str:
        run = RunLayout(self.folder.absolute().parent.parent)
        checkpoint = run.checkpoint(self.provenance.step)
        if not checkpoint.is_dir():
            raise LeftOutError(f"its checkpoint is not at {checkpoint}")
        base = Path(self.provenance.base.folder)
        if (run.model / ADAPTER_CONFIG).is_file() and not base.is_dir():
            raise LeftOutError(f"the base model is not at {base}")
        return compare(
            Exported(
                folder=self.folder,
                checkpoint=checkpoint,
                model=run.model,
                base=base,
                dtype=DTYPES[self.provenance.dtype],
                merged=self.provenance.merged,
            )
        )


def _parsed(cls: type[_Parsed], path: Path) -> _Parsed:
    """Return what a dataclass describes of a JSON file; raise IntegrityError where that is malformed."""
    try:
        return pydantic.TypeAdapter(cls).validate_json(path.read_bytes(), strict=True)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "all of it"
        raise IntegrityError(f"{path}: malformed ({where}: {first['msg']}); export the step again") from None


def _tensors(path: Path) -> Iterator[ExportedTensor]:
    try:
        file = safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise IntegrityError(
            f"{path}: not a whole safetensors file ({error}); export the step again"
        ) from None
    for name in file.keys():  # noqa: SIM118  # no dictionary
        stored = file.get_slice(name)
        yield ExportedTensor(name, tuple(stored.get_shape()), stored.get_dtype(), file)
