"""DoRA: each output of W0 + s B A gets a length of its own, which trains (Liu et al., arXiv 2402.09353)."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from rankdrift.methods import lora


class Settings(lora.Settings):
    """Settings of DoRA: those of LoRA."""

    name: str = "dora"


PREPARE = partial(lora.prepare, use_dora=True)
METHOD = replace(lora.METHOD, name="dora", settings=Settings, prepare=PREPARE)
