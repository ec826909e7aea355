"""Published findings on LoRA and full fine-tuning, looked for in one small study on real data.

Runs the recipe ``launch/recipes/sst2_methods.yaml`` (SmolLM2-135M on SST-2: full fine-tuning and LoRA of
ranks 4 and 64, two learning rates each, LoRA at equal size on attention or the MLP, two seeds), edits
intruders of one run, trains four arms again at four times the batch (``sst2_batches.yaml``), and writes what
was observed of each finding, whatever it is. A study of two seeds, 32 steps and one task shows directions,
it proves none.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from rankdrift import files
from rankdrift.analysis.sources.observations import last_pairs, with_arms
from rankdrift.data.general_text import load_windows
from rankdrift.layout import StudyLayout
from rankdrift.models.base import load_model, load_tokenizer, resolve
from rankdrift.models.exports import load_export
from rankdrift.spec import read_spec

HERE = Path(__file__).resolve().parent
RECIPES = HERE.parent / "launch" / "recipes"
METHODS, BATCHES = "sst2-methods", "sst2-batches"
"""The studies of the two recipes."""
EDITED = "lora-r4-lr64e-4-seed42"
EDIT = {"strength": 0.7, "top-k": 20, "threshold": 0.8}
"""No run of this study has an intruder as published (k = 10, 0.5): these are the vectors nearest to one."""
MERGED, OTHER_MERGED = "lora-r4-lr16e-4-seed42", "lora-r4-lr16e-4-seed1337"
SECOND = "second"
"""The other one's name as an adapter of the same model."""
WINDOWS = 12
TIMED_PASSES = 40
ATTENTION, MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Finding:
    """One published finding beside what this study shows."""

    name: str
    claim: str
    observed: str
    agrees: bool | None
    """Whether the direction is the claimed one; None where this study cannot say."""


class Tables:
    """A study's tables, with the arm of each run unless a table has arms of its own."""

    def __init__(self, study: StudyLayout) -> None:
        self.study = study

    def __getitem__(self, name: str) -> pd.DataFrame:
        table = files.read_table(self.study.table(name))
        runs = {"run", "seed"} <= set(table.columns)
        return with_arms(table) if runs and "arm" not in table.columns else table

    def plane(self) -> pd.DataFrame:
        """The learning-forgetting table at the last step."""
        table = self["learning_forgetting"]
        return table[table["step"] == table["step"].max()]

    def blocks(self) -> pd.DataFrame:
        """The spectra of the blocks' matrices, without the base's rows."""
        table = self["svd_analysis_results"]
        return table[(table["layer"] >= 0) & (table["run"] != "base")]


def learning_rates(tables: Tables) -> Iterator[Finding]:
    """H1, H2: best learning rates, by validation loss, mean over seeds."""
    losses = tables.plane().groupby("arm")["task_loss"].mean()
    text = ", ".join(f"{arm} {loss:.3f}" for arm, loss in losses.items())
    best = {kind: losses[[arm for arm in losses.index if arm.startswith(kind)]].idxmin() for kind in KINDS}
    rates = {kind: float(arm.rpartition("-lr")[2]) for kind, arm in best.items()}
    ratio = {kind: rates[kind] / rates["full"] for kind in KINDS}
    yield Finding(
        "H1",
        "LoRA's best learning rate is 5 to 20 times full fine-tuning's (15 below 100 steps)",
        f"best of the rates tried: {ratio['lora-r4']:g} (r=4), {ratio['lora-r64']:g} (r=64); "
        f"validation loss: {text}",
        all(5 <= ratio[kind] <= 20 for kind in ("lora-r4", "lora-r64")),
    )
    between = rates["lora-r4"] / rates["lora-r64"]
    yield Finding(
        "H2",
        "ranks differ in their best learning rate by less than 2 to 3",
        f"r=4 to r=64: {between:g} (the grid's step is 4)",
        between == 1,
    )


RISING = ["lora-r4-lr4e-4", "lora-r4-lr16e-4", "lora-r4-lr64e-4"]
KINDS = ("full", "lora-r4", "lora-r64")


def ranks(tables: Tables) -> Iterator[Finding]:
    """H3, H4: ranks of updates."""
    blocks = tables.blocks()
    last = blocks[(blocks["step"] == blocks["step"].max()) & (blocks["update_norm"] > 0)]
    medians = last.groupby("arm")[["update_entropy_rank", "update_e90_energy"]].median()
    share = (last["update_e90_energy"] / last["update_e90_energy_null"]).groupby(last["arm"]).median()
    bounded = bool((last[last["rank"] > 0]["update_numerical_rank"] <= last[last["rank"] > 0]["rank"]).all())
    full = last[last["method"] == "full"]
    text = ", ".join(f"{arm} {row.update_entropy_rank:.1f}" for arm, row in medians.iterrows())
    yield Finding(
        "H3",
        "the update's rank is at most r for LoRA; full fine-tuning's is far above, 0.5 to 1 of noise's",
        f"median entropy rank: {text}; full e90/null {share.filter(like='full').round(2).tolist()}",
        bounded
        and bool(full["update_entropy_rank"].median() > 64)
        and bool(share.filter(like="full").between(0.5, 1).all()),
    )
    steps = blocks[blocks["method"] == "full"].groupby("step")["update_e90_energy"].median()
    share_of = full["update_e90_energy"] / full["update_e90_energy_null"]
    mlp, attention = (share_of[full["module"].isin(names)].median() for names in (MLP, ATTENTION))
    deepest = full["layer"].max()
    ends = share_of[full["layer"].isin((0, 1, deepest - 1, deepest))].median()
    middle = share_of[full["layer"].between(deepest // 3, 2 * deepest // 3)].median()
    yield Finding(
        "H4",
        "full fine-tuning's e90 grows with steps; MLP above attention; end blocks below the middle",
        f"median e90 by step {steps.round(0).to_dict()}; e90/null MLP {mlp:.2f}, attention {attention:.2f}; "
        f"ends {ends:.2f}, middle {middle:.2f}",
        bool(steps.is_monotonic_increasing and mlp > attention and ends < middle),
    )


def intruder_dimensions(tables: Tables) -> Iterator[Finding]:
    """H5: counts at k = 10, threshold 0.5, left vectors as published."""
    counts = tables.blocks().groupby(["arm", "seed", "step"])["intruders_left"].sum()
    means = counts.groupby(["arm", "step"]).mean().unstack()
    text = "; ".join(f"{arm} " + ", ".join(f"{v:.0f}" for v in row) for arm, row in means.iterrows())
    last = means[means.columns.max()]
    full = last[last.index.str.startswith("full")].max()
    yield Finding(
        "H5",
        "no intruders (k=10, 0.5) in full fine-tuning; in LoRA some, more with learning rate and steps",
        f"sum over 210 matrices, mean over seeds, at each stored step: {text}",
        bool(full == 0 and last[RISING].is_monotonic_increasing and last[RISING[-1]] > 0),
    )


def predictors(tables: Tables) -> Iterator[Finding]:
    """H6, H9: what goes with forgetting."""
    table = tables["forgetting_predictors"]

    def of(scope: str) -> pd.DataFrame:
        rows = table[(table["scope"] == scope) & (table["points"] == "all")]
        return rows.set_index("predictor")

    def text(rows: pd.DataFrame) -> str:
        parts = []
        for name, row in rows.iterrows():
            interval = f"[{row['spearman_low']:.2f}, {row['spearman_high']:.2f}]"
            parts.append(
                f"{name} {row['spearman']:.2f} {interval if np.isfinite(row['spearman_low']) else ''}"
            )
        return "; ".join(parts)

    lora, pooled = of("lora"), of("pooled")
    energy = lora["spearman"].get("intruder_energy", np.nan)
    yield Finding(
        "H6",
        "within LoRA, forgetting goes with intruder energy (Spearman above 0.5)",
        text(lora),
        None if np.isnan(energy) else bool(energy > 0.5),
    )
    yield Finding(
        "H9",
        "KL from the base on the new task's inputs predicts forgetting better than ||dW||",
        "KL was taken on the text whose NLL is forgetting, which is no independent predictor: "
        f"{text(pooled)}",
        None,
    )


def forgetting(tables: Tables) -> Iterator[Finding]:
    """H7, H8: forgetting at equal loss, and the knob of the rank."""
    matched = tables["matched_comparison"]
    rows = matched[(matched["matched"] == "task_loss") & matched["arm"].str.startswith("full")]
    measured = rows.dropna(subset=["difference"]).groupby(["arm", "other_arm"])["difference"].mean()
    text = "; ".join(f"{one} - {other} {value:+.4f}" for (one, other), value in measured.items())
    yield Finding(
        "H7",
        "at equal task loss LoRA forgets less, or more at high learning rates: reported, not asserted",
        (text or "no pair of arms reaches one loss") + " (nats a token, mean over levels)",
        None,
    )
    plane = tables.plane().groupby("arm")[["score", "nll_increase"]].mean()
    text = "; ".join(f"{arm} {row.score:.3f}, {row.nll_increase:+.4f}" for arm, row in plane.iterrows())
    small, large = plane.loc["lora-r4-lr4e-4"], plane.loc["lora-r64-lr4e-4"]
    yield Finding(
        "H8",
        "higher rank learns more and forgets more",
        f"accuracy and forgetting, means over seeds: {text}",
        bool(large["score"] > small["score"] and large["nll_increase"] > small["nll_increase"]),
    )


def interventions(tables: Tables) -> Iterator[Finding]:
    """H14: shrinking intruders against controls."""
    table = tables["variant_scores"]
    if table.empty:
        yield Finding(
            "H14", "shrinking intruders forgets less than its controls", "no intruders to edit", None
        )
        return
    nll = table[(table["task"] == "general_text") & (table["metric"] == "nll")].set_index("arm")
    score = table[(table["task"] != "general_text")].groupby("arm")["difference"].first()
    text = "; ".join(
        f"{arm} {row.difference:+.4f} [{row.difference_low:+.4f}, {row.difference_high:+.4f}], "
        f"accuracy {score[arm]:+.3f}"
        for arm, row in nll.iterrows()
    )
    controls = nll.drop("intruders")["difference"].min()
    yield Finding(
        "H14",
        "scaling each matrix's first intruder by 0.7 lowers forgetting, more than controls of equal norm do",
        f"{EDITED}, first vector of cosine below {EDIT['threshold']:g} among {EDIT['top-k']:g} (none is "
        f"below 0.5 among 10): {table['vectors'].max():g} in 210 matrices; change of general-text NLL (nats "
        f"a token): {text}",
        bool(nll.loc["intruders", "difference"] < min(0.0, controls)),
    )


def task_vectors(tables: Tables) -> Iterator[Finding]:
    """H15: the same arm with another seed, against other arms."""
    rows = last_pairs(tables["task_vectors"])
    values = rows.groupby(rows["arm"] == rows["other_arm"])["cosine"].median()
    yield Finding(
        "H15",
        "task vectors of one task and other seeds are more alike than others (here: of other arms)",
        f"median cosine: same arm, other seed {values.get(True, np.nan):.3f}; other arms "
        f"{values.get(False, np.nan):.3f}; null {rows['cosine_null'].median():.5f}",
        bool(values.get(True, np.nan) > values.get(False, np.nan)),
    )


def places(tables: Tables) -> Iterator[Finding]:
    """H10: LoRA on attention alone and on the MLP alone, at equally many parameters and one rate."""
    plane = tables.plane()
    of = {name: plane[plane["arm"] == f"lora-{name}-lr4e-4"] for name in ("attention", "mlp")}
    text = "; ".join(
        f"{name}: validation loss by seed {rows['task_loss'].round(4).tolist()}, accuracy "
        f"{rows['score'].mean():.3f}, forgetting {rows['nll_increase'].mean():+.4f}"
        for name, rows in of.items()
    )
    yield Finding(
        "H10",
        "LoRA on attention alone learns less than on the MLP alone at equal parameters",
        f"r=33 on attention, r=20 on the MLP (3.8 M parameters each), 4e-4: {text}",
        bool(of["attention"]["task_loss"].mean() > of["mlp"]["task_loss"].mean()),
    )


def merging(tables: Tables) -> Iterator[Finding]:
    """H12, H13: an adapter against the merged model: time of a pass, and logits."""
    run = tables.study.run(MERGED)
    spec, step = read_spec(run.spec), max(int(p.name[5:]) for p in run.exports.iterdir())
    base = resolve(spec.model.name, spec.model.revision)
    windows = load_windows(spec.data, load_tokenizer(base), WINDOWS)
    adapted = load_export(run.export(step), base, spec.model).eval()
    merged = load_export(run.export(step), base, spec.model).merge_and_unload().eval()
    adapted.load_adapter(str(tables.study.run(OTHER_MERGED).export(step)), adapter_name=SECOND)
    yield _latency(adapted, merged, windows[0].input_ids)
    own = [_log_probabilities(adapted, window.input_ids) for window in windows]
    exact = _divergence(own, [_log_probabilities(merged, window.input_ids) for window in windows])
    with torch.no_grad():
        for weight in merged.parameters():
            weight.copy_(weight.bfloat16().float())
    rounded = [_log_probabilities(merged, window.input_ids) for window in windows]
    plain = load_model(base, spec.model)
    moved = _divergence([_log_probabilities(plain, w.input_ids) for w in windows], own)
    lost = _divergence(own, rounded)
    yield Finding(
        "H13",
        "merging in bf16 changes the model (KL above 0), merging in fp32 does not",
        f"KL(adapter || merged) fp32 {exact:.1e}, weights rounded to bf16 {lost:.1e} nats a token; "
        f"KL(base || adapter) {moved:.1e}",
        bool(lost > 100 * abs(exact)),
    )


def _latency(adapted: Any, merged: Any, row: Any) -> Finding:
    """Time passes over one row, both models in turn, and over two rows of one adapter and of two in turn."""
    one, two = torch.tensor([list(row)]), torch.tensor([list(row)] * 2)
    unmerged = _in_turn(lambda: adapted(input_ids=one), lambda: merged(input_ids=one))
    mixed = _in_turn(
        lambda: adapted(input_ids=two, adapter_names=["default", SECOND]),
        lambda: adapted(input_ids=two, adapter_names=["default"] * 2),
    )
    return Finding(
        "H12",
        "an unmerged adapter is slower than the merged model, and a batch of several no faster than of one",
        f"a pass over {len(row)} tokens on the CPU, r=4 on seven modules: unmerged / merged {unmerged.text}; "
        f"two such rows: of two adapters / of one {mixed.text}",
        bool(unmerged.low > 1 and mixed.high >= 1),
    )


@dataclass(frozen=True)
class Ratio:
    """How much longer one pass takes than another: quartiles of paired ratios."""

    low: float
    high: float
    text: str


@torch.no_grad()
def _in_turn(first: Callable[[], object], second: Callable[[], object]) -> Ratio:
    """Time two passes in turn, after a warm-up."""
    times = np.array([[_seconds(work) for work in (first, second)] for _ in range(TIMED_PASSES)])
    times = times[TIMED_PASSES // 4 :]
    low, middle, high = np.quantile(times[:, 0] / times[:, 1], (0.25, 0.5, 0.75))
    one, other = 1e3 * np.median(times, axis=0)
    text = f"{one:.1f} ms / {other:.1f} ms, paired ratio {middle:.2f} (quartiles {low:.2f} to {high:.2f})"
    return Ratio(low, high, text)


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


@torch.no_grad()
def _log_probabilities(model: Any, row: Any) -> torch.Tensor:
    logits = model(input_ids=torch.tensor([list(row)])).logits[0]
    return torch.log_softmax(logits.double(), dim=-1)


def _divergence(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    values = [(p.exp() * (p - q)).sum(dim=-1) for p, q in zip(one, other, strict=True)]
    return float(torch.cat(values).mean())


def batch_sizes(tables: Tables) -> Iterator[Finding]:
    """H11: what four times the batch costs each method, over the same rows and at its best rate for each."""
    large = Tables(StudyLayout(tables.study.root.with_name(BATCHES)))
    kinds = {kind: [_best_losses(found, kind, large) for found in (tables, large)] for kind in KINDS[:2]}
    costs = {kind: after - before for kind, (before, after) in kinds.items()}
    worse = costs["lora-r4"] > costs["full"]  # a seed each
    text = "; ".join(
        f"{kind} {before.mean():.3f} to {after.mean():.3f} (by seed {_signs(costs[kind])})"
        for kind, (before, after) in kinds.items()
    )
    yield Finding(
        "H11",
        "larger batches hurt LoRA more",
        f"validation loss at batch 8 and 32 over 256 rows, each at the better of two learning rates: {text}",
        None if worse.nunique() > 1 else bool(worse.all()),
    )


def _best_losses(tables: Tables, kind: str, among: Tables) -> pd.Series:
    """Return seed -> validation loss of a method's best arm, of those that another study has too."""
    plane, arms = tables.plane(), set(among.plane()["arm"])
    rows = plane[plane["arm"].isin(arms) & plane["arm"].str.startswith(f"{kind}-")]
    best = rows.groupby("arm")["task_loss"].mean().idxmin()
    return rows[rows["arm"] == best].set_index("seed")["task_loss"]


def _signs(values: pd.Series) -> str:
    return ", ".join(f"{value:+.3f}" for value in values)


QUESTIONS: tuple[Callable[[Tables], Iterator[Finding]], ...] = (
    learning_rates,
    ranks,
    intruder_dimensions,
    predictors,
    forgetting,
    places,
    batch_sizes,
    merging,
    interventions,
    task_vectors,
)


def run(arguments: argparse.Namespace) -> dict[str, float | bool]:
    """Run the study and the interventions; return wall and processor seconds of this process's children.

    A study that was begun before is continued; the seconds are then those of the rest.
    """
    study = StudyLayout(arguments.output / METHODS)
    continued, began = study.root.exists(), time.perf_counter()
    rankdrift = [sys.executable, "-m", "rankdrift"]
    places = [f"data.root={arguments.data}", f"output={arguments.output}"]
    for recipe in ("sst2_methods", "sst2_batches"):
        experiment = str(RECIPES / f"{recipe}.yaml")
        subprocess.run([*rankdrift, "study", "run", "--experiment", experiment, *places], check=True)
    edit = ["analyze", "intervene", str(study.run(EDITED).root), "--first-only"]
    edit += [word for name, value in EDIT.items() for word in (f"--{name}", f"{value:g}")]
    subprocess.run([*rankdrift, *edit], check=False)  # it may say that there is no intruder
    subprocess.run([*rankdrift, "analyze", "variants", "--study", str(study.root)], check=True)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    wall, cpu = time.perf_counter() - began, used.ru_utime + used.ru_stime
    return {"continued": continued, "wall": wall, "cpu": cpu}


def main() -> None:
    """Run, and write JSON and a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with glue_sst2/")
    parser.add_argument("--output", type=Path, default=Path("outputs"))
    parser.add_argument("--results", type=Path, default=HERE / "results" / "acceptance.json")
    arguments = parser.parse_args()
    seconds = run(arguments)
    tables = Tables(StudyLayout(arguments.output / METHODS))
    found = [finding for question in QUESTIONS for finding in question(tables)]
    found.sort(key=lambda finding: int(finding.name[1:]))
    document = {"claim": __doc__, "seconds": seconds, "findings": [asdict(finding) for finding in found]}
    environment = {key: value for key, value in files.environment().items() if key != "command"}  # places
    files.write_json(arguments.results, {**document, "environment": environment})
    verdicts = {True: "yes", False: "no", None: "open"}
    lines = ["| | published | observed here | agrees |", "|---|---|---|---|"]
    lines += [f"| {f.name} | {f.claim} | {f.observed} | {verdicts[f.agrees]} |" for f in found]
    files.write_text(arguments.results.with_suffix(".md"), "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
