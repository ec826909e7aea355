"""Tiny models of the families that are trained, saved as folders with a tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from rankdrift.models.tiny import tiny_tokenizer


def llama(**changes: Any) -> hf.LlamaConfig:
    """The configuration of a Llama as small as can be, for what holds of any model."""
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 2, "num_key_value_heads": 1}
    rest = {"num_hidden_layers": 1, "vocab_size": 31, "pad_token_id": 0, "num_labels": 3}
    return hf.LlamaConfig(**{**sizes, **rest, **changes})


VOCABULARY = 260
NAMES = {
    "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32, "vocab_size": VOCABULARY,
    "initializer_range": 0.2, "pad_token_id": 1, "bos_token_id": None, "eos_token_id": 0,
}  # fmt: skip
LLAMA = NAMES | {"intermediate_size": 48, "num_key_value_heads": 2}
ENCODER = NAMES | {"intermediate_size": 48, "max_position_embeddings": 160}
DECODERS: dict[str, Callable[[], Any]] = {
    "llama": lambda: hf.LlamaConfig(**LLAMA, tie_word_embeddings=False),
    "qwen2": lambda: hf.Qwen2Config(**LLAMA),
    "qwen3": lambda: hf.Qwen3Config(**LLAMA, head_dim=8),
    "mistral": lambda: hf.MistralConfig(**LLAMA),
    "gemma2": lambda: hf.Gemma2Config(**LLAMA, head_dim=8, sliding_window=16),
    "gemma3": lambda: hf.Gemma3TextConfig(**LLAMA, head_dim=8, sliding_window=16),
    "phi3": lambda: hf.Phi3Config(**LLAMA),
    "opt": lambda: hf.OPTConfig(
        **NAMES, ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=160, init_std=0.2
    ),
    "gpt2": lambda: hf.GPT2Config(
        n_embd=32, n_layer=2, n_head=4, n_positions=160, vocab_size=VOCABULARY, initializer_range=0.2,
        bos_token_id=0, eos_token_id=0,
    ),
    "neox": lambda: hf.GPTNeoXConfig(**NAMES, intermediate_size=48),
    "falcon": lambda: hf.FalconConfig(**NAMES, ffn_hidden_size=48, alibi=False),
    "falcon alibi": lambda: hf.FalconConfig(**NAMES, ffn_hidden_size=48, alibi=True),
}  # fmt: skip
ENCODERS: dict[str, Callable[[], Any]] = {
    "bert": lambda: hf.BertConfig(**ENCODER),
    "roberta": lambda: hf.RobertaConfig(**ENCODER),
    "deberta": lambda: hf.DebertaV2Config(
        **ENCODER, relative_attention=True, position_buckets=8, pos_att_type=["p2c", "c2p"],
        share_att_key=True, norm_rel_ebd="layer_norm",
    ),
}  # fmt: skip
FAMILIES = DECODERS | ENCODERS
RECURRENT: dict[str, Callable[[], Any]] = {
    "mamba": lambda: hf.MambaConfig(
        hidden_size=16, num_hidden_layers=2, vocab_size=VOCABULARY, state_size=4, initializer_range=0.2
    ),
    "lfm2": lambda: hf.Lfm2Config(
        **LLAMA, layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False
    ),
}
"""Families that are not trained here, whose caches hold more than keys and values, or other things."""


def encoder_tokenizer() -> hf.PreTrainedTokenizerFast:
    """One token a byte, with [CLS] before a text and [SEP] behind it, as BERT's has."""
    special = ("[CLS]", "[PAD]", "[SEP]")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate((*special, *alphabet))}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    added = [("[CLS]", 0), ("[SEP]", 2)]
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=added)
    names = {"cls_token": "[CLS]", "pad_token": "[PAD]", "sep_token": "[SEP]"}
    return hf.PreTrainedTokenizerFast(tokenizer_object=made, **names)


def saved(family: str, folder: Path) -> Path:
    """Save a family's model, which has learnt nothing, where ``folder`` has none yet; return the folder."""
    if not folder.exists():
        torch.manual_seed(0)
        auto = hf.AutoModelForMaskedLM if family in ENCODERS else hf.AutoModelForCausalLM
        model: hf.PreTrainedModel = auto.from_config(FAMILIES[family]())
        model.save_pretrained(folder)
        (encoder_tokenizer() if family in ENCODERS else tiny_tokenizer()).save_pretrained(folder)
    return folder
