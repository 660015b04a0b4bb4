"""Made-up records of figures, and what the figures are."""

import numpy as np

from drifting_jax.evaluation.report.summaries import FigureInfo

INFO = {
    "fid": FigureInfo("FID", "lower", "Fréchet distance.", "Heusel et al., arXiv:1706.08500"),
    "is": FigureInfo("IS", "higher", "Inception Score.", "https://arxiv.org/abs/1606.03498."),
    "kid": FigureInfo("KID", "lower", "Squared <MMD>.", "arXiv 1801.01401"),
    "ratio": FigureInfo("copies", "near 1", "Distance to the training set.", ""),
}


def record(figure, alpha, value, *, seed=None, **more):
    return {"figure": figure, "alpha": alpha, "seed": seed, "value": value, **more}


def several_seeds(alphas=(1.0, 1.5, 4.0)):
    """FID and IS of three seeds, in no order."""
    rng = np.random.default_rng(0)
    records = [
        record(figure, alpha, float(rng.uniform(1, 5)), seed=seed)
        for figure in ("fid", "is")
        for alpha in alphas
        for seed in (0, 1, 7)
    ]
    return [records[i] for i in rng.permutation(len(records))]
