"""Writes small data sets as tensorflow-datasets does."""

import io

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def write_tfds(
    folder, name, *, version, shape, class_names, labels, first=0, file_format="array_record"
):
    """Writes a data set of PNG images; every pixel of an image is the number of its record.

    `labels` is {split: labels of its records}. The test split counts from `first`, others from 0.
    """
    with tfds.core.registered.skip_registration():

        class Tiny(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version(version)

            def _info(self):
                features = {
                    "image": tfds.features.Image(shape=shape),
                    "label": tfds.features.ClassLabel(names=class_names),
                }
                return tfds.core.DatasetInfo(
                    builder=self, features=tfds.features.FeaturesDict(features)
                )

            def _split_generators(self, dl_manager):
                return {split: self._generate_examples(split) for split in labels}

            def _generate_examples(self, split):
                height, width, channels = shape
                pixels = (height, width) if channels == 1 else shape
                for number, label in enumerate(labels[split], first if split == "test" else 0):
                    png = io.BytesIO()
                    Image.fromarray(np.full(pixels, number, np.uint8)).save(png, "PNG")
                    yield number, {"image": png.getvalue(), "label": label}

    Tiny.name = name
    Tiny(data_dir=str(folder), file_format=file_format).download_and_prepare()
