"""What the columns of the spectra's tables mean."""

from __future__ import annotations

RANKS = {
    "threshold_rank": "singular values above 1e-5 (absolute; almost always all of them)",
    "numerical_rank": "singular values above sigma_1 max(rows, columns) eps, eps of float32",
    "entropy_rank": "exp of the entropy of sigma / sum(sigma)",
    "energy_entropy_rank": "exp of the entropy of sigma^2 / sum(sigma^2)",
    "stable_rank": "sum(sigma^2) / sigma_1^2",
    "participation_ratio": "sum(sigma^2)^2 / sum(sigma^4)",
    "e90_energy": "fewest leading values with 90 % of sum(sigma^2)",
    "e95_energy": "fewest leading values with 95 % of sum(sigma^2)",
    "e90_nuclear": "fewest leading values with 90 % of sum(sigma)",
    "e95_nuclear": "fewest leading values with 95 % of sum(sigma)",
    "nuclear_spectral_ratio": "sum(sigma) / sigma_1",
    "condition_number": "sigma_1 over the smallest value (of an adapter's r), noise if rows = columns; "
    "NaN where that is below 1e-7 sigma_1, the precision of the data",
}
SIZES = {"norm": "Frobenius norm", "sigma1": "largest singular value"}
METRICS = {**SIZES, **RANKS, "nuclear_norm": "sum of singular values"}
MATRICES = {"base": "W0", "tuned": "W", "update": "dW = W - W0"}
NULLS = {
    "tuned": "iid Gaussian noise of that shape (threshold_rank: and norm)",
    "update": "iid Gaussian noise of update_rows x update_columns, or Gaussian B A of the same r "
    "(threshold_rank: and norm); NaN where not adapted",
}
PLACE = {
    "layer": "block, 0-based; -1 outside the blocks",
    "module": "projection: q_proj ... down_proj; embed_tokens, lm_head outside the blocks",
}
SIDE = {"side": "left (rows: outputs, or tokens of embed_tokens) or right (columns) singular vectors"}
REASON = "why values are NaN, noise, or not of all of W; empty otherwise"

MATRIX: dict[str, str] = {
    **PLACE,
    "rows": "outputs of the matrix; of embed_tokens, tokens",
    "columns": "inputs of the matrix; of embed_tokens, the width",
    "update_rows": "rows of dW that are not all zero: of an embedding, the tokens that were trained",
    "update_columns": "columns of dW that are not all zero",
    **{f"{m}_{key}": f"{meaning}, of {MATRICES[m]}" for m in MATRICES for key, meaning in METRICS.items()},
    **{f"{m}_{key}_null": f"{m}_{key} of {null}" for m, null in NULLS.items() for key in RANKS},
    "relative_update_norm": "||dW||_F / ||W0||_F",
    "sigma1_ratio": "sigma_1(dW) / sigma_1(W0)",
    "spearman_sigma": "rank correlation of |u_i^T W v_i| with sigma_i; u_i, sigma_i, v_i of W0",
    "wasserstein_sigma": "mean |sigma_i(W) - sigma_i(W0)| / sigma_1(W0): W1 distance of the spectra",
    "wasserstein2_sigma": "root mean square of sigma_i(W) - sigma_i(W0), over sigma_1(W0): their W2 distance",
    "angle_left_mean": "mean principal angle of the leading left singular vectors of W and W0, radians",
    "angle_left_max": "largest of these angles, radians",
    "angle_right_mean": "mean principal angle of the leading right singular vectors of W and W0, radians",
    "angle_right_max": "largest of these angles, radians",
    "overlap_left": "mean cos^2 of the left angles: 1 is the same subspace",
    "overlap_right": "mean cos^2 of the right angles",
    "overlap_random": "what random subspaces give: mean of k / rows and k / columns",
    "intruders_left": "leading left vectors of W with |cosine| below the threshold to all of W0",
    "intruders_right": "leading right vectors of W with |cosine| below the threshold to all of W0",
    "intruder_energy_left": "left intruders' share of the leading vectors' sigma^2",
    "intruder_energy_right": "right intruders' share of the leading vectors' sigma^2",
    "base_noise_std": "standard deviation of iid entries whose median singular value is that of W0",
    "intruder_onset": "base_noise_std (rows columns)^(1/4): a generic direction weaker than that leaves no "
    "singular vector of its own in W (spiked model: W0 is iid noise and some spikes, dW independent of it)",
    "onset_ratio": "sigma_1(dW) / intruder_onset",
    "update_noise_std": "the same as base_noise_std, of the update_rows x update_columns of dW that are not "
    "zero; NaN for factors, which have no bulk",
    "update_bulk_edge": "update_noise_std (sqrt(update_rows) + sqrt(update_columns)): where the noise's "
    "spectrum ends",
    "update_spikes": "singular values of dW that such noise exceeds once in 1000: above the edge by 3.27 "
    "Tracy-Widom scales",
    "update_hard_threshold": "optimal hard threshold of Gavish and Donoho for dW in that noise",
    "update_hard_rank": "singular values of dW above that threshold",
    "stored_dtype": "format that W, or DoRA's lengths, are stored in; float32 for factors alone, whose "
    "rounding is in proportion to dW",
    "noise_floor_ratio": "||dW||_F over the expected norm of the rounding that storing left in W: 1 or less "
    "for rounding alone; infinite where storing loses nothing",
    "bf16_floor_ratio": "||dW||_F / (0.0017 ||W0||_F): below 1, bfloat16 weights lose the update",
    "reason": REASON,
}
VALUES: dict[str, str] = {
    **PLACE,
    "matrix": "base (W0), tuned (W) or update (dW; r values for an adapter of rank r)",
    "index": "0-based, by size",
    "sigma": "singular value; 0 where it is lost in rounding: below 1e-7 of the largest, or of factors below "
    "r eps times their norms",
}
SUBSPACES: dict[str, str] = {
    **PLACE,
    **SIDE,
    "k": "leading singular vectors compared; no row where a matrix has fewer",
    "angle_mean": "mean principal angle between the k leading vectors' spans of W and W0, radians",
    "angle_max": "largest of these angles, radians",
    "overlap": "mean cos^2 of the angles: 1 is the same subspace",
    "overlap_random": "overlap of random subspaces: k / dimension",
    "vector_drift": "root mean sin^2 of the angles, ||P - P0||_F / sqrt(2k) of the projectors: 0 unchanged, "
    "1 orthogonal",
    "naive_drift": "||U - U0||_F / (2 sqrt(k)), printed by other studies, for comparison with them alone: "
    "signs are arbitrary, and random ones give 0.7 where nothing changed, as does a new vector in front",
    "gap": "sigma_k - sigma_{k+1} of W0",
    "wedin_bound": "upper bound of sin(angle_max): ||dW||_2 / (sigma_k - sigma_{k+1}), one of W, one of W0; "
    "at most 1, which says nothing",
    "reliable": "whether gap > 2 ||dW||_2; if not, vectors k and k+1 may have changed places",
    "reason": REASON,
}
INTRUDERS: dict[str, str] = {
    **PLACE,
    **SIDE,
    "threshold": "a vector of W is an intruder where its |cosine| with all of W0 is below",
    "k": "leading vectors of W examined; from about 32 on they reach the bulk, where vectors mix freely",
    "count": "intruders among them",
    "energy_share": "intruders' share of these vectors' sigma^2",
    "count_random": "count of random directions in place of the vectors",
    "cosine_random": "expected largest |cosine| of a random direction with all vectors of W0",
    "reason": REASON,
}
TABLES = {
    "svd_analysis_results": MATRIX,
    "singular_values": VALUES,
    "subspace_drift": SUBSPACES,
    "intruder_dimensions": INTRUDERS,
}
