"""The configs for images on disk, scaled down: trained, resumed, sampled and evaluated."""

from pathlib import Path

import jax
import numpy as np
import pytest
from imagenet_like import write_imagenet_like
from measuring import setup
from small_files import cifar_files, write_folder
from tiny_run import start

from drifting_jax.config import file_beside, resolve
from drifting_jax.evaluation.image_evaluation import evaluate_images
from drifting_jax.evaluation.setup import generated_sample_sets
from drifting_jax.models.dinov2 import DINOv2
from drifting_jax.training import restore, run
from drifting_jax.weights.networks import Network, save_network
from drifting_jax.weights.shapes import param_shapes
from drifting_jax.workdir.metrics import read_metrics

ROOT = Path(__file__).parents[2]
VAE = ROOT / "tests" / "fixtures" / "torch" / "vae"
RECIPES = [  # without those that SMALL makes nearly equal to another, such as the sizes L
    ("imagenet64_latent", "", 64),
    ("imagenet_latent", "one_gpu", 64),
    ("imagenet_latent", "ablation", 64),
    ("imagenet512_latent", "B", 64),
    ("images", "64", 32),
    ("cifar10", "10", 32),
    ("cifar10", "conditional", 32),
    ("cifar10", "small", 32),
]
SMALL = {
    "log_every": 1,
    "data.num_workers": 0,
    "mesh.data": 1,
    "mesh.fsdp": 1,
    "encoder.width": 4,
    "encoder.blocks": (1,),
    "encoder.groups": 2,
    "encoder.train.num_steps": 2,
    "encoder.train.classifier_steps": 1,
    "encoder.train.batch_size": 4,
    "encoder.train.microbatches": 2,
    "encoder.train.warmup_steps": 1,
    "features.patch_sizes": (),
    "features.input_rms": False,
    "features.raw": False,
    "encoder.remat": "none",
    "model.remat": "none",
    "model.scan": False,
    "model.width": 16,
    "model.depth": 1,
    "model.num_heads": 2,
    "model.num_context_tokens": 1,
    "model.num_style_books": 2,
    "drift.temperatures": (0.2,),
    "queue.per_class": 4,
    "queue.unconditional": 8,
    "queue.push_per_step": 8,
    "queue.allow_repeats": True,
    "optim.warmup_steps": 1,
    "train.num_steps": 2,
    "train.labels_per_step": 2,
    "train.generated_per_label": 2,
    "train.positives_per_label": 2,
    "train.unconditional_per_label": 2,
    "train.microbatches": 1,
}
# Of the variants with a U-Net and the features of DINOv2, which keep the blocks' rematerialisation.
SMALL_UNET = {
    "encoder.remat": "block",
    "encoder.dtype": "float32",
    "extra_encoder.kind": "dinov2",
    "pixel_encoders.image_size": 28,
    "model.dtype": "float32",
    "model.width": 8,
    "model.num_heads": 1,
    "model.unet.multipliers": (1,),
    "model.unet.blocks_per_level": 1,
    "model.unet.attention_sides": (),
    "model.unet.groups": 4,
    "train.microbatches": 2,
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def images(root):
    """A folder of a few images."""
    write_imagenet_like(root / "images", per_class=6)
    return root / "images"


@pytest.fixture(scope="module")
def latents(root, images):
    """A folder of their latents."""
    command = ["-m", "drifting_jax.prepare", "latents", f"--source={images}"]
    with start(*command, f"--out={root / 'latents'}", f"--vae={VAE}", "--size=64") as process:
        assert process.wait(300) == 0, process.stderr.read()
    return root / "latents"


@pytest.fixture(scope="module")
def dinov2(root):
    """A folder of a tiny network with random weights."""
    model, rng = DINOv2(width=16, depth=1, num_heads=2), np.random.default_rng(0)
    shapes = param_shapes(model)
    params = jax.tree.map(lambda x: np.float32(rng.normal(0, 0.1, x.shape)), shapes)
    save_network(root / "dinov2", Network("dinov2", model, {"params": params}))
    return root / "dinov2"


@pytest.fixture
def for_recipe(request, tmp_path):
    """Function: config, side -> fields that scale it down, with paths to its data and networks."""

    def fields(config, side):
        found = SMALL | {"data.image_size": side}
        if config.data.latent:
            latents = request.getfixturevalue("latents")
            return found | {"data.path": str(latents), "vae.path": str(VAE)}
        if config.data.source == "images":
            return found | {"data.path": str(request.getfixturevalue("images"))}
        files, _ = cifar_files(config.data.source, binary=True)
        found |= {"data.path": str(write_folder(tmp_path / "cifar", files))}
        # The covariances of 3,072 pixels would take half a minute.
        patch = request.getfixturevalue("monkeypatch")
        patch.setattr(run, "evaluate_run", lambda *_, **__: [])
        if config.model.kind == "unet":
            path = str(request.getfixturevalue("dinov2"))
            found |= SMALL_UNET | {"extra_encoder.path": path}
            if config.data.labels:
                found["model.unet.condition_width"] = 16
            else:
                found["train.labels_per_step"] = 1
        return found

    return fields


@pytest.mark.slow
@pytest.mark.parametrize(("name", "variant", "side"), RECIPES, ids=lambda x: str(x))
def test_a_recipe_runs_end_to_end(name, variant, side, for_recipe, tmp_path):
    given = file_beside(ROOT / "configs" / "any.py", f"{name}.py").get_config
    config = given(variant) if variant else given()
    config.update_from_flattened_dict(for_recipe(config, side))
    workdir = tmp_path / "run"
    assert run.run(resolve(config), workdir=workdir) == 0
    config.train.num_steps = 3
    assert run.run(resolve(config), workdir=workdir) == 0
    lines = list(read_metrics(workdir, stage="generator"))
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(np.isfinite(line["loss"]) for line in lines)
    generator = restore.load_run(workdir)
    last = len(generator.class_names) - 1  # 0 without labels
    made = generator.sample([0, last], [0, 1], seed=0, cfg_scale=1.0)
    assert made.shape == (2, side, side, 3) and made.dtype == np.uint8
    sets = generated_sample_sets(generator, count=12, cfg_scales=[2.0], seeds=[0])
    table = evaluate_images(setup(tmp_path / "out"), sets, title=name, notes=[])
    assert "FID" in str(table) and (tmp_path / "out" / "report.html").exists()
