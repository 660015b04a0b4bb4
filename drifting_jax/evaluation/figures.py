"""The catalogue of figures: what each one is, where it comes from, and which way is better."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal


@dataclass(frozen=True)
class FigureInfo:
    """A figure of merit.

    Fields: name, its key in reports; better, which way; definition, in a line with its formula;
    source, the paper that defines it.
    """

    name: str
    better: Literal["lower", "higher"]
    definition: str
    source: str


_FIGURES = (
    FigureInfo(
        "fid",
        "lower",
        "Fréchet distance ‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2 (Σ₁ Σ₂)^½) of Gaussians fitted to the 2048 "
        "pooled Inception-v3 features of samples and of real images",
        "Heusel et al. 2017, arXiv 1706.08500",
    ),
    FigureInfo(
        "sfid",
        "lower",
        "the Fréchet distance of FID on 7 channels of Inception-v3's mixed_6 map with their 17x17 "
        "locations (2023 features), which sees where things stand in the image",
        "Nash et al. 2021, arXiv 2103.03841",
    ),
    FigureInfo(
        "inception_score",
        "higher",
        "exp(mean over x of KL(p(y|x) ‖ p(y))) of Inception-v3's classes y for samples x, the mean "
        "over splits; looks at no real image",
        "Salimans et al. 2016, arXiv 1606.03498",
    ),
    FigureInfo(
        "kid",
        "lower",
        "unbiased squared maximum mean discrepancy of pooled Inception-v3 features under the "
        "kernel (x·y/d + 1)³, the mean over random subsets",
        "Bińkowski et al. 2018, arXiv 1801.01401",
    ),
    FigureInfo(
        "precision",
        "higher",
        "share of samples that lie within the distance of some real image to its k-th nearest "
        "other real image: how real samples look",
        "Kynkäänniemi et al. 2019, arXiv 1904.06991",
    ),
    FigureInfo(
        "recall",
        "higher",
        "share of real images that lie within the distance of some sample to its k-th nearest "
        "other sample: how much of the real is reached",
        "Kynkäänniemi et al. 2019, arXiv 1904.06991",
    ),
    FigureInfo(
        "density",
        "higher",
        "1/(k·m) times the pairs of one of m samples and a real image nearer than that image's "
        "k-th nearest other real image; about 1 for equal laws, and may exceed it",
        "Naeem et al. 2020, arXiv 2002.09797",
    ),
    FigureInfo(
        "coverage",
        "higher",
        "share of real images that have a sample nearer than their k-th nearest other real image",
        "Naeem et al. 2020, arXiv 2002.09797",
    ),
    FigureInfo(
        "fd_dinov2",
        "lower",
        "the Fréchet distance of FID on the 1024 features of DINOv2 ViT-L/14, that saw no labels",
        "Stein et al. 2023, arXiv 2306.04675",
    ),
)

# By name, in the order of reports.
FIGURES: Mapping[str, FigureInfo] = MappingProxyType({info.name: info for info in _FIGURES})
