"""What users get wrong with ``rankdrift analyze``: one message that names the thing, no silent number."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM
from transformers.utils import logging

from rankdrift import files, registry
from rankdrift.analysis.contract import Params
from rankdrift.cli.analyze import OPTIONS
from rankdrift.cli.main import main
from rankdrift.layout import RunLayout, StudyLayout
from rankdrift.models.tiny import tiny_tokenizer
from rankdrift.spec import parse_spec

UP = "model.layers.1.mlp.up_proj.weight"
WEIGHTS = "model.safetensors"
Said = pytest.CaptureFixture[str]
Refused = Callable[..., str]


@pytest.fixture
def refused(capsys: Said) -> Refused:
    """Run a command that is to fail, and return its message."""

    def run(*arguments: object, status: int = 2) -> str:
        assert main(["analyze", *map(str, arguments)]) == status
        message = capsys.readouterr().err
        assert message.startswith("rankdrift analyze: error: ")
        assert "Traceback" not in message
        return message

    return run


@pytest.fixture
def tuned(tiny: Path, tmp_path: Path) -> Path:
    """The tiny model with one matrix moved, in a folder that is hard to spell."""
    folder = tmp_path / "mein Modell, geändert 模型"
    shutil.copytree(tiny, folder)
    edit(folder, lambda weights: weights[UP].add_(0.01))
    return folder


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS, {"format": "pt"})


@pytest.fixture
def runs(tiny: Path, tmp_path: Path) -> list[RunLayout]:
    """Two runs of one study, one of another, one without a step, and one outside a study."""
    places = ["a/runs/x-seed1", "a/runs/y-seed1", "b/runs/x-seed1", "a/runs/z-seed1", "a/loose/x-seed1"]
    made = [RunLayout(tmp_path / place) for place in places]
    for run in made:
        files.write_json(run.spec, parse_spec({"model": {"name": "tiny"}, "seed": 1}).as_dict())
    for run in made[:3]:
        run.export(3).mkdir(parents=True)
    return made


def folders(base: object, *tuned: Path) -> list[object]:
    return ["--base", base, *(part for folder in tuned for part in ("--tuned", folder)), "--workers", 1]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--study", "x", "--output", "y"], "--output: --study does not read it, --base would"),
        (["--study", "x", "--tuned", "y"], "--tuned: --study does not read it"),
        (
            ["--study", "x", "--step", "3"],
            "--step: --study does not read it, intervene and interpolate would",
        ),
        (["--base", "x", "--tuned", "y", "--source", "exports"], "--source: --base does not read it"),
        (
            ["--base", "x", "--tuned", "y", "--top-k", "5"],
            "--top-k: --base does not read it, intervene would",
        ),
        (["--base", "x", "--tuned", "y", "--first-only"], "--first-only: --base does not read it"),
        (["compare", "x", "y", "--workers", "2"], "--workers: compare does not read it"),
        (["intervene", "x", "--at", "1"], "--at: intervene does not read it, interpolate would"),
        (["interpolate", "x", "--strength", "0"], "--strength: interpolate does not read it"),
        (["--study", "x", "--base", "y"], "give either --study FOLDER, or --base MODEL"),
        (["--tuned", "x"], "give either --study FOLDER, or --base MODEL"),
        (["--study", "x", "--workers", "-2"], "--workers -2: give 1 or more"),
        (["--study", "x", "--workers", "0"], "--workers 0: give 1 or more"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_option_that_would_be_ignored_is_refused(
    refused: Refused, arguments: list[str], part: str
) -> None:
    assert part in refused(*arguments)


def test_a_folder_in_place_of_an_analysis(refused: Refused, tmp_path: Path) -> None:
    assert f"{tmp_path} is a folder, not an analysis: give --study {tmp_path}" in refused(tmp_path)


@pytest.mark.parametrize("name", ["training", "comparisons"])
def test_an_analysis_of_runs_is_not_of_folders(
    refused: Refused, tuned: Path, tmp_path: Path, name: str
) -> None:
    message = refused(name, *folders("tiny", tuned), "--output", tmp_path / "out")
    assert f"{name}: is made of a study's runs, not of folders" in message
    assert "checkpoint_gradients, drift, spectra, task_vectors" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_an_output_that_is_not_writable(refused: Refused, tuned: Path, tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    message = refused("spectra", *folders("tiny", tuned), "--output", tmp_path / place)
    assert f"--output {tmp_path / place}: nothing can be written there" in message


def test_a_studys_tables_are_not_replaced(refused: Refused, tuned: Path, runs: list[RunLayout]) -> None:
    study = runs[0].root.parent.parent
    message = refused(*folders("tiny", tuned), "--output", study)
    assert f"--output {study}: a study, whose tables would be lost" in message


def test_a_base_that_is_no_model_of_its_own(refused: Refused, tuned: Path, tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "mp_rank_00_model_states.pt").touch()
    for name, part in (
        ("adapter", "adapter: an adapter; give it as --tuned"),
        ("checkpoint", "checkpoint: a sharded checkpoint; consolidate it"),
        (f"{tuned.name}/{WEIGHTS}", f"{WEIGHTS}: a file; give the folder of the model"),
    ):
        assert part in refused(*folders(tmp_path / name, tuned))


def test_base_and_tuned_the_wrong_way_round(refused: Refused, tuned: Path, tiny: Path) -> None:
    base = {"folder": str(tiny), "digest": files.weights_digest(tiny)}
    (tuned / "provenance.json").write_text(json.dumps({"base": base}))
    assert f"--base {tuned}: was tuned from --tuned {tiny}; swap the two" in refused(*folders(tuned, tiny))


@pytest.mark.parametrize(
    ("name", "part"), [("nowhere", "no such folder"), (WEIGHTS, "a file; give the folder it lies in")]
)
@pytest.mark.parametrize("option", ["--tuned", "--initial"])
def test_what_is_no_folder(refused: Refused, tuned: Path, option: str, name: str, part: str) -> None:
    given = folders("tiny", tuned) if option == "--initial" else ["--base", "tiny"]
    assert f"{option} {tuned / name}: {part}" in refused(*given, option, tuned / name)


def rename(folder: Path, **settings: object) -> None:
    config = json.loads((folder / "config.json").read_text()) | settings
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        (lambda folder: edit(folder, lambda weights: weights.pop(UP)), "layer 1 up_proj (of 1) in only one"),
        (lambda folder: rename(folder, model_type="mistral"), "a model of type 'mistral'"),
        (lambda folder: (folder / WEIGHTS).unlink(), "no model.safetensors there"),
    ],
    ids=["a matrix is missing", "another architecture", "no weights"],
)
def test_what_does_not_fit_is_said_before_anything_is_measured(
    refused: Refused, tuned: Path, tmp_path: Path, damage: Callable[[Path], None], part: str
) -> None:
    damage(tuned)
    message = refused(*folders("tiny", tuned), "--output", tmp_path / "out")
    assert str(tuned) in message
    assert part in message
    assert not (tmp_path / "out").exists()


def test_what_was_done_before_a_failure_is_said(tuned: Path, tmp_path: Path, capsys: Said) -> None:
    """A norm's weight is no matrix: the spectra do not read it, the passes through the model do."""
    edit(tuned, lambda weights: weights["model.norm.weight"].fill_(torch.nan))
    out = StudyLayout(tmp_path / "out")
    arguments = ["drift", "spectra", *folders("tiny", tuned), "--output", out.root]
    assert main(["analyze", *map(str, arguments)]) == 3
    said = capsys.readouterr()
    assert "model.norm.weight holds NaN" in said.err
    assert str(out.table("svd_analysis_results")) in said.out.splitlines()
    assert len(files.read_table(out.table("svd_analysis_results"))) == 22


@pytest.fixture
def mute(tiny: Path, tmp_path: Path) -> Path:
    """A base model without a tokenizer."""
    (tmp_path / "mute").mkdir()
    for name in ("config.json", WEIGHTS):
        shutil.copy(tiny / name, tmp_path / "mute")
    return tmp_path / "mute"


def test_matrices_need_no_tokenizer(
    refused: Refused, mute: Path, tuned: Path, tmp_path: Path, capsys: Said
) -> None:
    out = StudyLayout(tmp_path / "out")
    given = [*folders(mute, tuned), "--output", out.root]
    message = refused("drift", *given)  # what is asked for is not left out
    assert f"{mute}: no tokenizer can be loaded" in message
    assert message.endswith("or name the analyses that read no text: spectra task_vectors vectors\n")
    assert main(["analyze", *map(str, given)]) == 0
    left_out = f"checkpoint_gradients, drift: left out; {mute}: no tokenizer can be loaded"
    assert left_out in capsys.readouterr().out
    assert not out.table("drift_metrics").exists()
    rows = files.read_table(out.table("svd_analysis_results"))
    moved = rows[rows["relative_update_norm"] > 0]
    assert moved[["run", "layer", "module"]].to_numpy().tolist() == [[tuned.name, 1, "up_proj"]]


@pytest.fixture
def encoders(tmp_path: Path) -> list[Path]:
    """A masked encoder, and the same with one matrix moved."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    model = BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), **sizes))
    folders = [tmp_path / "encoder", tmp_path / "encoder-tuned"]
    for folder in folders:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        with torch.no_grad():
            model.bert.encoder.layer[1].output.dense.weight.add_(0.01)
    return folders


def test_what_encoders_cannot_have_is_left_out_unless_it_is_named(
    encoders: list[Path],
    tmp_path: Path,
    capsys: Said,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.get_logger("transformers"), "propagate", True)
    out = StudyLayout(tmp_path / "out")
    given = [*folders(*encoders), "--output", out.root]
    assert main(["analyze", *map(str, given)]) == 0
    (left_out,) = [line for line in capsys.readouterr().out.splitlines() if "left out" in line]
    assert left_out.startswith(f"checkpoint_gradients: left out; {encoders[0]}: a model of type 'bert' sees")
    assert "LOAD REPORT" not in caplog.text
    assert out.table("drift_metrics").exists()
    assert out.table("svd_analysis_results").exists()
    assert main(["analyze", "checkpoint_gradients", *map(str, given)]) == 2


def test_settings_are_the_same_with_and_without_text(
    mute: Path, tuned: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else what was measured for one command would be measured again for the other."""
    seen: list[Params] = []
    monkeypatch.setattr(
        "rankdrift.analysis.engine.run_analyses", lambda n, s, t, params, *more: seen.append(params) or []
    )
    for name, base in (("spectra", mute), ("drift", tiny)):
        arguments = [name, *folders(base, tuned), "--output", tmp_path / "out"]
        assert main(["analyze", *map(str, arguments)]) == 0
    without, with_text = (vars(params).copy() for params in seen)
    for inputs in ("drift_inputs", "gradient_inputs"):
        assert without.pop(inputs) is None
        assert with_text.pop(inputs).is_file()
    assert without == with_text


@pytest.mark.parametrize(
    ("names", "part"),
    [
        ([], "compare: give the folder of one or more runs"),
        ([0], "x-seed1: give two or more run folders of one study"),
        ([0, 0], "compare: a run is named twice"),
        ([0, 2], "runs of 2 studies"),
        ([0, 3], "z-seed1: no step of it is stored; train and score it first"),
        ([0, 4], "loose/x-seed1: not in a study; a run's folder lies in STUDY/runs"),
    ],
)
def test_runs_that_do_not_compare(
    refused: Refused, runs: list[RunLayout], names: list[int], part: str
) -> None:
    assert part in refused("compare", *(runs[number].root for number in names))


def test_a_folder_that_is_no_run(refused: Refused, tmp_path: Path) -> None:
    assert f"{tmp_path}: not a run's folder (no spec.json)" in refused("interpolate", tmp_path)


@pytest.mark.parametrize("action", ["intervene", "interpolate"])
def test_a_step_that_is_not_stored(
    refused: Refused, runs: list[RunLayout], action: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "x-seed1: step 7 is not stored (there: 3)" in refused(action, runs[0].root, "--step", 7)
    assert "z-seed1: no step of it is stored; train it first" in refused(action, runs[3].root)
    assert "z-seed1: no step" in refused(action, runs[0].root, runs[3].root), "all are looked at first"
    monkeypatch.chdir(runs[0].root)
    assert f"{runs[0].root}: step 7" in refused(action, ".", "--step", 7)


@pytest.mark.parametrize(
    ("option", "values", "part"),
    [
        *(("strength", [value], f"--strength {value}: 0 removes") for value in (-0.1, 1, "nan")),
        *(("top-k", [value], f"--top-k {value}: how many") for value in (0, -3)),
        *(("threshold", [value], f"--threshold {value}: a cosine") for value in (0, 1, -0.5, "nan")),
        ("at", ["nan"], "--at nan: not a point"),
        ("at", [0, "inf"], "--at inf: not a point"),
        ("at", [0, 0.5, 0.5], "two are interpolation-0.5; give each once"),
        ("at", [0.1234567, 0.1234568], "two are interpolation-0.123457"),
    ],
)
def test_numbers_that_are_no_edit(
    refused: Refused, runs: list[RunLayout], option: str, values: list[object], part: str
) -> None:
    action = "interpolate" if option == "at" else "intervene"
    assert part in refused(action, runs[0].root, f"--{option}", *values)


def test_help_names_every_analysis_and_every_other_use(capsys: Said) -> None:
    with pytest.raises(SystemExit):
        main(["analyze", "--help"])
    words = set(pd.Series([capsys.readouterr().out]).str.findall(r"[-\w]+")[0])
    assert set(registry.names("analysis")) <= words
    assert set(OPTIONS) <= words
    assert {f"--{option.replace('_', '-')}" for options in OPTIONS.values() for option in options} <= words


def test_an_unknown_source(capsys: Said) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["analyze", "--study", "x", "--source", "shards"])
    assert stopped.value.code == 2
    assert "'auto', 'exports', 'checkpoints'" in capsys.readouterr().err


def test_a_checkpoint_outside_a_run(refused: Refused, tmp_path: Path) -> None:
    checkpoint = RunLayout(tmp_path).checkpoint(3)
    checkpoint.mkdir(parents=True)
    (checkpoint / "mp_rank_00_model_states.pt").touch()
    message = refused(*folders("tiny", checkpoint), "--output", tmp_path / "out")
    assert str(checkpoint) in message
    assert f"{tmp_path / 'model'} has no config.json" in message
