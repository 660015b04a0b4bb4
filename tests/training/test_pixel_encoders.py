"""Frozen encoders of pixels: which a config has, how they see images, what their losses weigh."""

from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_images_config
import tiny_run
from PIL import Image

from drifting_jax.config import base_config, load_config, resolve
from drifting_jax.data.sources import DataSpec
from drifting_jax.distributed import meshes
from drifting_jax.errors import UserError
from drifting_jax.models.convnext import ConvNeXtV2
from drifting_jax.models.dinov2 import DINOv2
from drifting_jax.models.resnet import ResNet
from drifting_jax.training import activations, build, frozen, pixel_encoders, run
from drifting_jax.training.encoding import load_features
from drifting_jax.weights.networks import Network, save_network
from drifting_jax.weights.shapes import param_shapes
from drifting_jax.workdir.metrics import read_metrics

FIXTURES = Path(__file__).parents[1] / "fixtures" / "torch"
COLOUR = DataSpec((32, 32, 3), 10)
SMALL = DINOv2(width=16, depth=3, num_heads=2, patch_size=4, position_grid=3)
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def config(**changes):
    """A config of the CIFAR-10 recipe of one encoder of pixels, without an autoencoder."""
    found = base_config("generator")
    fields = {"data.source": "cifar10", "encoder.kind": "none", "features.joint_scale": True}
    fields |= {name.replace("__", "."): value for name, value in changes.items()}
    found.update_from_flattened_dict(fields)
    return resolve(found)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Folders of tiny networks with random weights."""
    folders, rng = SimpleNamespace(), np.random.default_rng(0)
    for kind, model in (
        ("dinov2", SMALL),
        ("resnet", ResNet(width=2, blocks=(2, 1), every_k_block=0)),
        ("convnext", ConvNeXtV2(depths=(1, 1), widths=(4, 8), image_size=32)),
    ):
        shapes = param_shapes(model)
        params = jax.tree.map(lambda x: np.float32(rng.uniform(0.1, 0.5, x.shape)), shapes)
        path = tmp_path_factory.mktemp("weights") / kind
        save_network(path, Network(kind, model, {"params": params}))
        setattr(folders, kind, str(path))
    return folders


def shapes(found, spec=COLOUR):
    """{feature: (t, d)}; nothing is computed."""
    extras, vae = frozen.expected_networks(found)
    variables = frozen.variables_shapes(found, spec, extras, vae)
    function = build.make_feature_function(found, spec, extras=extras, vae=vae)
    features = jax.eval_shape(function, variables, activations.sample_of(spec, 2))
    assert all(x.dtype == jnp.float32 for x in features.values())
    return {name: x.shape[1:] for name, x in features.items()}


def test_one_feature_of_all_statistics_of_dinov2():
    """256 locations, and means and stds: global, over 8x8 and over 4x4 squares."""
    found = config(extra_encoder__kind="dinov2_b", features__total="mean")
    statistics, of_config = 256 + 2 + 2 * 64 + 2 * 16, shapes(found)
    assert of_config == {
        "dinov2_b/final/joint": (statistics, 768),
        "input/rms": (1, 3),
        "raw": (1, 32 * 32 * 3),
    }
    weights = pixel_encoders.feature_weights(found, of_config)
    np.testing.assert_allclose(list(weights.values()), 1 / 3)


def test_encoders_of_a_list_have_names_and_weights(small):
    found = config(
        features__joint_scale=False,
        features__patch_sizes=(),
        features__raw_weight=0.5,
        encoder__kind="autoencoder",
        encoder__weight=2.0,
        extra_encoder__kind="resnet",
        extra_encoder__path=small.resnet,
        pixel_encoders__kinds=("simclr", "resnet"),
        pixel_encoders__paths=(small.resnet, small.resnet),
        pixel_encoders__weights=(3, 0.25),
    )
    assert [(x.name, x.weight) for x in pixel_encoders.choices(found)] == [
        ("resnet", 1.0),
        ("simclr", 3.0),
        ("resnet_2", 0.25),
    ]
    expected = {"raw": 0.5, "resnet": 1.0, "simclr": 3.0, "resnet_2": 0.25}
    names = list(shapes(found))
    by_name = pixel_encoders.feature_weights(found, names)
    assert by_name == {name: expected.get(name.partition("/")[0], 2.0) for name in by_name}
    # Of each ResNet the locations, mean and std of the stem and of two stages.
    own = len(by_name) - 3 * 9 - 1
    assert own > 3
    for total in ("mean", "mean_of_encoders"):
        found.features.total = total
        normalised = pixel_encoders.feature_weights(found, names)
        assert sum(normalised.values()) == pytest.approx(1)
        shares = {name: sum(x for n, x in normalised.items() if n.startswith(f"{name}/"))
                  for name in ("simclr", "resnet_2")}  # fmt: skip
        assert shares["simclr"] / shares["resnet_2"] == pytest.approx(12)
        raw = 0.5 / (6.75 if total == "mean_of_encoders" else 0.5 + 2 * own + 9 * 4.25)
        assert normalised["raw"] == pytest.approx(raw)
    extras, _ = frozen.expected_networks(found)
    assert [extras[name].normalize for name in extras] == [True, False, True]


def test_a_statistic_has_a_feature_of_its_own_unless_they_are_joined(small):
    one = {
        "extra_encoder__kind": "convnext",
        "extra_encoder__path": small.convnext,
        "pixel_encoders__image_size": 32,
    }
    apart, joint = shapes(config(**one, features__joint_scale=False)), shapes(config(**one))
    assert joint["convnext/stage2/joint"] == (4 * 4 + 2, 8)
    assert joint["convnext/stage1/joint"] == (2, 4) and joint["convnext/pooled"] == (1, 8)
    joined = sum(t for t, _ in joint.values())
    assert joined == sum(t for t, _ in apart.values()) - 1  # last/std does not come twice
    assert not any(name.startswith("convnext/last") for name in joint)


@pytest.mark.parametrize(
    ("kind", "changes", "fields"),
    [
        ("dinov2", {}, {"image_size": 224, "resize": "bicubic"}),
        ("dinov2", {"resize": "bicubic_plain"}, {"image_size": 224, "resize": "bicubic_plain"}),
        ("resnet", {"image_size": 96}, {"image_size": 96, "normalize": True}),
        ("convnext", {}, {"image_size": 32, "resize": "linear"}),
        ("convnext", {"image_size": 64}, {"image_size": 64, "resize": "linear"}),
        ("simclr", {"resize": "linear"}, {"resize": "linear", "normalize": False}),
    ],
)
def test_how_encoders_see_images(small, kind, changes, fields):
    changes = {f"pixel_encoders__{name}": value for name, value in changes.items()}
    path = getattr(small, "resnet" if kind == "simclr" else kind)
    found = config(extra_encoder__kind=kind, extra_encoder__path=path, **changes)
    extras, _ = frozen.expected_networks(found)
    assert {name: getattr(extras[kind], name) for name in fields} == fields


def test_features_of_published_weights_equal_the_reference():
    """From pixels to patch tokens, by a config: transformers' numbers of a tiny DINOv2."""
    arrays = np.load(FIXTURES / "dinov2" / "io.npz")
    pixels = arrays["case0_56x56/pixel_values"].transpose(0, 2, 3, 1)
    images = np.float32((pixels * STD + MEAN) * 2 - 1)
    found = config(
        extra_encoder__kind="dinov2",
        extra_encoder__path=str(FIXTURES / "dinov2"),
        pixel_encoders__image_size=56,
        features__joint_scale=False,
    )
    function, variables = load_features(found, DataSpec((56, 56, 3), 10), meshes.make_mesh(1, 1))
    features = jax.jit(function)(variables, images)
    expected = arrays["case0_56x56/patch_tokens_f64"]
    np.testing.assert_allclose(
        features["dinov2/final"], expected, atol=2e-5 * np.abs(expected).max()
    )
    grid = expected.reshape(2, 2, 2, 2, 2, -1)
    means = grid.mean((2, 4)).reshape(2, 4, -1)
    np.testing.assert_allclose(features["dinov2/final/mean_2x2"], means, atol=1e-4)
    stds = grid.std((2, 4)).reshape(2, 4, -1)
    np.testing.assert_allclose(features["dinov2/final/std_2x2"], stds, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": "none"}, "nothing is there|there is no|neither"),
        ({"kind": "dinov2_b"}, r"holds another dinov2: expected width 768, depth 12, num_heads 12; "
         "found width 16, depth 3, num_heads 2"),
        ({"kind": "resnet"}, "holds a network of the kind 'dinov2'; expected 'resnet'"),
        ({"image_size": 30}, r"image_size does not fit dinov2: patch_size 4 .* found 30x30"),
        ({"path": ""}, r"config\.extra_encoder\.path must say where its weights are"),
        ({"spec": DataSpec((8, 8, 2), 10)}, r"dinov2 sees colour images, or grey ones as colours: "
         "expected 1 or 3 channels; cifar10 has 2"),
        ({"paths": ("",)}, r"pixel_encoders\.paths must hold strings"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line_before_training(small, changes, message, tmp_path):
    given = {"kind": "dinov2", "path": small.dinov2, "image_size": 12, "spec": COLOUR} | changes
    path = str(tmp_path / given["path"]) if given["path"] == "none" else given["path"]
    with pytest.raises(UserError, match=message) as caught:
        found = config(
            extra_encoder__kind=given["kind"],
            extra_encoder__path=path,
            pixel_encoders__image_size=given["image_size"],
            pixel_encoders__kinds=("dinov2",) * len(given.get("paths", ())),
            pixel_encoders__paths=given.get("paths", ()),
        )
        frozen.load_pretrained(found, given["spec"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["dinov2", "resnet", "simclr", "convnext"])
def test_grey_images_have_the_features_of_three_equal_channels(small, kind):
    """And the gradient of a grey value is the sum of those of the three values that it gives."""
    found = config(
        extra_encoder__kind=kind,
        extra_encoder__path=getattr(small, "resnet" if kind == "simclr" else kind),
        pixel_encoders__image_size=32,
        features__raw=False,
        features__input_rms=False,
    )
    grey = np.random.default_rng(3).uniform(-1, 1, (2, 28, 28, 1)).astype(np.float32)

    def of(spec, images):
        function, variables = load_features(found, spec, meshes.make_mesh(1, 1))

        def number(images):
            features = function(variables, images)
            return sum(jnp.mean(jnp.sin(x)) for x in features.values()), features

        (_, features), gradient = jax.jit(jax.value_and_grad(number, has_aux=True))(images)
        return features, gradient

    features, gradient = of(DataSpec((28, 28, 1), 10), grey)
    expected, of_three = of(DataSpec((28, 28, 3), 10), np.repeat(grey, 3, axis=-1))
    assert set(features) == set(expected)
    for name, x in expected.items():
        np.testing.assert_allclose(features[name], x, rtol=1e-5, atol=1e-5, err_msg=name)
    assert gradient.shape == grey.shape and (gradient != 0).any()
    summed = np.sum(of_three, axis=-1, keepdims=True)
    np.testing.assert_allclose(gradient, summed, atol=1e-5 * np.abs(summed).max())


def test_unknown_kinds_of_a_list_are_named():
    found = config(pixel_encoders__kinds=("dino",), pixel_encoders__paths=("a",))
    with pytest.raises(UserError, match=r"kinds must be one of .*'dinov2_b'.*; found 'dino'"):
        build.check_choices(found)


def test_weights_that_are_here_give_the_sizes_of_a_dry_run(small):
    found = config(extra_encoder__kind="dinov2", extra_encoder__path=small.dinov2,
                   pixel_encoders__image_size=12)  # fmt: skip
    extras, _ = frozen.expected_networks(found)
    assert extras["dinov2"].width == 16
    assert shapes(found)["dinov2/final/joint"] == (9 + 2, 16)


def of_dinov2(small, policy):
    """A number of the features of images of 32x32, which a tiny DINOv2 sees with a side of 48."""
    found = config(
        extra_encoder__kind="dinov2",
        extra_encoder__path=small.dinov2,
        pixel_encoders__image_size=48,
        pixel_encoders__resize="bicubic_plain",
        features__raw=False,
        features__input_rms=False,
        encoder__remat=policy,
    )
    function, variables = load_features(found, COLOUR, meshes.make_mesh(1, 1))
    weights = np.random.default_rng(1).normal(size=(1, 144 + 2 * (1 + 36 + 9), 16))

    def number(images):
        return jnp.mean(function(variables, images)["dinov2/final/joint"] * np.float32(weights))

    return jax.jit(jax.value_and_grad(number))


def test_gradients_reach_the_pixels(small):
    """They are those of finite differences, and the same where blocks are computed again."""
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (1, 32, 32, 3)).astype(np.float32)
    of_images = of_dinov2(small, "none")
    value, gradient = of_images(images)
    same, again = of_dinov2(small, "block")(images)
    np.testing.assert_allclose(value, same, rtol=1e-5)
    np.testing.assert_allclose(gradient, again, rtol=1e-4, atol=1e-5 * np.abs(gradient).max())
    assert (gradient != 0).all()
    size = np.linalg.norm(gradient)
    for direction in (gradient / size, *rng.normal(size=(2, *images.shape)) / 32):
        step = np.float32(0.02 * direction)
        change = float(of_images(images + step)[0]) - float(of_images(images - step)[0])
        wanted = 0.04 * np.sum(gradient * direction)
        assert abs(change - wanted) < 0.02 * 0.04 * size, (change, wanted)


@pytest.mark.parametrize("kind", ["dinov2", "resnet"])
def test_what_encoders_keep_falls_with_rematerialisation(small, kind):
    least = {}
    for policy in ("auto", "none", "block"):
        found = config(
            extra_encoder__kind=kind,
            extra_encoder__path=getattr(small, kind),
            pixel_encoders__image_size=32,
            encoder__remat=policy,
        )
        extras, vae = frozen.expected_networks(found)
        variables = frozen.variables_shapes(found, COLOUR, extras, vae)
        least[policy] = activations.least_of_pixels(found, COLOUR, variables, extras=extras)
    assert 0 < least["block"] == least["auto"] < least["none"]


@pytest.mark.slow
def test_a_run_trains_in_the_features_of_pixel_encoders_alone(small, tmp_path):
    rng = np.random.default_rng(0)
    for number in range(36):
        folder = tmp_path / "images" / "abc"[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (9, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    found = tiny_images_config.get_config()
    found.data.path = str(tmp_path / "images")
    found.encoder.kind = "none"
    found.extra_encoder.kind, found.extra_encoder.path = "dinov2", small.dinov2
    found.pixel_encoders.kinds, found.pixel_encoders.paths = ("simclr",), (small.resnet,)
    found.pixel_encoders.weights = (0.5,)
    found.pixel_encoders.image_size = 32
    found.pixel_encoders.resize = "bicubic_plain"
    found.features.joint_scale = True
    found.features.total = "mean"
    found.features.raw_weight = 0.25
    found.train.num_steps, found.train.microbatches = 8, 3
    assert run.run(resolve(found), workdir=tmp_path / "run") == 0
    lines = list(read_metrics(tmp_path / "run", stage="generator"))
    assert lines[-1]["step"] == 8 and all(np.isfinite(line["loss"]) for line in lines)
    for feature in ("dinov2/final/joint", "simclr/stage1/joint", "input/rms", "raw"):
        assert lines[-1][f"drift/{feature}/0.2"] > 0
    assert not (tmp_path / "run" / "encoder").exists()
    assert load_config(tmp_path / "run").pixel_encoders.paths == (small.resnet,)


@pytest.mark.slow
def test_a_run_on_grey_images_trains_in_the_features_of_a_pixel_encoder(small, tmp_path):
    found = tiny_run.config(
        encoder__kind="none",
        extra_encoder__kind="dinov2",
        extra_encoder__path=small.dinov2,
        pixel_encoders__image_size=16,
        features__joint_scale=True,
        train__num_steps=3,
        eval__every=0,
        log_every=1,
    )
    assert run.run(found, workdir=tmp_path / "run") == 0
    last = list(read_metrics(tmp_path / "run", stage="generator"))[-1]
    assert last["step"] == 3 and np.isfinite(last["loss"])
    assert last["drift/dinov2/final/joint/0.2"] > 0 and last["drift/raw/0.2"] > 0
    with np.load(tmp_path / "run" / "samples" / "final.npz") as samples:
        assert samples["arr_0"].shape == (80, 8, 8, 1)
