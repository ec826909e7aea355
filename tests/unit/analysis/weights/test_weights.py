"""Exact updates against PEFT's own, and the folders that must be refused."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM, LlamaModel

from rankdrift.analysis.sources.adapters import LowRankUpdate
from rankdrift.analysis.sources.tensors import TensorFolder
from rankdrift.analysis.sources.weights import MODULES, BaseWeights, DenseUpdate, Projection, open_weights
from rankdrift.errors import IntegrityError, UserError

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
Edit = Callable[..., Path]
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {"r": 4, "lora_alpha": 10, "target_modules": list(MODULES)},
    "rank-stabilised": {"r": 4, "lora_alpha": 10, "use_rslora": True, "target_modules": ATTENTION},
    "patterns": {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "up_proj"],
        "rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 3},
        "alpha_pattern": {"layers.0.self_attn.q_proj": 5, "up_proj": 7},
    },
    "embedding": {"r": 3, "lora_alpha": 6, "target_modules": ["q_proj", "embed_tokens"]},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_updates_and_merged_weights_are_those_of_peft(models: Any, name: str) -> None:
    folder, model = models.adapter(name, **SETTINGS[name])
    weights = open_weights(models.base, folder)
    for module, layer in model.base_model.model.named_modules():
        projection = next((p for p, n in weights.base.names.items() if n == f"{module}.weight"), None)
        if projection and hasattr(layer, "get_delta_weight"):
            update = weights.pair(projection).update
            assert isinstance(update, LowRankUpdate)
            torch.testing.assert_close(update.dense().float(), layer.get_delta_weight("default"))
    expected = model.merge_and_unload().state_dict()
    merged = dict(weights.merged())
    base = load_file(models.base / "model.safetensors")
    assert set(merged) == {key for key in base if not torch.equal(base[key], expected[key])}
    for key, value in merged.items():
        torch.testing.assert_close(value, expected[key])


def test_fan_in_fan_out_is_not_believed_of_plain_layers(models: Any, edited: Edit) -> None:
    """PEFT ignores the setting for a Linear as well, with a warning."""
    folder, _ = models.adapter("square", r=2, target_modules=["q_proj"])
    said = edited(folder, config={"fan_in_fan_out": True})
    expected = merged_by_peft(models.base, said)
    weights = open_weights(models.base, said)
    tuned = weights.pair(Projection(0, "q_proj")).tuned.float()
    torch.testing.assert_close(tuned, expected["model.layers.0.self_attn.q_proj.weight"])
    for name, value in weights.merged():
        torch.testing.assert_close(value, expected[name])


def merged_by_peft(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    model = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base), adapter)
    state: dict[str, torch.Tensor] = model.merge_and_unload().state_dict()
    return state


def test_modules_saved_whole_are_merged_but_a_tied_head_is_not(models: Any) -> None:
    saved = {"target_modules": ["q_proj"], "modules_to_save": ["norm", "up_proj"]}
    folder, model = models.adapter("saved", r=2, **saved)
    merged = dict(open_weights(models.base, folder).merged())
    expected = model.merge_and_unload().state_dict()
    for name in ("model.norm.weight", "model.layers.1.mlp.up_proj.weight"):
        torch.testing.assert_close(merged[name], expected[name])
    assert "lm_head.weight" not in merged
    update = open_weights(models.base, folder).pair(Projection(1, "up_proj")).update
    assert isinstance(update, DenseUpdate)
    assert update.dense().any()


def test_an_adapter_fits_a_base_saved_without_its_head(models: Any, lora: Path, tmp_path: Path) -> None:
    LlamaModel.from_pretrained(models.base).save_pretrained(tmp_path / "backbone")
    merged = dict(open_weights(tmp_path / "backbone", lora).merged())
    whole = dict(open_weights(models.base, lora).merged())
    assert {f"model.{name}" for name in merged} == set(whole)
    for name, value in merged.items():
        torch.testing.assert_close(value, whole[f"model.{name}"])


def test_full_fine_tuning_gives_every_projection_and_nothing_else(models: Any) -> None:
    weights = open_weights(models.base, models.full)
    blocks = [Projection(layer, module) for layer in (0, 1) for module in MODULES]
    assert list(weights.base.names) == list(weights.projections) == [Projection(-1, "embed_tokens"), *blocks]
    base, full = (load_file(folder / "model.safetensors") for folder in (models.base, models.full))
    for projection, name in weights.base.names.items():
        pair = weights.pair(projection)
        torch.testing.assert_close(pair.base, base[name], rtol=0, atol=0)
        change = full[name].double() - base[name].double()
        torch.testing.assert_close(pair.update.dense(), change, rtol=0, atol=0)
        torch.testing.assert_close(pair.tuned, full[name].double(), rtol=0, atol=0)


def test_shards_and_bfloat16_are_read_alike(models: Any, tmp_path: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(models.full, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "shards", max_shard_size="10KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    weights = open_weights(models.base, tmp_path / "shards")
    for projection, name in weights.base.names.items():
        expected = model.state_dict()[name].double()
        torch.testing.assert_close(weights.pair(projection).tuned, expected, rtol=1e-15, atol=0)


def test_tensors_lie_in_memory_as_products_want_them_wherever_they_lie_in_the_file(tmp_path: Path) -> None:
    sizes = {f"t{size}": torch.randn(size) for size in (3, 50, 7)}
    save_file(sizes, tmp_path / "model.safetensors")
    mapped = load_file(tmp_path / "model.safetensors")
    assert any(tensor.data_ptr() % 64 for tensor in mapped.values())
    for name, expected in sizes.items():
        tensor = TensorFolder(tmp_path).tensor(name)
        assert tensor.data_ptr() % 64 == 0
        assert torch.equal(tensor, expected)


def cut(kept: int) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = next(folder.glob("*model.safetensors"))
        path.write_bytes(path.read_bytes()[:kept])

    return change


def empty(folder: Path) -> None:
    """Leave what is saved under ZeRO-3 where nothing is gathered."""
    path = next(folder.glob("*model.safetensors"))
    save_file({name: torch.empty(0) for name in load_file(path)}, path)


def configured(text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "config.json").write_text(text)


INCOMPLETE = r"edited/model\.safetensors: not a complete safetensors file"
NO_OBJECT = r"edited/config\.json: not a JSON object"


@pytest.mark.parametrize(
    ("kind", "damage", "message"),
    [
        *(("full", cut(kept), INCOMPLETE) for kept in (0, 5, -100)),
        *(("full", configured(text), NO_OBJECT) for text in ("[]", "null", '"llama"')),
        *((kind, empty, "saved under ZeRO-3 without gathering") for kind in ("full", "lora")),
    ],
)
def test_damaged_folders_are_named(
    models: Any,
    lora: Path,
    edited: Edit,
    kind: str,
    damage: Callable[[Path], Any],
    message: str,
) -> None:
    folder = edited(lora if kind == "lora" else models.full)
    damage(folder)
    with pytest.raises(IntegrityError if message == INCOMPLETE else UserError, match=message):
        open_weights(models.base, folder)


@pytest.mark.parametrize(("in_its_place", "message"), [(None, "absent"), (Path.mkdir, "cannot be read")])
def test_a_shard_that_is_absent_is_named(
    models: Any, tmp_path: Path, in_its_place: Callable[[Path], None] | None, message: str
) -> None:
    LlamaForCausalLM.from_pretrained(models.full).save_pretrained(tmp_path, max_shard_size="10KB")
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    shard.unlink()
    if in_its_place:
        in_its_place(shard)
    with pytest.raises(UserError, match=f"{shard}: {message}") as caught:
        open_weights(models.base, tmp_path)
    assert not isinstance(caught.value, IntegrityError)


@pytest.mark.parametrize(
    ("files", "remedy"),
    [
        ([], "saved model"),
        (["zero_to_fp32.py"], "step-NNNNNN"),
        (
            ["logs/", "step-1/adapter_config.json", "step-2/adapter_config.json"],
            r"one of their folders \(step-1, step-2\)",
        ),
        (
            ["logs/", *(f"step-{step}/config.json" for step in range(1, 6))],
            r"one of their folders \(step-1, step-2, step-3, \.\.\.\)",
        ),
    ],
)
def test_folders_without_weights_are_named(
    models: Any, tmp_path: Path, files: list[str], remedy: str
) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).mkdir() if name.endswith("/") else (tmp_path / name).touch()
    with pytest.raises(UserError, match=f"^{tmp_path}: no model.safetensors there; .*{remedy}"):
        open_weights(models.base, tmp_path)


def test_a_folder_that_does_not_exist_is_refused(models: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        open_weights(models.base, tmp_path / "nowhere")


UP = "model__layers__1__mlp__up_proj__weight"
FACTOR = "base_model__model__model__layers__0__self_attn__q_proj__lora_{}"


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({UP: None}, "layer 1 up_proj .of 1. in only one"),
        ({UP: torch.zeros(47, 32)}, r"layer 1 up_proj is \(47, 32\), but \(48, 32\)"),
        ({UP: torch.full((48, 32), float("nan"))}, "up_proj.weight holds NaN or infinity"),
        ({UP: torch.full((48, 32), float("inf"))}, "up_proj.weight holds NaN or infinity"),
        ({UP: torch.zeros(48, 32, dtype=torch.int8)}, "up_proj.weight is torch.int8"),
        ({f"decoder__{UP}": torch.zeros(48, 32)}, "are both layer 1 up_proj"),
    ],
)
def test_models_that_do_not_fit_their_base_are_refused(
    models: Any, edited: Edit, tensors: dict[str, torch.Tensor | None], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        open_weights(models.base, edited(models.full, **tensors)).pair(Projection(1, "up_proj"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "LOHA"}, "peft_type='LOHA': its update is not s B A"),
        ({"use_dora": True}, "layers.0.mlp.down_proj has no magnitude_vector beside A/B"),
        ({"use_qalora": True}, "use_qalora=True: its update is not s B A"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights='loftq' .which changes the base weights"),
        ({"r": 8}, "r is 8 for model.layers.0.self_attn.q_proj, whose factors have rank 4"),
        ({"lora_alpha": None}, "lora_alpha is None"),
    ],
)
def test_adapters_whose_update_is_another_are_refused(
    models: Any, lora: Path, edited: Edit, config: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=f"edited.*{message}"):
        open_weights(models.base, edited(lora, config=config)).pair(Projection(0, "q_proj"))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({FACTOR.format("B__weight"): None}, "q_proj has no B beside A"),
        ({FACTOR.format("magnitude_vector"): torch.ones(32)}, "is not a factor of plain LoRA"),
        ({FACTOR.format("A__weight"): torch.zeros(4, 31)}, r"layer 0 q_proj is \(32, 31\), but \(32, 32\)"),
        (
            {FACTOR.replace("0", "9", 1).format(f"{f}__weight"): torch.zeros(4, 4) for f in "AB"},
            "adapts layer 9 q_proj, absent from",
        ),
    ],
)
def test_adapters_that_do_not_fit_their_base_are_refused(
    models: Any,
    lora: Path,
    edited: Edit,
    tensors: dict[str, torch.Tensor | None],
    message: str,
) -> None:
    with pytest.raises(UserError, match=message):
        open_weights(models.base, edited(lora, **tensors)).pair(Projection(0, "q_proj"))


def test_an_adapter_of_no_matrix_is_refused(models: Any, lora: Path, edited: Edit) -> None:
    """Its rows would all say that nothing was adapted, which is not so."""
    stored = load_file(lora / "adapter_model.safetensors")
    gone: dict[str, torch.Tensor | None] = {name.replace(".", "__"): None for name in stored}
    fused = {FACTOR.replace("q_proj", "Wqkv").format(f"{f}__weight"): torch.zeros(4, 4) for f in "AB"}
    with pytest.raises(UserError, match=r"edited: adapts model.layers.0.self_attn.Wqkv, and no matrix that"):
        open_weights(models.base, edited(lora, **gone, **fused))


def test_a_model_without_llama_names_is_refused(models: Any, tmp_path: Path) -> None:
    index = {"weight_map": {}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"no matrix of a block .layers.N.*other models are not read"):
        _ = BaseWeights(tmp_path).names


def pickled(folder: Path, target: Path, shards: int = 1) -> Path:
    """A copy of a saved model or adapter with its tensors in files of torch.save."""
    shutil.copytree(folder, target)
    source = next(target.glob("*model.safetensors"))
    tensors, name = (
        load_file(source),
        {"model": "pytorch_model", "adapter_model": "adapter_model"}[source.stem],
    )
    source.unlink()
    if shards == 1:
        torch.save(tensors, target / f"{name}.bin")
        return target
    files = {key: f"{name}-{number % shards + 1:05d}.bin" for number, key in enumerate(tensors)}
    for file in set(files.values()):
        torch.save({key: value for key, value in tensors.items() if files[key] == file}, target / file)
    (target / f"{name}.bin.index.json").write_text(json.dumps({"weight_map": files}))
    return target


@pytest.mark.parametrize(("kind", "shards"), [("full", 1), ("full", 2), ("lora", 1)])
def test_torch_files_hold_the_update(models: Any, lora: Path, tmp_path: Path, kind: str, shards: int) -> None:
    folder = lora if kind == "lora" else models.full
    stored, found = (
        open_weights(models.base, folder),
        open_weights(models.base, pickled(folder, tmp_path / "pickled", shards)),
    )
    assert found.projections == stored.projections
    for projection in stored.projections:
        pairs = found.pair(projection).update.dense(), stored.pair(projection).update.dense()
        assert torch.equal(*pairs)


def test_names_with_the_adapter_s_name_in_them_are_read(models: Any, lora: Path, tmp_path: Path) -> None:
    target = tmp_path / "named"
    shutil.copytree(lora, target)
    tensors = load_file(target / "adapter_model.safetensors")
    named = {re.sub(r"(lora_[AB])\.weight", r"\1.default.weight", key): t for key, t in tensors.items()}
    assert named.keys() != tensors.keys()
    save_file(named, target / "adapter_model.safetensors")
    for projection in (stored := open_weights(models.base, lora)).projections:
        found = open_weights(models.base, target).pair(projection).update.dense()
        assert torch.equal(found, stored.pair(projection).update.dense())


def test_nothing_in_a_pickle_is_run(models: Any, tmp_path: Path) -> None:
    target = pickled(models.full, tmp_path / "hostile")

    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"model.norm.weight": Hostile()}, target / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin: holds more than tensors"):
        open_weights(models.base, target)
    assert not (tmp_path / "ran").exists()
