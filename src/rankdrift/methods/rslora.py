"""Rank-stabilised LoRA: W = W0 + (alpha / sqrt r) B A (Kalajdzievski, arXiv 2312.03732), through PEFT."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from rankdrift.methods import lora


class Settings(lora.Settings):
    """Settings of rank-stabilised LoRA: those of LoRA, but that alpha is divided by the root of r."""

    name: str = "rslora"


PREPARE = partial(lora.prepare, use_rslora=True)
METHOD = replace(lora.METHOD, name="rslora", settings=Settings, prepare=PREPARE)
