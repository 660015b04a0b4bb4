"""The config files: each resolves, and small versions of those for data sets on disk run."""

import itertools
import json
import math
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from small_files import write_idx
from tfds_files import CIFAR10, write_tfds

from drifting_jax.config import file_beside, resolve
from drifting_jax.config.defaults import SECTIONS
from drifting_jax.data.sources import data_spec
from drifting_jax.errors import UserError
from drifting_jax.training import build, dry_run, run
from drifting_jax.training.memory_plan import memory_plan
from drifting_jax.weights.shapes import param_shapes
from drifting_jax.workdir.metrics import read_metrics

CONFIGS = Path(__file__).parents[2] / "configs"
SMALL = {
    "log_every": 1,
    "mesh.data": 1,
    "data.num_workers": 0,
    "encoder.width": 8,
    "encoder.blocks": (1, 1, 1),
    "encoder.groups": 4,
    "encoder.train.num_steps": 2,
    "encoder.train.classifier_steps": 1,
    "encoder.train.batch_size": 8,
    "encoder.train.warmup_steps": 1,
    "features.patch_sizes": (),
    "model.width": 16,
    "model.depth": 1,
    "model.num_heads": 2,
    "model.num_context_tokens": 1,
    "model.num_style_books": 2,
    "drift.temperatures": (0.2,),
    "queue.per_class": 2,
    "queue.unconditional": 8,
    "queue.push_per_step": 8,
    "optim.warmup_steps": 1,
    "train.num_steps": 2,
    "train.labels_per_step": 2,
    "train.generated_per_label": 2,
    "train.positives_per_label": 2,
    "train.unconditional_per_label": 2,
    "eval.samples_per_class": 2,
    "eval.cfg_scales": (1.0,),
    "eval.k": 1,
}


def load(name):
    return file_beside(CONFIGS / "any.py", f"{name}.py").get_config()


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.py")), ids=lambda path: path.stem)
def test_every_config_resolves_and_gives_its_command(path):
    assert resolve(load(path.stem)).task in SECTIONS
    described = file_beside(path, path.name).__doc__
    assert f"python main.py --config=configs/{path.name}" in described


@pytest.mark.parametrize(
    ("name", "variants"),
    {
        "digits": ("plain", "quick", "diverse"),
        "imagenet512_latent": ("B", "L"),
        "imagenet_latent": ("B", "L", "ablation", "one_gpu"),
        "imagenet_pixel": ("B", "L"),
        "cifar10": ("10", "100", "unconditional", "conditional", "small"),
        "fashion_mnist": ("dit", "unet"),
        "images": ("64", "128", "small", "small_dit"),
        "mae_latent": ("256", "640"),
        "mae_pixel": ("256", "640"),
        "mnist": ("mnist", "fashion"),
        "pairs": ("large", "small"),
        "toy2d": ("far", "between,two_moons", "checkerboard,attraction_only"),
    }.items(),
)
def test_every_variant_resolves(name, variants):
    found = file_beside(CONFIGS / "any.py", f"{name}.py")
    resolved = [resolve(found.get_config(variant)).to_dict() for variant in variants]
    assert all(one != other for one, other in itertools.pairwise(resolved))
    with pytest.raises(UserError, match=rf"configs/{name}\.py has no variant 'none'; it knows"):
        found.get_config("none")


@pytest.mark.parametrize(
    "name, shape", [("digits", (8, 8, 1)), ("mnist", (28, 28, 1)), ("cifar10", (32, 32, 3))]
)
def test_the_networks_fit_the_images(name, shape):
    build.check_models(resolve(load(name)), SimpleNamespace(image_shape=shape, num_classes=10))


@pytest.mark.parametrize(
    ("variant", "parameters"),
    [("unconditional", 32_856_707), ("conditional", 39_426_947), ("small", 8_228_163)],
)
def test_the_variants_with_a_unet(variant, parameters):
    """The first has the size of the network of the run that it follows: 32.9 million."""
    config = resolve(file_beside(CONFIGS / "any.py", "cifar10.py").get_config(variant))
    spec = data_spec(config.data)
    assert (spec.count, spec.num_classes) == (50000, 10 if variant == "conditional" else 1)
    network = param_shapes(build.make_generator(config, spec))
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(network)) == parameters
    plan = memory_plan(config, build.make_mesh(config, devices=jax.devices()[:1]))
    assert plan.microbatches == (8 if variant == "small" else 10)
    assert plan.parts_of_rows == (1 if variant == "conditional" else plan.microbatches)


@pytest.mark.slow
def test_the_generators_of_fashion_mnist_cost_the_same():
    """In operations of a whole step: so a comparison of what they learn is fair."""
    variants = file_beside(CONFIGS / "any.py", "fashion_mnist.py")
    dit, unet = (
        dry_run.count_flops(resolve(variants.get_config(kind)), 1) for kind in ("dit", "unet")
    )
    assert 0.95 < unet / dit < 1.05


@pytest.mark.slow
@pytest.mark.parametrize(("name", "shape"), [("mnist", (28, 28, 1)), ("cifar10", (32, 32, 3))])
def test_a_data_set_on_disk_is_trained_on(tmp_path, monkeypatch, name, shape):
    if name == "mnist":
        write_idx(tmp_path, packed=True, counts=(30, 10))
    else:
        labels = {"train": [*range(10)] * 3, "test": [*range(10)]}
        described = {"version": "3.0.2", "shape": shape, "class_names": CIFAR10}
        write_tfds(tmp_path, name, labels=labels, first=100, **described)
    config = load(name)
    config.update_from_flattened_dict(SMALL | {"data.path": str(tmp_path)})
    workdir = tmp_path / "run"
    if name == "cifar10":  # the covariances of 3,072 pixels would take half a minute
        monkeypatch.setattr(run, "evaluate_run", lambda *_, **__: [])
    assert run.run(resolve(config), workdir=workdir) == 0
    assert read_metrics(workdir, stage="generator")[-1]["step"] == 2
    if name == "cifar10":
        return
    with np.load(workdir / "samples" / "final.npz") as samples:
        assert samples["arr_0"].shape == (20, *shape) and samples["arr_0"].dtype == np.uint8
    assert json.loads((workdir / "evaluation.json").read_text())["step"] == 2
