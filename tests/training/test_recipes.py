"""The configs for images on disk, scaled down: trained, resumed, sampled and evaluated."""

from pathlib import Path

import numpy as np
import pytest
from imagenet_like import write_imagenet_like
from measuring import setup
from tiny_run import start

from drifting_jax.config import file_beside, resolve
from drifting_jax.evaluation.image_evaluation import evaluate_images
from drifting_jax.evaluation.setup import generated_sample_sets
from drifting_jax.training import restore, run
from drifting_jax.workdir.metrics import read_metrics

ROOT = Path(__file__).parents[2]
VAE = ROOT / "tests" / "fixtures" / "torch" / "vae"
RECIPES = [
    ("imagenet64_latent", "", 64),
    ("imagenet_latent", "one_gpu", 64),
    ("imagenet512_latent", "B", 64),
    ("images", "128", 32),
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


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Folders of a few images and of their latents: {whether latent: path}."""
    root = tmp_path_factory.mktemp("data")
    write_imagenet_like(root / "images", per_class=6)
    command = ["-m", "drifting_jax.prepare", "latents", f"--source={root / 'images'}"]
    with start(*command, f"--out={root / 'latents'}", f"--vae={VAE}", "--size=64") as process:
        assert process.wait(300) == 0, process.stderr.read()
    return {True: root / "latents", False: root / "images"}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "variant", "side"), RECIPES, ids=lambda x: str(x))
def test_a_recipe_runs_end_to_end(name, variant, side, data, tmp_path):
    given = file_beside(ROOT / "configs" / "any.py", f"{name}.py").get_config
    config = given(variant) if variant else given()
    small = {"data.path": str(data[config.data.latent]), "data.image_size": side}
    if config.data.latent:
        small["vae.path"] = str(VAE)
    config.update_from_flattened_dict(SMALL | small)
    workdir = tmp_path / "run"
    assert run.run(resolve(config), workdir=workdir) == 0
    config.train.num_steps = 3
    assert run.run(resolve(config), workdir=workdir) == 0
    steps = [line["step"] for line in read_metrics(workdir, stage="generator")]
    assert steps == [1, 2, 3]
    generator = restore.load_run(workdir)
    made = generator.sample(np.array([0, 1]), np.array([0, 0]), seed=0, cfg_scale=1.0)
    assert made.shape == (2, side, side, 3) and made.dtype == np.uint8
    sets = generated_sample_sets(generator, count=12, cfg_scales=[2.0], seeds=[0])
    table = evaluate_images(setup(tmp_path / "out"), sets, title=name, notes=[])
    assert "FID" in str(table) and (tmp_path / "out" / "report.html").exists()
