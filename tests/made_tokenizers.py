"""Small tokenizers trained on the spot: byte-level, SentencePiece's way, and with whole words alone."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

CORPUS = [
    "The river rose in the night and the old mill stood in the water.",
    "She sold the mill and bought a boat. Topic: business nature",
    "name: Otter Way | length: 9 km. Description: Otter Way runs for 9 km.",
]
TEMPLATES = {"bos": "<s> $A", "bos_eos": "<s> $A </s>", "pieces": "<s> $A"}
NAMES = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}


@lru_cache
def made_tokenizer(form: str) -> PreTrainedTokenizerBase:
    """Return a tokenizer by its form.

    ``none``, ``bos`` and ``bos_eos`` are byte-level BPE that adds so much to a text; ``pad_is_eos`` is the
    first, padding with EOS; ``pieces`` writes a space as part of the word behind it and puts one before a
    text, and adds BOS; ``words`` knows whole words alone.
    """
    core = {"pieces": _pieces, "words": _words}.get(form, _byte_level)()
    if template := TEMPLATES.get(form):
        special = [(token, core.token_to_id(token)) for token in ("<s>", "</s>")]
        core.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
    names = {**NAMES, "pad_token": "</s>"} if form == "pad_is_eos" else dict(NAMES)
    if core.token_to_id("<unk>") is None:
        del names["unk_token"]
    return PreTrainedTokenizerFast(tokenizer_object=core, **names)


def _byte_level() -> Tokenizer:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return _trained(core, trainers.BpeTrainer, ["<s>", "</s>", "<pad>"], initial_alphabet=alphabet)


def _pieces() -> Tokenizer:
    core = Tokenizer(models.BPE(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    core.decoder = decoders.Metaspace(prepend_scheme="first")
    alphabet = [chr(code) for code in range(33, 127)] + ["\n"]
    special = ["<unk>", "<s>", "</s>", "<pad>"]
    return _trained(core, trainers.BpeTrainer, special, initial_alphabet=alphabet)


def _words() -> Tokenizer:
    core = Tokenizer(models.WordLevel(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return _trained(core, trainers.WordLevelTrainer, ["<unk>", "<s>", "</s>", "<pad>"])


def _trained(core: Tokenizer, trainer: Any, special: list[str], **settings: Any) -> Tokenizer:
    core.train_from_iterator(
        CORPUS, trainer(vocab_size=320, special_tokens=special, show_progress=False, **settings)
    )
    return core
