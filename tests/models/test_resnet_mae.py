"""The feature encoder against the reference numbers, its parameter counts and its properties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import read_release
import release_names
from flax.traverse_util import flatten_dict

from drifting_jax.compiler.flops import product_flops
from drifting_jax.method.features import multiscale_features
from drifting_jax.models import layers
from drifting_jax.models.rematerialisation import POLICIES
from drifting_jax.models.resnet_mae import Reconstruction, ResNetMAE, draw_mask, mae_loss

LOSSES = ("loss_lam0", "loss_lam0.1", "loss_lam0.1_ratio_range")


@pytest.fixture(params=["latent", "pixel"], scope="module")
def reference(request):
    """Arrays of a released masked autoencoder, our model with its settings, its parameters."""
    name = f"D_mae_{request.param}.npz"
    arrays = read_release.load(name)
    config = read_release.meta(arrays, "config")
    model = ResNetMAE(
        in_channels=config["in_channels"],
        width=config["base_channels"],
        blocks=tuple(config["layers"]),
        input_patch_size=config["input_patch_size"],
        mask_patch_size=config["patch_size"],
        num_classes=config["num_classes"],
    )
    params = release_names.encoder_params(read_release.load_params(name))
    return arrays, model, jax.tree.map(jnp.asarray, params)


def _assert_near(ours, expected, tolerance=1e-4, name=""):
    """Equal to `tolerance` relative to the largest expected magnitude."""
    error = np.abs(np.asarray(ours, np.float64) - expected).max() / np.abs(expected).max()
    assert error <= tolerance, (name, error)


def test_parameters_are_the_references(reference):
    arrays, model, params = reference
    shapes = jax.eval_shape(
        model.init, jax.random.key(0), read_release.load_x(arrays), arrays["loss_lam0/mask"]
    )["params"]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)


def test_maps_equal_the_reference(reference):
    arrays, model, params = reference
    images = read_release.load_x(arrays)
    maps = jax.jit(lambda p, x: model.apply({"params": p}, x, method=ResNetMAE.feature_maps))(
        params, images
    )
    pooled = ("_mean", "_std", "norm_x")
    keys = [k[4:] for k in arrays.files if k.startswith("act/")]
    keys = [k for k in keys if not any(part in k for part in pooled)]
    assert {release_names.map_name(k) for k in keys} | {"input"} == set(maps)
    for key in keys:
        ours = np.asarray(maps[release_names.map_name(key)])
        ours = ours.reshape(len(images), -1, ours.shape[-1])
        _assert_near(ours, arrays[f"act/{key}"], tolerance=2e-5, name=key)
    mean_square = np.square(maps["input"]).mean((1, 2))[:, None]
    _assert_near(np.sqrt(mean_square + 1e-6), arrays["act/norm_x"], tolerance=1e-6)


def test_bfloat16_is_as_close_to_the_reference_as_that_is_to_its_float32(reference):
    arrays, model, params = reference
    model = model.clone(dtype=jnp.bfloat16)

    @jax.jit
    def run(params, images):
        maps = model.apply({"params": params}, images, method=ResNetMAE.feature_maps)
        return multiscale_features(maps, patch_sizes=())

    found = run(params, read_release.load_x(arrays))
    assert found["stage2"].dtype == jnp.bfloat16 and found["stage2/std"].dtype == jnp.float32
    keys = [k[9:] for k in arrays.files if k.startswith("act_bf16/") and k != "act_bf16/norm_x"]
    assert len(keys) > 12

    def root_mean_square(x):
        return np.sqrt(np.mean(np.square(np.asarray(x, np.float64))))

    for key in keys:
        name = release_names.map_name(key.replace("_mean", "/mean").replace("_std", "/std"))
        name = name.replace("conv1/", "stem/")
        if key == "layer4_std" and name not in found:
            continue  # the std of a single location is a constant
        expected = np.asarray(arrays[f"act_bf16/{key}"], np.float32)
        error = root_mean_square(np.asarray(found[name], np.float32) - expected)
        own = root_mean_square(expected - arrays[f"act/{key}"])
        assert error < 1.6 * own + 1e-3 * np.abs(expected).max(), (key, error, own)


def test_losses_and_gradients_equal_the_reference(reference):
    arrays, model, params = reference
    images, labels = read_release.load_x(arrays), arrays["in/labels"]
    patches = layers.patchify(images, model.input_patch_size)

    def loss_function(params, mask, weight):
        output = model.apply({"params": params}, images, mask)
        loss = mae_loss(output, patches, mask, labels, classification_weight=weight)
        return loss.total.mean(), (output, loss)

    value_and_grad = jax.jit(jax.value_and_grad(loss_function, has_aux=True))
    for tag in LOSSES:
        mask, weight = arrays[f"{tag}/mask"], float(arrays[f"{tag}/lambda_cls"])
        (_, (output, loss)), gradients = value_and_grad(params, mask, weight)
        ours = {
            "loss": loss.total,
            "recon_loss": loss.reconstruction,
            "cls_loss": loss.classification,
            "logits": output.logits,
            "recon": output.patches,
        }
        for key, value in ours.items():
            if f"{tag}/{key}" in arrays:
                _assert_near(value, arrays[f"{tag}/{key}"], tolerance=2e-5, name=(tag, key))
        gradients = flatten_dict(gradients, sep="/")
        paths = read_release.meta(arrays, f"{tag}/grad_norm_paths")
        norms = [np.linalg.norm(gradients[release_names.encoder_name(path)]) for path in paths]
        np.testing.assert_allclose(norms, arrays[f"{tag}/grad_norms"], rtol=1e-4, atol=1e-6)
        for path in ("encoder/conv1/kernel", "decoder/head/kernel"):
            if f"{tag}/grad/{path}" in arrays:
                expected = arrays[f"{tag}/grad/{path}"]  # only of the first input channels
                ours = gradients[release_names.encoder_name(path)][:, :, : expected.shape[2]]
                _assert_near(ours, expected, name=(tag, path))


def test_masks_equal_the_reference(reference):
    """The same distribution, and with the reference's key implementation the same bits."""
    arrays, model, _ = reference
    for tag in LOSSES:
        expected = arrays[f"{tag}/mask"]
        low, high = (float(ratio) for ratio in arrays[f"{tag}/mask_ratio_min_max"])
        with jax.threefry_partitionable(False):
            key = jax.random.wrap_key_data(jnp.asarray(arrays[f"{tag}/make_rng_key"]))
            mask = draw_mask(
                key,
                *expected.shape,
                mask_patch_size=model.mask_patch_size,
                ratio_min=low,
                ratio_max=high,
            )
        np.testing.assert_array_equal(mask, expected, err_msg=tag)


def test_mask_law():
    def draw(key):
        return draw_mask(key, 4000, 8, 6, mask_patch_size=2, ratio_min=0.2, ratio_max=0.8)

    mask = np.asarray(jax.jit(draw)(jax.random.key(0)))
    squares = mask[:, ::2, ::2]
    np.testing.assert_array_equal(mask, squares.repeat(2, 1).repeat(2, 2))
    assert set(np.unique(mask)) == {0, 1}
    np.testing.assert_allclose(squares.mean(0), 0.5, atol=0.04)
    # Two squares of one image share its ratio: covariance = variance of the ratio, 0.6**2 / 12.
    np.testing.assert_allclose(np.cov(squares[:, 0, 0], squares[:, 2, 1])[0, 1], 0.03, atol=0.015)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mask_patch_size": 3}, "mask_patch_size 3 must divide"),
        ({"mask_patch_size": 2, "ratio_min": 0.8}, "ratio_min <= ratio_max"),
    ],
)
def test_mask_refuses(fields, message):
    with pytest.raises(ValueError, match=message):
        draw_mask(jax.random.key(0), 1, 4, 4, **fields)


@pytest.mark.parametrize(
    ("width", "total", "without_decoder"), [(256, 431, 342), (640, 2688, 2131)]
)
def test_parameter_counts_of_the_paper(width, total, without_decoder):
    """Table 8: 431M at width 256; 2.69B at 640, of which 2.13B are not the decoder's."""
    params = jax.eval_shape(
        ResNetMAE(in_channels=4, width=width, num_classes=1000).init,
        jax.random.key(0),
        jax.ShapeDtypeStruct((1, 32, 32, 4), jnp.float32),
        jax.ShapeDtypeStruct((1, 32, 32), jnp.float32),
    )["params"]
    count = {k: sum(leaf.size for leaf in jax.tree.leaves(v)) / 1e6 for k, v in params.items()}
    assert round(sum(count.values())) == total
    assert round(sum(count.values()) - count["decoder"]) == without_decoder


@pytest.fixture(scope="module")
def tiny():
    model = ResNetMAE(in_channels=1, width=4, num_classes=3, blocks=(1, 3, 1), groups=2)
    images = np.random.default_rng(0).normal(size=(2, 6, 6, 1)).astype(np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images, np.zeros((2, 6, 6)))
    rng = np.random.default_rng(1)
    draw = jax.tree.map(lambda leaf: 0.3 * rng.normal(size=leaf.shape), shapes)
    return model, jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), draw), images


def test_hidden_positions_cannot_be_seen(tiny):
    model, params, images = tiny
    mask = np.zeros((2, 6, 6), bool)
    mask[:, 2:4, :2] = True
    apply = jax.jit(model.apply)
    output = apply(params, images, mask)
    np.testing.assert_array_equal(
        output.patches, apply(params, np.where(mask[..., None], 9, images), mask).patches
    )
    assert np.abs(output.patches - apply(params, images + 1, mask).patches).max() > 1e-3
    assert output.patches.shape == images.shape
    assert output.logits.shape == (2, 3)


def test_map_names_and_shapes_on_a_grid_that_is_not_a_power_of_two(tiny):
    model, params, images = tiny
    shapes = jax.eval_shape(lambda: model.apply(params, images, method=ResNetMAE.feature_maps))
    assert {name: leaf.shape[1:] for name, leaf in shapes.items()} == {
        "input": (6, 6, 1),
        "stem": (6, 6, 4),
        "stage1": (6, 6, 4),
        "stage2_block2": (3, 3, 8),
        "stage2": (3, 3, 8),
        "stage3": (2, 2, 16),
    }
    without = model.clone(every_k_block=0)
    names = jax.eval_shape(lambda: without.apply(params, images, method=ResNetMAE.feature_maps))
    assert set(names) == set(shapes) - {"stage2_block2"}


def test_starts_with_unit_scales_and_he_normal_convolutions():
    model = ResNetMAE(in_channels=2, width=32, num_classes=3, blocks=(1,), groups=2)
    arguments = np.zeros((1, 4, 4, 2), np.float32), np.zeros((1, 4, 4), np.float32)
    params = jax.jit(model.init)(jax.random.key(0), *arguments)["params"]
    block = params["encoder"]["stage1_block1"]["conv2"]
    np.testing.assert_array_equal(block["norm"]["scale"], 1)
    np.testing.assert_allclose(np.std(block["conv"]["kernel"]), np.sqrt(2 / (9 * 32)), rtol=0.05)


def test_feature_maps_need_the_encoders_parameters_alone(tiny):
    model, params, images = tiny
    encoder = {"params": {"encoder": params["params"]["encoder"]}}
    jax.eval_shape(lambda: model.apply(encoder, images, method=ResNetMAE.feature_maps))


def test_loss_by_hand():
    rng = np.random.default_rng(0)
    patches, guess = rng.normal(size=(2, 3, 2, 2, 5)).astype(np.float32)
    logits = rng.normal(size=(3, 4)).astype(np.float32)
    labels = np.array([3, 0, 1], np.int32)
    mask = np.array([[[1, 0], [0, 0]], [[1, 1], [0, 1]], [[0, 0], [0, 0]]], np.float32)
    loss = jax.jit(mae_loss, static_argnames="classification_weight")(
        Reconstruction(guess, logits), patches, mask, labels, classification_weight=0.3
    )
    for i in range(3):
        squared = (guess[i].astype(np.float64) - patches[i]) ** 2
        hidden = mask[i] == 1
        reconstruction = squared[hidden].sum() / max(hidden.sum(), 1)
        exponentials = np.exp(logits[i].astype(np.float64))
        entropy = -np.log(exponentials[labels[i]] / exponentials.sum())
        np.testing.assert_allclose(loss.reconstruction[i], reconstruction, rtol=1e-5)
        np.testing.assert_allclose(loss.classification[i], entropy, rtol=1e-5)
        total = 0.3 * entropy + 0.7 * reconstruction
        np.testing.assert_allclose(loss.total[i], total, rtol=1e-5)


def test_wrong_shapes_are_named(tiny):
    model, params, images = tiny
    with pytest.raises(ValueError, match="mask must have shape"):
        jax.eval_shape(model.apply, params, images, np.zeros((2, 3, 3)))
    with pytest.raises(ValueError, match=r"images must be \[b, h, w, 1\]"):
        jax.eval_shape(model.apply, params, np.zeros((2, 6, 6, 3)), np.zeros((2, 6, 6)))


@pytest.mark.slow
def test_remat_changes_no_gradient():
    model = ResNetMAE(3, 8, 2, (2, 1), groups=4)
    images = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    params = model.init(jax.random.key(1), images, jnp.zeros((2, 8, 8)))["params"]

    def gradient(model):
        def loss(images):
            maps = model.apply({"params": params}, images, method=ResNetMAE.feature_maps)
            return sum(jnp.sum(jnp.square(x)) for x in maps.values())

        return jax.grad(loss)

    plain, *others = (gradient(model.clone(remat=remat)) for remat in POLICIES)
    expected = jax.jit(plain)(images)
    assert "remat" not in str(jax.make_jaxpr(plain)(images))
    for again in others:
        np.testing.assert_allclose(jax.jit(again)(images), expected, rtol=1e-4, atol=1e-4)
        assert str(jax.make_jaxpr(again)(images)).count("remat") >= 3  # one of each block
    products = [product_flops(jax.make_jaxpr(g)(images)) for g in (plain, *others)]
    assert products[0] == products[1] < products[2]  # "dots" computes no convolution again
