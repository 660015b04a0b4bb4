"""Judges samples of one's own images without this library's code, with scikit-learn and SciPy.

    python -m drifting_jax.sample --workdir=runs/images_small --per_class=100 --out=samples.npz
    python benchmarks/judge_images.py flowers samples.npz [more.npz ...]

The folder has a subfolder of images for each class. Three quarters of each class train a small
classifier of pixels, which has seen no encoder of ours. The first line judges these real images, as
the baseline; a line for each file of samples follows. A line has

* the accuracy of the classifier, and its accuracy on the real images that it has not seen;
* Fréchet distance, and k = 5 precision and recall, in its features, against those images;
* colour: the variance of the channels around their mean over that of the grey image;
* seams: the mean step between neighbours whose border is a multiple of 4 pixels, over that of
  other neighbours.
"""

import sys
from pathlib import Path

import numpy as np
from judge_digits import covered, frechet_distance
from PIL import Image
from sklearn.neural_network import MLPClassifier

SEAM = 4  # pixels; the side of the patches of many transformers
ENDINGS = (".png", ".jpg", ".jpeg")


def read(folder: Path, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images [n, side, side, 3] in [-1, 1], their classes, and whether they are for training."""
    images, labels, trains = [], [], []
    for label, name in enumerate(sorted(path for path in folder.iterdir() if path.is_dir())):
        paths = sorted(path for path in name.rglob("*") if path.suffix.lower() in ENDINGS)
        for i, path in enumerate(paths):
            image = Image.open(path).convert("RGB")
            edge = min(image.size)
            left, top = ((length - edge) // 2 for length in image.size)
            square = image.crop((left, top, left + edge, top + edge))
            images.append(np.asarray(square.resize((side, side), Image.Resampling.BOX)))
            labels.append(label)
            trains.append(i % 4 != 3)
    return np.stack(images) / 127.5 - 1, np.array(labels), np.array(trains)


def flat(images: np.ndarray) -> np.ndarray:
    """[n, h, w, c] -> [n, h·w·c]."""
    return images.reshape(len(images), -1)


def features(classifier: MLPClassifier, images: np.ndarray) -> np.ndarray:
    """The last hidden layer [n, d] of a classifier with ReLUs."""
    found = flat(images)
    for weights, bias in zip(classifier.coefs_[:-1], classifier.intercepts_[:-1], strict=True):
        found = np.maximum(found @ weights + bias, 0)
    return found


def colour(images: np.ndarray) -> float:
    """The variance of the channels around their mean over the variance of that mean."""
    grey = images.mean(-1, keepdims=True)
    return float(np.mean((images - grey) ** 2) / grey.var())


def seams(images: np.ndarray) -> float:
    """Steps across the borders of patches over other steps; 1 without seams."""
    across = np.abs(np.diff(images, axis=2)).mean((0, 1, 3))
    down = np.abs(np.diff(images, axis=1)).mean((0, 2, 3))
    is_border = np.arange(1, images.shape[1]) % SEAM == 0
    steps = across + down
    return float(steps[is_border].mean() / steps[~is_border].mean())


def main(folder: str, *paths: str) -> None:
    """Prints a line of metrics for each file."""
    samples = {path: dict(np.load(path)) for path in paths}
    side = next(iter(samples.values()))["arr_0"].shape[1]
    images, labels, trains = read(Path(folder), side)
    train, test = images[trains], images[~trains]
    classifier = MLPClassifier((128, 64), early_stopping=True, max_iter=100, random_state=0)
    classifier.fit(flat(np.concatenate([train, train[:, :, ::-1]])), np.tile(labels[trains], 2))
    unseen = classifier.score(flat(test), labels[~trains])
    expected = features(classifier, test)

    def report(name: str, images: np.ndarray, asked: np.ndarray) -> None:
        found = features(classifier, images)
        print(
            f"{name}: n {len(images)}, accuracy {classifier.score(flat(images), asked):.3f} "
            f"(unseen real ones {unseen:.3f}), "
            f"Fréchet distance {frechet_distance(found, expected):.1f}, "
            f"precision {covered(expected, found):.3f}, recall {covered(found, expected):.3f}, "
            f"colour {colour(images):.4f}, seams {seams(images):.3f}"
        )

    report("real", train, labels[trains])
    for path, file in samples.items():
        made = file["arr_0"] / 127.5 - 1
        if made.shape[-1] == 1:
            made = np.repeat(made, 3, axis=-1)
        report(path, made, file["arr_1"])


if __name__ == "__main__":
    main(*sys.argv[1:])
