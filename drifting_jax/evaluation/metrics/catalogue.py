"""The table of metrics: what each one is, who defined it, which way is better, what it needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

_DIRECTIONS = ("lower", "higher", "near 1", "near real")
# What a metric can measure: images of any size, with published networks; the small images of a run
# (digits, MNIST, CIFAR), with a classifier of their own; the points of a toy.
IMAGES, SMALL_IMAGES, TOYS = "images", "small images", "toys"


@dataclass(frozen=True)
class Metric:
    """What a metric is called, what it measures, and what it needs.

    Attributes:
      name: as reports show it.
      better: "lower", "higher", "near 1" or "near real" (nearer to the value of real data).
      definition: in words.
      source: who defined it; https://… and arXiv numbers become links.
      applies_to: some of `IMAGES`, `SMALL_IMAGES`, `TOYS`.
      features: of images, the features that it compares, as `FeatureStore` names them.
      reference: of images, what it needs of the real ones: "moments", "features" or nothing, "".

    Raises:
      ValueError: `better` is none of these.
    """

    name: str
    better: str
    definition: str
    source: str
    applies_to: tuple[str, ...] = (IMAGES,)
    features: str = ""
    reference: str = ""

    def __post_init__(self) -> None:
        if self.better not in _DIRECTIONS:
            raise ValueError(
                f"{self.name}: better is one of {', '.join(_DIRECTIONS)}; found {self.better!r}"
            )


_METRICS = {
    "fid": Metric(
        "FID",
        "lower",
        "Fréchet distance ‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2 (Σ₁ Σ₂)^½) of Gaussians fitted to the 2048 "
        "pooled Inception-v3 features of samples and of real images",
        "Heusel et al. 2017, arXiv 1706.08500",
        features="inception",
        reference="moments",
    ),
    "sfid": Metric(
        "sFID",
        "lower",
        "the Fréchet distance of FID on 7 channels of Inception-v3's mixed_6 map with their 17x17 "
        "locations (2023 features), which sees where things stand in the image",
        "Nash et al. 2021, arXiv 2103.03841",
        features="spatial",
        reference="moments",
    ),
    "inception_score": Metric(
        "Inception Score",
        "higher",
        "exp(mean over x of KL(p(y|x) ‖ p(y))) of Inception-v3's classes y for samples x, the mean "
        "over splits; looks at no real image",
        "Salimans et al. 2016, arXiv 1606.03498",
        features="logits",
    ),
    "kid": Metric(
        "KID",
        "lower",
        "unbiased squared maximum mean discrepancy of pooled Inception-v3 features under the "
        "kernel (x·y/d + 1)³, the mean over random subsets",
        "Bińkowski et al. 2018, arXiv 1801.01401",
        features="inception",
        reference="features",
    ),
    "fd_pixels": Metric(
        "FD of pixels",
        "lower",
        "Fréchet distance of Gaussians fitted to all pixels of samples and of the test split",
        "as FID, arXiv 1706.08500",
        (SMALL_IMAGES,),
    ),
    "fd_classifier": Metric(
        "FD of the classifier",
        "lower",
        "the same in the features of a small classifier, trained on the training split alone",
        "as FID, arXiv 1706.08500",
        (SMALL_IMAGES,),
    ),
    "accuracy": Metric(
        "Accuracy",
        "higher",
        "share of samples that the classifier gives the label that they were asked for",
        "this project",
        (SMALL_IMAGES,),
    ),
    # Of small images precision and recall are on pixels.
    "precision": Metric(
        "Precision",
        "higher",
        "share of samples that lie within the distance of some real image to its k-th nearest "
        "other real image: how real samples look",
        "Kynkäänniemi et al. 2019, arXiv 1904.06991",
        (IMAGES, SMALL_IMAGES),
        features="inception",
        reference="features",
    ),
    "recall": Metric(
        "Recall",
        "higher",
        "share of real images that lie within the distance of some sample to its k-th nearest "
        "other sample: how much of the real is reached",
        "Kynkäänniemi et al. 2019, arXiv 1904.06991",
        (IMAGES, SMALL_IMAGES),
        features="inception",
        reference="features",
    ),
    "density": Metric(
        "Density",
        "higher",
        "1/(k·m) times the pairs of one of m samples and a real image nearer than that image's "
        "k-th nearest other real image; about 1 for equal distributions, and may exceed it",
        "Naeem et al. 2020, arXiv 2002.09797",
        features="inception",
        reference="features",
    ),
    "coverage": Metric(
        "Coverage",
        "higher",
        "share of real images that have a sample nearer than their k-th nearest other real image",
        "Naeem et al. 2020, arXiv 2002.09797",
        features="inception",
        reference="features",
    ),
    "fd_dinov2": Metric(
        "FD-DINOv2",
        "lower",
        "the Fréchet distance of FID on the class token of DINOv2 (1024 features of ViT-L/14), "
        "which saw no labels",
        "Stein et al. 2023, arXiv 2306.04675",
        features="dinov2",
        reference="moments",
    ),
    "nearest_training_ratio": Metric(
        "Distance to training images",
        "near 1",
        "median distance from a sample to the nearest training image, over that of test images; "
        "well below 1 where training images are copied",
        "this project",
        (SMALL_IMAGES,),
    ),
    "sliced_wasserstein": Metric(
        "Sliced Wasserstein",
        "lower",
        "mean over random directions of the 1-Wasserstein distance between the samples and as many "
        "points of the target, projected onto the direction; the median over draws",
        "Bonneel et al. 2015, doi 10.1007/s10851-014-0506-3",
        (TOYS,),
    ),
    "mode_shares": Metric(
        "Mass per mode",
        "near real",
        "share of samples whose nearest mode of the target is this one, one record a mode; the "
        "median over draws",
        "this project",
        (TOYS,),
    ),
}

# By key, in the order of reports.
METRICS: Mapping[str, Metric] = MappingProxyType(_METRICS)


def metrics_for(kind: str) -> list[str]:
    """Keys of the metrics that apply to `IMAGES`, `SMALL_IMAGES` or `TOYS`, in their order."""
    return [key for key, metric in METRICS.items() if kind in metric.applies_to]
