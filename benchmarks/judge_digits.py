"""Measures digits without this library's code, with scikit-learn and SciPy alone.

    python -m drifting_jax.sample --workdir=runs/digits_quick --per_class=144 --out=samples.npz
    python benchmarks/judge_digits.py samples.npz [more.npz ...]

A line for each file has the label accuracy by an SVM that saw all real digits; the Fréchet distance
and k = 5 precision and recall, on pixels in [-1, 1] against the test split; and the median distance
to the nearest training digit over that of test digits. The first line is the baseline: the training
split in place of samples.
"""

import sys

import numpy as np
import scipy.linalg
import scipy.spatial
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neighbors import NearestNeighbors
from sklearn.svm import SVC


def frechet_distance(a, b):
    """Between Gaussians fitted to a [n, d] and b [m, d]."""
    covariances = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    eigenvalues = scipy.linalg.eigvals(covariances[0] @ covariances[1]).real
    trace_of_root = np.sum(np.sqrt(np.maximum(eigenvalues, 0)))
    return np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(sum(covariances)) - 2 * trace_of_root


def covered(manifold, points, k=5):
    """Share of points within the distance of some member of the manifold to its k-th neighbour."""
    radii = NearestNeighbors(n_neighbors=k + 1).fit(manifold).kneighbors(manifold)[0][:, -1]
    distances = scipy.spatial.distance.cdist(points, manifold)
    return np.mean(np.any(distances <= radii, axis=1))


def main(paths):
    """Prints a line of metrics for each file."""
    pixels, labels = load_digits(return_X_y=True)
    pixels = pixels / 8 - 1
    train, test, train_labels, _ = train_test_split(
        pixels, labels, test_size=0.25, random_state=0, stratify=labels
    )
    svm = SVC(C=10).fit(pixels, labels)
    nearest = NearestNeighbors(n_neighbors=1).fit(train)
    usual = np.median(nearest.kneighbors(test)[0])

    def report(name, samples, asked):
        copying = np.median(nearest.kneighbors(samples)[0]) / usual
        print(
            f"{name}: n {len(samples)}, accuracy {np.mean(svm.predict(samples) == asked):.4f}, "
            f"Fréchet distance {frechet_distance(samples, test):.3f}, "
            f"precision {covered(test, samples):.3f}, recall {covered(samples, test):.3f}, "
            f"nearest-training ratio {copying:.3f}"
        )

    report("real", train, train_labels)
    for path in paths:
        with np.load(path) as file:
            samples = file["arr_0"].reshape(len(file["arr_0"]), -1) / 127.5 - 1
            report(path, samples, file["arr_1"])


if __name__ == "__main__":
    main(sys.argv[1:])
