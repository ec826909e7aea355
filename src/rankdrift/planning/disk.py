"""What a run writes: checkpoints that stay, and the exports that a study makes of them."""

from __future__ import annotations

from dataclasses import dataclass

from rankdrift.planning.parameters import ModelSize

EXPORTED = 4  # bytes of a weight: exports are fp32 unless asked otherwise


@dataclass(frozen=True)
class Disk:
    """Bytes on the disk."""

    checkpoint: int
    """One checkpoint."""
    saves: int
    """Checkpoints that are written in all."""
    kept: int
    """Checkpoints that are there at once, at most."""
    export: int
    """One export, of a step."""
    exports: int
    """Exports that ``rankdrift study run`` makes: of every checkpoint that stays."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.kept * self.checkpoint + self.exports * self.export


def export_bytes(size: ModelSize, is_adapter: bool) -> int:
    """Return the weights of one export: a whole model, or an adapter."""
    return (size.trained if is_adapter else size.total) * EXPORTED
