"""A run with a U-Net from its start to a sampler without this package; its fields and shardings."""

import jax
import jax.export
import numpy as np
import pytest
import tiny_run

from drifting_jax.commands.exporting import export_generator
from drifting_jax.commands.hub_folder import write_hub_folder
from drifting_jax.config import base_config, resolve
from drifting_jax.config.defaults import FSDP_RULES
from drifting_jax.data.sources import DataSpec
from drifting_jax.distributed import meshes
from drifting_jax.errors import UserError
from drifting_jax.models.unet import UNet
from drifting_jax.training import build, run
from drifting_jax.training.restore import load_generator, load_run
from drifting_jax.weights.shapes import param_shapes

TINY = {
    "model__kind": "unet",
    "model__patch_size": 1,
    "model__width": 8,
    "model__unet__multipliers": (1, 2),
    "model__unet__blocks_per_level": 1,
    "model__unet__attention_sides": (4,),
    "model__unet__groups": 4,
    "model__unet__dropout": 0.2,
    "model__unet__condition_width": 16,
    "encoder__train__num_steps": 12,
    "encoder__train__classifier_steps": 4,
    "optim__warmup_steps": 2,
    "eval__every": 0,
}


def config(**changes):
    return tiny_run.config(**TINY | changes)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The workdir of a run of 4 steps that went on to 6, and was evaluated."""
    workdir = tmp_path_factory.mktemp("runs") / "resumed"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "evaluate_run", lambda *_, **__: [])
        assert run.run(config(train__num_steps=4), workdir=workdir) == 0
    assert run.run(config(train__num_steps=6), workdir=workdir) == 0
    return workdir


@pytest.mark.slow
def test_a_run_goes_on_with_the_bits_of_one_that_did_not_stop(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "evaluate_run", lambda *_, **__: [])
    whole = config(train__num_steps=6, encoder__path=str(trained))
    assert run.run(whole, workdir=tmp_path / "whole") == 0
    found, expected = load_run(trained), load_run(tmp_path / "whole")
    assert found.step == expected.step == 6
    jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)
    assert (trained / "evaluation.json").is_file() and (trained / "report.html").is_file()
    with np.load(trained / "samples" / "final.npz") as samples:
        assert samples["arr_0"].shape == (80, 8, 8, 1) and len(np.unique(samples["arr_0"])) > 2


@pytest.mark.slow
def test_a_trained_run_goes_to_the_hub_and_out_of_this_package(trained, tmp_path):
    generator = load_run(trained)
    labels, indices = np.int32([3, 3, 7, 0]), np.int32([0, 1, 0, 5])
    images = generator.sample(labels, indices, seed=1, cfg_scale=1.5)
    assert len({image.tobytes() for image in images}) == 4
    write_hub_folder(tmp_path / "hub", generator, workdir=trained, license_name="")
    card = (tmp_path / "hub" / "README.md").read_text()
    assert "| `model.unet.multipliers` | (1, 2) |" in card and "model.depth" not in card
    again = load_generator(str(tmp_path / "hub"))
    assert again.model == generator.model
    jax.tree.map(np.testing.assert_array_equal, again.params, generator.params)

    assert export_generator(generator, tmp_path / "exported") == []  # no note: ONNX goes too
    program = (tmp_path / "exported" / "sampler.jax").read_bytes()
    sampler = jax.export.deserialize(bytearray(program))
    with np.load(tmp_path / "exported" / "weights.npz") as weights:
        given = (dict(weights), labels, indices, np.uint32(1), np.float32(1.5))
        found, finite = sampler.call(*given)
    assert finite.all()
    np.testing.assert_array_equal(found, images)


def test_rules_split_every_large_parameter():
    """Of the setting of 32.9 million, its kernels along their output channels."""
    model = UNet(
        image_size=32, in_channels=3, out_channels=3, patch_size=1, width=128, num_heads=1,
        num_classes=10,
    )  # fmt: skip
    shapes = param_shapes(model)
    mesh = meshes.make_mesh(2, 4)
    shardings = meshes.sharding_for_tree(shapes, mesh, FSDP_RULES)
    for shape, sharding in zip(jax.tree.leaves(shapes), jax.tree.leaves(shardings), strict=True):
        if shape.ndim == 4 and shape.shape[-1] > 3:
            assert sharding.shard_shape(shape.shape)[-1] == shape.shape[-1] // 4
        if shape.size >= meshes.LARGE:
            assert not sharding.is_fully_replicated


def test_a_network_without_a_condition_needs_a_run_without_guidance():
    alone = {"model__unet__condition_width": 0, "model__styles_per_book": 0}
    one_class = DataSpec((8, 8, 1), 1)
    message = r"knows no guidance scale: set config.guidance.maximum to 1, .* maximum of 4"
    with pytest.raises(UserError, match=message):
        build.check_models(config(**alone), one_class)
    found = config(**alone, guidance__maximum=1.0)
    build.check_models(found, one_class)
    with pytest.raises(UserError, match=r"config\.model does not fit .*one class; found 10"):
        build.check_models(found, DataSpec((8, 8, 1), 10))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__scan": True}, r"model\.scan needs blocks that are all alike"),
        ({"model__unet__attention_sides": (16,)}, r"attention_sides .* 8, 4; found \(16,\)"),
        ({"model__unet__groups": 3}, "groups must divide the 8 channels"),
    ],
)
def test_fields_that_do_not_fit_are_named(changes, message):
    with pytest.raises(UserError, match=message):
        build.check_models(config(**changes), DataSpec((8, 8, 1), 10))


def test_the_section_gives_the_network():
    found = base_config("generator")
    found.model.kind, found.model.patch_size, found.model.num_heads = "unet", 1, 1
    found.model.unet.dropout = 0.1
    model = build.make_generator(resolve(found), DataSpec((32, 32, 3), 10))
    assert isinstance(model, UNet)
    assert (model.width, model.multipliers, model.blocks_per_level) == (128, (1, 2, 2, 2), 2)
    assert (model.attention_sides, model.groups, model.dropout) == ((16,), 32, 0.1)
    assert (model.condition_width, model.num_style_books, model.styles_per_book) == (512, 8, 16)
