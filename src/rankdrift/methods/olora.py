"""OLoRA: LoRA from the QR decomposition of W0 (Büyükakyüz, arXiv 2406.01775), through PEFT."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from rankdrift.methods import _subtracted, lora


class Settings(_subtracted.Settings):
    """Settings of OLoRA."""

    name: str = "olora"


PREPARE = partial(lora.prepare, init_lora_weights="olora")
METHOD = replace(lora.METHOD, name="olora", settings=Settings, prepare=PREPARE, take_up=_subtracted.take_up)
