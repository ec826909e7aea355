"""What happened to the weights: size and rank of the update, intruders, subspaces."""

from __future__ import annotations

import numpy as np
import pandas as pd

from rankdrift.analysis.findings import Finding, Headline, Listing, Sentence, among
from rankdrift.analysis.sources.observations import (
    intruder_shares,
    intruder_totals,
    last_checkpoints,
    nearest_count,
    of_blocks,
    of_changed,
    rank_shares,
    update_sizes,
)

SPECTRA = "svd_analysis_results"


def _sizes(spectra: pd.DataFrame) -> pd.DataFrame:
    """Return the matrices of last checkpoints, the largest update first, with the size of the whole one."""
    last = last_checkpoints(spectra).sort_values("relative_update_norm", ascending=False, kind="stable")
    in_block = last["module"] + " of layer " + last["layer"].astype(str)
    changed = last["update_norm"] > 0
    return last.assign(
        size=last["run"].map(update_sizes(last).set_index("run")["relative_update_norm"]),
        which=in_block.where(last["layer"] >= 0, last["module"]),  # embeddings and heads have no layer
        changed=changed,
        below=changed & (last["bf16_floor_ratio"] < 1),
    )


def _ranks(spectra: pd.DataFrame) -> pd.DataFrame:
    """Return the matrices that changed, with r where it bounds all of a run's."""
    rows = rank_shares(last_checkpoints(spectra))
    return rows.assign(r=rows["rank"].where(rows.groupby("run")["bounded"].transform("all")))


def _intruders(spectra: pd.DataFrame) -> pd.DataFrame:
    return intruder_totals(last_checkpoints(spectra))


def _thresholds(grid: pd.DataFrame, spectra: pd.DataFrame) -> pd.DataFrame:
    """Return the shares of intruders among a usual number of vectors, and of random directions."""
    shares = intruder_shares(last_checkpoints(grid)).sort_values("threshold")
    random = shares.sort_values(["threshold", "share_random"], ascending=[True, False]).drop_duplicates(
        ["threshold", "k"]
    )
    random = random.assign(arm="random directions, the most of any arm", share=random["share_random"])
    return _usual_count(pd.concat([shares, random]))


def _turned(subspaces: pd.DataFrame, spectra: pd.DataFrame | None) -> pd.DataFrame:
    """Return the subspaces of a usual number of vectors, of matrices that changed."""
    rows = of_changed(of_blocks(last_checkpoints(subspaces)).dropna(subset=["vector_drift"]), spectra)
    naive = rows["run"].map(_usual_count(rows).groupby("run")["naive_drift"].mean())
    return _usual_count(rows.assign(random=np.sqrt(1 - rows["overlap_random"]), naive=naive))


def _usual_count(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["k"] == nearest_count(rows["k"])] if len(rows) else rows


SIZES = Listing(
    {
        "run": "{run}",
        "of all weights": "{size:percent}",
        "largest of a matrix": "{relative_update_norm:percent}",
        "which": "{which}",
        "matrices": "{module.size}",
        "changed": "{changed.sum}",
        "below bf16's rounding": "{below.sum}",
    },
    "Norm of the update over that of the base's weights, and matrices whose update is smaller than the "
    "rounding of the weight to bf16",
)
RANKS = Listing(
    {
        "run": "{run}",
        "entropy rank": "{update_entropy_rank.median:number}",
        "noise's": "{update_entropy_rank_null.median:number}",
        "share of noise's": "{null_share.median:percent}",
        "bounded by r": "{r:count}",
    },
    "Entropy rank of the update, medians over the matrices that changed. Noise is Gaussian, of the matrix's "
    "shape; for LoRA a product BA of Gaussian factors of that r",
)
BOUNDED = Sentence(
    "LoRA's ranks are bounded by r: the gap to full fine-tuning is there by construction, and what compares "
    "is the share of noise's.",
    lambda rows: among(rows, rows["bounded"].nunique() > 1),
)
INTRUDERS = Listing(
    {
        "run": "{run}",
        "intruders": "{intruders_left:count} / {intruders_right:count}",
        "matrices": "{matrices}",
        "share of the leading energy": "{intruder_energy_left:percent} / {intruder_energy_right:percent}",
        "largest singular value of an update over the base's": "{sigma1_ratio:number}",
    },
    "Intruder dimensions over all matrices of the blocks, left / right",
)
THRESHOLDS = Listing(
    {"arm": "{arm}", "{threshold:general}": "{share:percent}"},
    "Share of the {k} leading vectors of both sides that are intruders, by the threshold below which the "
    "largest cosine with a base vector must lie",
    by=("arm",),
)
CONTESTED = Sentence(
    "An intruder is spread over many base vectors; whether it causes forgetting is contested."
)
TURNED = Listing(
    {
        "run": "{run}",
        "{side}": "{vector_drift.mean:number}",
        "unrelated spans": "{random.mean:number}",
        "matrices with a gap above twice the update": "{reliable.mean:percent}",
    },
    "How far the span of the {k} leading singular vectors turned, means over the matrices that changed: 0 "
    "not at all, 1 into an orthogonal one",
)
NAIVE = Sentence(
    "The naive distance of the same vectors would say {naive.min:number} to {naive.max:number} in the mean "
    "over a run's matrices: it depends on signs, which are arbitrary. Where the gap is smaller than twice "
    "the update, neighbouring vectors may have changed places without meaning.",
)
FINDINGS = (
    Finding("Size of the update", (SPECTRA,), _sizes, (SIZES,)),
    Finding("Rank of the update", (SPECTRA,), _ranks, (RANKS, BOUNDED)),
    Finding("Intruder dimensions", (SPECTRA,), _intruders, (INTRUDERS,)),
    Finding("Intruder dimensions", ("intruder_dimensions", SPECTRA), _thresholds, (THRESHOLDS,)),
    Finding("Intruder dimensions", (SPECTRA,), _intruders, (CONTESTED,)),
    Finding("Leading subspaces", ("subspace_drift",), _turned, (TURNED, NAIVE), beside=(SPECTRA,)),
)
NOTE = (
    'Ranks are medians over the matrices that changed; "share of noise\'s" is the median share of the rank '
    "that "
    "Gaussian noise of the same shape (LoRA: of the same r) has."
)
HEADLINE = (
    Headline(SPECTRA, _sizes, {"relative update norm": "{size:number}"}),
    Headline(
        SPECTRA,
        _ranks,
        {
            "entropy rank": "{update_entropy_rank.median:number}",
            "share of noise's": "{null_share.median:percent}",
        },
        NOTE,
    ),
    Headline(SPECTRA, _intruders, {"intruders L / R": INTRUDERS.columns["intruders"]}),
)
