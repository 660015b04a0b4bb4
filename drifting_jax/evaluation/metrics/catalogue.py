"""The catalogue of figures: what each one is, where it comes from, and which way is better."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

_DIRECTIONS = ("lower", "higher", "near 1")


@dataclass(frozen=True)
class FigureInfo:
    """What a figure is called, which way is better, what it measures and who defined it.

    `better` is "lower", "higher" or "near 1"; https://… and arXiv numbers in `source` become links.

    Raises:
      ValueError: `better` is none of these.
    """

    name: str
    better: str
    definition: str
    source: str

    def __post_init__(self) -> None:
        if self.better not in _DIRECTIONS:
            raise ValueError(
                f"{self.name}: better is one of {', '.join(_DIRECTIONS)}; found {self.better!r}"
            )


_FIGURES = {
    "fid": FigureInfo(
        "FID",
        "lower",
        "Fréchet distance ‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2 (Σ₁ Σ₂)^½) of Gaussians fitted to the 2048 "
        "pooled Inception-v3 features of samples and of real images",
        "Heusel et al. 2017, arXiv 1706.08500",
    ),
    "sfid": FigureInfo(
        "sFID",
        "lower",
        "the Fréchet distance of FID on 7 channels of Inception-v3's mixed_6 map with their 17x17 "
        "locations (2023 features), which sees where things stand in the image",
        "Nash et al. 2021, arXiv 2103.03841",
    ),
    "inception_score": FigureInfo(
        "Inception Score",
        "higher",
        "exp(mean over x of KL(p(y|x) ‖ p(y))) of Inception-v3's classes y for samples x, the mean "
        "over splits; looks at no real image",
        "Salimans et al. 2016, arXiv 1606.03498",
    ),
    "kid": FigureInfo(
        "KID",
        "lower",
        "unbiased squared maximum mean discrepancy of pooled Inception-v3 features under the "
        "kernel (x·y/d + 1)³, the mean over random subsets",
        "Bińkowski et al. 2018, arXiv 1801.01401",
    ),
    "precision": FigureInfo(
        "Precision",
        "higher",
        "share of samples that lie within the distance of some real image to its k-th nearest "
        "other real image: how real samples look",
        "Kynkäänniemi et al. 2019, arXiv 1904.06991",
    ),
    "recall": FigureInfo(
        "Recall",
        "higher",
        "share of real images that lie within the distance of some sample to its k-th nearest "
        "other sample: how much of the real is reached",
        "Kynkäänniemi et al. 2019, arXiv 1904.06991",
    ),
    "density": FigureInfo(
        "Density",
        "higher",
        "1/(k·m) times the pairs of one of m samples and a real image nearer than that image's "
        "k-th nearest other real image; about 1 for equal laws, and may exceed it",
        "Naeem et al. 2020, arXiv 2002.09797",
    ),
    "coverage": FigureInfo(
        "Coverage",
        "higher",
        "share of real images that have a sample nearer than their k-th nearest other real image",
        "Naeem et al. 2020, arXiv 2002.09797",
    ),
    "fd_dinov2": FigureInfo(
        "FD-DINOv2",
        "lower",
        "the Fréchet distance of FID on the class token of DINOv2 (1024 features of ViT-L/14), "
        "which saw no labels",
        "Stein et al. 2023, arXiv 2306.04675",
    ),
}

# By key, in the order of reports.
FIGURES: Mapping[str, FigureInfo] = MappingProxyType(_FIGURES)

_SMALL = {
    "fd_pixels": FigureInfo(
        "FD of pixels",
        "lower",
        "Fréchet distance of Gaussians fitted to all pixels of samples and of the test split",
        "as FID, arXiv 1706.08500",
    ),
    "fd_classifier": FigureInfo(
        "FD of the classifier",
        "lower",
        "the same in the features of a small classifier, trained on the training split alone",
        "as FID, arXiv 1706.08500",
    ),
    "accuracy": FigureInfo(
        "Accuracy",
        "higher",
        "share of samples that the classifier gives the label that they were asked for",
        "this project",
    ),
    "precision": _FIGURES["precision"],
    "recall": _FIGURES["recall"],
    "nearest_training_ratio": FigureInfo(
        "Distance to training images",
        "near 1",
        "median distance from a sample to the nearest training image, over that of test images; "
        "well below 1 where training images are copied",
        "this project",
    ),
}

# Of small images, likewise; precision and recall are on pixels.
SMALL_FIGURES: Mapping[str, FigureInfo] = MappingProxyType(_SMALL)
