"""What samples are compared with: moments and features of real images, in one .npz file.

Our files hold `mu`, `sigma` of Inception's features under the usual names, `mu_s`, `sigma_s` of its
spatial features, `mu_dinov2`, `sigma_dinov2` of DINOv2's, some of the features themselves, and how
the file was made. Files of others are read too: `mu`, `sigma`; `ref_mu`, `ref_sigma`; ADM's, which
hold images as `arr_0`, with or without moments of more images.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from drifting_jax.errors import UserError, first_line
from drifting_jax.evaluation.features.extractors import Extractor
from drifting_jax.evaluation.features.feature_store import FeatureStore
from drifting_jax.evaluation.metrics.frechet import (
    GaussianStatistics,
    RunningMoments,
    covariance_factor,
    frechet_distance,
)
from drifting_jax.files import write_npz

# {kind of features: names of their moments in a file}, first ours, then those of others.
_MOMENTS = {
    "inception": (("mu", "sigma"), ("ref_mu", "ref_sigma")),
    "spatial": (("mu_s", "sigma_s"),),
    "dinov2": (("mu_dinov2", "sigma_dinov2"),),
}
_FEATURES = {"inception": "features", "dinov2": "features_dinov2"}
_READ = {name for kind in _MOMENTS.values() for pair in kind for name in pair} | {
    *_FEATURES.values(), "protocol"}  # fmt: skip
_SYMMETRY = 1e-6  # of the largest entry of a covariance
_SEMI_DEFINITE = 1e-6  # of the trace: what rounding to float32 may leave below zero
_SAME_MEANS, _SAME_TRACES = 1e-4, 1e-3  # of the deviation, and of the trace


@dataclasses.dataclass(frozen=True)
class Reference:
    """Real images as metrics see them.

    Attributes:
      moments: by the kind of features, those that are known of "inception", "spatial", "dinov2".
      features: [m, d] float32 of "inception", "dinov2": of some of the images, drawn at random.
      protocol: how it was made, in words by name.
      images: path of an .npz file whose images belong to it and are not measured yet.
    """

    moments: Mapping[str, GaussianStatistics]
    features: Mapping[str, np.ndarray]
    protocol: Mapping[str, str]
    images: Path | None = None
    _factors: dict[str, np.ndarray] = dataclasses.field(default_factory=dict, repr=False)

    def distance(self, kind: str, samples: GaussianStatistics) -> float:
        """Fréchet distance of samples from one kind of moments; caches their covariance factor.

        Raises:
          ValueError: as `frechet_distance`.
        """
        moments = self.moments[kind]
        if kind not in self._factors:
            self._factors[kind] = covariance_factor(moments.covariance)
        return frechet_distance(samples, moments, factor_of_b=self._factors[kind])


def reference_of_features(
    store: FeatureStore, protocol: Mapping[str, str], *, keep: int
) -> Reference:
    """The reference that the features of real images make.

    Args:
      store: holds "inception", "spatial", "dinov2" or some of them.
      protocol: how they were made.
      keep: features of each kind that are kept, drawn at random.

    Raises:
      UserError: fewer than two images, or features that are not finite.
    """
    if len(store.usable) < 2:
        raise UserError(f"a reference needs two images or more; found {len(store.usable)}")
    moments = {name: moments_of(store, name) for name in _MOMENTS if name in store}
    features = {name: store.take(name, keep) for name in _FEATURES if name in store}
    return Reference(moments, features, protocol)


def moments_of(store: FeatureStore, name: str) -> GaussianStatistics:
    """Mean and covariance of one kind of features, streamed from the disk in float64.

    Raises:
      UserError: too few, or not finite.
    """
    found = RunningMoments(store.width(name))
    try:
        for block in store.blocks(name):
            found.update(block)
        return found.statistics()
    except ValueError as error:
        raise UserError(f"the {name} features cannot be summed: {error}") from None


def check_weights(found: Reference, extractors: Sequence[Extractor]) -> None:
    """Makes sure that a reference was made with the weights of these extractors, if it tells.

    Raises:
      UserError: it was made with others, or it has another number of features.
    """
    for extractor in extractors:
        name = extractor.name
        theirs = found.protocol.get(f"{name} weights", "")
        if theirs and theirs != f"sha256 {extractor.digest}":
            raise UserError(
                f"the reference was made with other weights of {name} ({theirs}) than these "
                f"(sha256 {extractor.digest}): make it anew, or give those with --{name}"
            )
        width = len(found.moments[name].mean) if name in found.moments else extractor.num_features
        if width != extractor.num_features:
            raise UserError(
                f"the reference's {name} statistics have {width} features, the network "
                f"{extractor.num_features}: they are of another network"
            )


def write_reference(path: Path, reference: Reference) -> None:
    """Writes a reference for `read_reference`, whole or not at all."""
    arrays = {"protocol": np.array(json.dumps(dict(reference.protocol)))}
    for name, statistics in reference.moments.items():
        mean, covariance = _MOMENTS[name][0]
        arrays |= {mean: statistics.mean, covariance: statistics.covariance}
    arrays |= {_FEATURES[name]: features for name, features in reference.features.items()}
    write_npz(path, arrays)


def read_reference(path: Path) -> Reference:
    """Reads a file of ours or of others.

    Raises:
      UserError: the file is missing, damaged or without any known array, or holds numbers that are
        not finite or a matrix that is no covariance.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            names = set(file.files)
            arrays = {name: file[name] for name in names & _READ}
    except Exception as error:  # damaged bytes raise anything
        raise UserError(
            f"{path} is no .npz file of statistics that can be read: {first_line(error)}"
        ) from None
    for name, array in arrays.items():
        kinds = "U" if name == "protocol" else "biuf"
        if not isinstance(array, np.ndarray) or array.dtype.kind not in kinds:
            expected = "text" if kinds == "U" else "numbers"
            raise UserError(f"{path}: expected {name} to be an array of {expected}")
    moments = {}
    for kind, spellings in _MOMENTS.items():
        for mean, covariance in spellings:
            if {mean, covariance} <= names and kind not in moments:
                moments[kind] = _checked(path, mean, arrays[mean], covariance, arrays[covariance])
    features = {kind: arrays[name] for kind, name in _FEATURES.items() if name in names}
    for kind, found in features.items():
        if found.ndim != 2 or not np.isfinite(found).all():
            raise UserError(f"{path}: {_FEATURES[kind]} must be a matrix of finite numbers")
    if not moments and "arr_0" not in names:
        raise UserError(
            f"{path} holds no statistics: expected mu and sigma, ref_mu and ref_sigma, or images "
            f"arr_0; found {', '.join(sorted(names)) or 'nothing'}"
        )
    made = {"statistics": f"of {path}; how they were made is not in the file"}
    if "protocol" in names:
        made = _protocol(path, str(arrays["protocol"]))
    return Reference(moments, features, made, path if "arr_0" in names else None)


def _protocol(path: Path, text: str) -> dict[str, str]:
    """The protocol of a file of ours, or the text of a file of others."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        return {"statistics": f"of {path}, which says: {text}"}
    return {str(name): str(words) for name, words in found.items()}


def _checked(
    path: Path, mean_name: str, mean: np.ndarray, name: str, covariance: np.ndarray
) -> GaussianStatistics:
    mean, covariance = np.asarray(mean, np.float64), np.asarray(covariance, np.float64)
    if mean.ndim != 1 or covariance.shape != 2 * mean.shape:
        raise UserError(
            f"{path}: expected {mean_name} [d] and {name} [d, d]; found {list(mean.shape)} and "
            f"{list(covariance.shape)}"
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise UserError(f"{path}: {mean_name} or {name} holds numbers that are not finite")
    if np.abs(covariance - covariance.T).max() > _SYMMETRY * np.abs(covariance).max():
        raise UserError(f"{path}: {name} is not symmetric, so it is no covariance")
    if not _is_semi_definite(covariance):
        raise UserError(f"{path}: {name} has negative eigenvalues, so it is no covariance")
    return GaussianStatistics(mean, covariance)


def _is_semi_definite(covariance: np.ndarray) -> bool:
    """Whether no eigenvalue is below zero by more than rounding."""
    trace = float(np.trace(covariance))
    if trace <= 0:
        return not covariance.any()
    try:
        np.linalg.cholesky(covariance + _SEMI_DEFINITE * trace * np.eye(len(covariance)))
    except np.linalg.LinAlgError:
        return False
    return True


def are_same_images(samples: GaussianStatistics, real: GaussianStatistics) -> bool:
    """Whether two sets have the same moments, as two sets of different images never have.

    The means of two sets of n images of one distribution differ by about √(2/n) deviations.
    """
    if samples.mean.shape != real.mean.shape:
        return False
    trace = float(np.trace(real.covariance))
    apart = float(np.linalg.norm(samples.mean - real.mean))
    spread = abs(float(np.trace(samples.covariance)) - trace)
    return apart <= _SAME_MEANS * math.sqrt(max(trace, 0.0)) and spread <= _SAME_TRACES * trace
