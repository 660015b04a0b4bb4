"""tiny_config.py on a folder of images: --config=tests/helpers/tiny_images_config.py."""

from drifting_jax.config import file_beside


def get_config():
    """Returns a config of images of 8x8, flipped and cropped at random, with a log of batches."""
    config = file_beside(__file__, "tiny_config.py").get_config()
    config.data.source = "images"
    config.data.image_size = 8
    config.data.flip = True
    config.data.log_batches = True
    config.encoder.train.crop = "random_resized"
    config.encoder.train.num_steps = 12
    config.encoder.train.classifier_steps = 4
    config.queue.allow_repeats = True
    config.eval.every = 0
    config.train.num_steps = 30
    config.train.labels_per_step = 3
    config.train.save_every = 7
    config.train.sample_every = 30
    return config
