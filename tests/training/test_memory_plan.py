"""How a step uses the memory of its devices: microbatches, maps and activations that are kept."""

from pathlib import Path

import jax
import pytest
from tiny_run import config

from drifting_jax.compiler import targets
from drifting_jax.compiler.gpus import GPUS
from drifting_jax.config import file_beside
from drifting_jax.config.stored import with_values
from drifting_jax.data.sources import data_spec
from drifting_jax.distributed import meshes
from drifting_jax.errors import UserError
from drifting_jax.models.rematerialisation import POLICIES
from drifting_jax.training import activations, build, frozen, initial_states
from drifting_jax.training.memory_plan import MemoryPlan, memory_plan

CONFIGS = Path(__file__).parents[2] / "configs"


def load(name, variant):
    return file_beside(CONFIGS / "any.py", f"{name}.py").get_config(variant)


def test_microbatches_that_are_left_open_follow_the_devices():
    found = load("imagenet_latent", "L")
    for devices, expected in ((1, 128), (8, 16)):
        mesh = build.make_mesh(found, devices=jax.devices()[:devices])
        assert memory_plan(found, mesh).microbatches == expected
    found.train.microbatches = 3
    with pytest.raises(UserError, match=r"must divide .*labels_per_step; found 3 and 128"):
        memory_plan(found, mesh)
    few = config(train__labels_per_step=10, train__microbatches=0, train__generated_per_label=3)
    with pytest.raises(UserError, match="does not fit the devices"):
        memory_plan(few, meshes.make_mesh(4, 2))


@pytest.mark.parametrize(
    ("name", "held", "microbatches", "keeps"),
    [
        ("h100", 5, 16, "yes"),  # 53 of 79 GiB are usable; the maps take 26 of them
        ("h100", 30, 16, "host"),
        ("h100", 60, 64, "host"),
        ("h200", 5, 8, "yes"),
        ("a100", 5, 16, "host"),
        ("", 5, 64, "no"),
    ],
)
def test_the_memory_of_a_gpu_gives_the_plan(monkeypatch, name, held, microbatches, keeps):
    found = load("imagenet_latent", "ablation")
    mesh = build.make_mesh(found, devices=jax.devices()[:1])
    monkeypatch.setattr(targets, "gpu_of", lambda _: GPUS.get(name))
    plan = memory_plan(found, mesh, held=held * 2**30, maps=int(2.91 * 2**20))
    assert (plan.microbatches, plan.keep_maps) == (microbatches, keeps)


@pytest.mark.parametrize(
    ("least", "expected"),
    [
        (65, (16, "yes")),  # MiB; no more than ten times the maps of a sample and its row
        (130, (32, "yes")),
        (400, (64, "host")),  # 64 samples take 25 GiB: 26 more for the maps are too much
    ],
)
def test_what_encoders_of_pixels_keep_counts(monkeypatch, least, expected):
    found = load("imagenet_latent", "ablation")
    mesh = build.make_mesh(found, devices=jax.devices()[:1])
    monkeypatch.setattr(targets, "gpu_of", lambda _: GPUS["h100"])
    maps = int(2.91 * 2**20)
    plan = memory_plan(found, mesh, held=5 * 2**30, maps=maps, least=least * 2**20)
    assert (plan.microbatches, plan.keep_maps) == expected


@pytest.mark.parametrize(
    ("held", "expected"), [(0, "none"), (25, "none"), (35, "dots"), (45, "block"), (60, "block")]
)
def test_blocks_keep_what_fits(monkeypatch, held, expected):
    """64 samples at once on an H100 of 53 usable GiB, each with ten times 20 MiB for its maps."""
    found = config(train__labels_per_step=1, train__generated_per_label=64)
    mesh = build.make_mesh(found, devices=jax.devices()[:1])
    monkeypatch.setattr(targets, "gpu_of", lambda _: GPUS["h100"])
    sizes = {"none": 200 * 2**20, "dots": 60 * 2**20}
    plan = memory_plan(
        found, mesh, held=held * 2**30, maps=20 * 2**20, activations=sizes.__getitem__
    )
    assert plan.remat == expected


@pytest.mark.parametrize(("loss", "expected"), [(0, 1), (20, 1), (30, 2), (200, 2)])
def test_the_loss_of_a_single_row_counts(monkeypatch, loss, expected):
    """640 samples of 40 MiB, of an H100's 53 GiB: 25 beside the loss of all pairs.

    Of two microbatches neither holds them while the loss is computed.
    """
    large = {"train__microbatches": 0, "queue__allow_repeats": True}
    found = config(train__labels_per_step=1, train__generated_per_label=640,
                   train__positives_per_label=640, train__unconditional_per_label=0,
                   **large)  # fmt: skip
    mesh = build.make_mesh(found, devices=jax.devices()[:1])
    monkeypatch.setattr(targets, "gpu_of", lambda _: GPUS["h100"])
    given = {"maps": 2**20, "least": 40 * 2**20, "loss": loss * 2**30}
    plan = memory_plan(found, mesh, **given)
    assert (plan.microbatches, plan.parts_of_rows) == (expected, expected)
    rows = config(train__labels_per_step=2, train__generated_per_label=320,
                  train__positives_per_label=320, **large)  # fmt: skip
    assert memory_plan(rows, mesh, **given) == memory_plan(rows, mesh, **given | {"loss": 0})


def test_a_policy_keeps_fewer_activations_than_the_one_before_it():
    found = config()
    spec = data_spec(found.data)
    state = jax.eval_shape(lambda: initial_states.init_generator(found, spec))
    variables = frozen.variables_shapes(found, spec, {}, None)
    kept = activations.kept_activations(found, spec, state.params, variables)
    none, dots, block = (kept(policy) for policy in POLICIES)
    assert none > 1.5 * dots > 1.5 * block > 0
    generator_alone = with_values(found, {"encoder.remat": "none"})
    alone = activations.kept_activations(generator_alone, spec, state.params, variables)
    assert 0 < alone("block") < block
    nothing = activations.with_remat(found, "none")
    assert activations.kept_activations(nothing, spec, state.params, variables)("none") == 0


def test_a_configured_plan_is_kept(monkeypatch):
    found = load("imagenet_latent", "ablation")
    mesh = build.make_mesh(found, devices=jax.devices()[:1])
    monkeypatch.setattr(targets, "gpu_of", lambda _: GPUS["h100"])
    found.train.microbatches = 32
    for choice, keeps in (("auto", "yes"), ("no", "no"), ("host", "host"), ("yes", "yes")):
        found.train.keep_maps = choice
        assert memory_plan(found, mesh, held=0, maps=2**21) == MemoryPlan(32, keeps)
