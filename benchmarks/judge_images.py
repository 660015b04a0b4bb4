"""Judges samples of one's own images without this library's code, with scikit-learn and SciPy.

    python -m drifting_jax.sample --workdir=runs/images_small --per_class=100 --out=samples.npz
    python benchmarks/judge_images.py flowers samples.npz [more.npz ...]

The folder has a subfolder of images for each class, or `train/` with them. Half of each class
trains a small classifier of pixels, which has seen no encoder of ours. A quarter is the reference,
and the last quarter the baseline of the first line, "real". A line has

* the accuracy of the classifier;
* Fréchet distance, and k = 5 precision and recall, in its features, against the reference. They
  depend on the number of samples: take as many as the first line has;
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


def read(folder: Path, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images [n, side, side, 3] in [-1, 1], their classes, and their places in their class."""
    folder = folder / "train" if (folder / "train").is_dir() else folder
    Image.init()
    images, labels, places = [], [], []
    label = -1
    for name in sorted(path for path in folder.iterdir() if path.is_dir()):
        paths = sorted(path for path in name.rglob("*") if path.suffix.lower() in Image.EXTENSION)
        label += bool(paths)
        for place, path in enumerate(paths):
            images.append(np.asarray(cropped(Image.open(path).convert("RGB"), side)))
            labels.append(label)
            places.append(place)
    return np.stack(images) / 127.5 - 1, np.array(labels), np.array(places)


def cropped(image: Image.Image, side: int) -> Image.Image:
    """The middle square, halved by a box while it is twice as large, then resized bicubically."""
    edge = min(image.size)
    left, top = ((length - edge) // 2 for length in image.size)
    square = image.crop((left, top, left + edge, top + edge))
    while square.width >= 2 * side:
        half = square.width // 2
        square = square.resize((half, half), Image.Resampling.BOX)
    return square.resize((side, side), Image.Resampling.BICUBIC)


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
    images, labels, places = read(Path(folder), side)
    train, reference, real = places % 4 < 2, places % 4 == 2, places % 4 == 3
    classifier = MLPClassifier((128, 64), early_stopping=True, max_iter=100, random_state=0)
    mirrored = np.concatenate([images[train], images[train][:, :, ::-1]])
    classifier.fit(flat(mirrored), np.tile(labels[train], 2))
    expected = features(classifier, images[reference])

    def report(name: str, images: np.ndarray, asked: np.ndarray) -> None:
        if asked.max() > labels.max():
            raise SystemExit(f"{name} has class {asked.max()}; {folder} has {labels.max() + 1}")
        found = features(classifier, images)
        print(
            f"{name}: n {len(images)}, accuracy {classifier.score(flat(images), asked):.3f}, "
            f"Fréchet distance {frechet_distance(found, expected):.1f}, "
            f"precision {covered(expected, found):.3f}, recall {covered(found, expected):.3f}, "
            f"colour {colour(images):.4f}, seams {seams(images):.3f}"
        )

    report("real", images[real], labels[real])
    for path, file in samples.items():
        made = file["arr_0"] / 127.5 - 1
        if made.shape[-1] == 1:
            made = np.repeat(made, 3, axis=-1)
        report(path, made, file["arr_1"])


if __name__ == "__main__":
    main(*sys.argv[1:])
