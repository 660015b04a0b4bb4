"""Two whole training steps, and the gradient of a third, as the released code made them."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import read_release
import release_names

from drifting_jax.distributed import meshes
from drifting_jax.method import encoders
from drifting_jax.method.fields.options import DriftOptions
from drifting_jax.models.dit import DiT
from drifting_jax.models.resnet_mae import ResNetMAE
from drifting_jax.steps import generator_rows, generator_step, sample_queue
from drifting_jax.steps import state as states
from drifting_jax.steps.generator_settings import GeneratorStepConfig
from drifting_jax.steps.optim import learning_rate_schedule, make_optimizer

RELEASE = Path(__file__).parents[1] / "fixtures" / "release"


def leaves_by_path(tree) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


class GivenInputs:
    """A generator that is fed noise and styles from outside, in place of those drawn."""

    def __init__(self, model: DiT):
        self._model = model

    def __getattr__(self, name):
        return getattr(self._model, name)

    def apply(self, variables, noise, labels, styles, cfg_scale):
        assert self.noise.shape == noise.shape and self.styles.shape == styles.shape
        return self._model.apply(variables, self.noise, labels, self.styles, cfg_scale)


def released_models(figures):
    """The released networks with their parameters."""
    g, e = (read_release.meta(figures, f"{name}_config") for name in ("gen", "mae"))
    generator = DiT(
        image_size=g["input_size"],
        in_channels=g["in_channels"],
        out_channels=g["out_channels"],
        patch_size=g["patch_size"],
        width=g["hidden_size"],
        depth=g["depth"],
        num_heads=g["num_heads"],
        num_classes=g["num_classes"],
        condition_width=g["cond_dim"],
        num_context_tokens=g["n_cls_tokens"],
        num_style_books=g["noise_coords"],
        styles_per_book=g["noise_classes"],
    )
    encoder = ResNetMAE(
        in_channels=e["in_channels"],
        width=e["base_channels"],
        num_classes=e["num_classes"],
        blocks=tuple(e["layers"]),
        input_patch_size=e["input_patch_size"],
    )
    load = read_release.load_params
    params = release_names.generator_params(load(str(RELEASE / "C_generator_latent.npz")))
    frozen = release_names.encoder_params(load(str(RELEASE / "D_mae_latent.npz")))
    return generator, encoder, *jax.tree.map(jnp.asarray, (params, frozen))


def recording(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """The optimizer, with the gradients as they come kept in its state."""
    record = optax.GradientTransformation(lambda params: params, lambda g, s, p=None: (g, g))
    return optax.chain(record, optimizer)


def released_queue(figures, mesh) -> sample_queue.SampleQueue:
    """The positives, as many as a row draws: all of them are drawn, in any order."""
    samples, labels = figures["in/samples"], figures["in/labels"]
    c, p = samples.shape[:2]
    queue = sample_queue.init(
        11, per_class=p, unconditional=3, shape=samples.shape[2:], dtype=jnp.float32, mesh=mesh
    )
    return sample_queue.push(queue, samples.reshape(c * p, 8, 8, 4), labels.repeat(p))


@pytest.mark.slow
def test_steps_equal_the_release(monkeypatch):
    figures = np.load(RELEASE / "F_train_step.npz")
    arguments = read_release.meta(figures, "args")
    generator, encoder, params, frozen = released_models(figures)
    mesh = meshes.make_mesh(1, 1)
    given = {}
    fed = GivenInputs(generator)
    monkeypatch.setattr(generator_rows, "draw_labels", lambda *_: given["labels"])
    monkeypatch.setattr(generator_rows.guidance, "sample_cfg_scale", lambda *_, **__: given["cfg"])
    monkeypatch.setattr(sample_queue, "draw_unconditional", lambda *_, **__: given["negative"])
    rate = arguments["lr_schedule"]
    schedule = learning_rate_schedule(rate["learning_rate"], warmup_steps=rate["warmup_steps"])
    optimizer = recording(
        make_optimizer(schedule, b1=0.9, b2=0.95, weight_decay=0.01, clip_norm=2.0)
    )
    settings = GeneratorStepConfig(
        labels=2,
        generated=4,
        positives=6,
        unconditional=3,
        num_steps=1,
        drift=DriftOptions(temperatures=tuple(arguments["R_list"])),
        cfg_minimum=1.0,
        cfg_maximum=4.0,
        cfg_power=3.0,
        cfg_probability_of_one=0.0,
        ema_decays=(0.9,),
    )

    feature_function = encoders.with_raw(encoders.autoencoder_features(encoder))

    # Compiling takes most of the time, running next to nothing.
    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def step(state, queue, frozen, inputs):
        given.update(inputs)
        fed.noise, fed.styles = inputs["noise"], inputs["styles"]
        padding = {"image": jnp.zeros((1, 8, 8, 4)), "label": jnp.full(1, -1)}
        return generator_step.generator_step(
            state,
            queue,
            {"params": frozen},
            padding,
            jax.random.key(0),
            model=fed,
            feature_function=feature_function,
            optimizer=optimizer,
            settings=settings,
        )

    def run(state, prefix, cfg):
        inputs = {
            "labels": figures["in/labels"],
            "negative": figures["in/negative_samples"],
            "noise": figures[f"{prefix}/noise_x"],
            "styles": figures[f"{prefix}/noise_labels"],
            "cfg": figures[cfg],
        }
        return step(state, released_queue(figures, mesh), frozen, inputs)

    initial = states.create_state(params, optimizer, ema_decays=(0.9,))
    state, _, metrics = run(initial, "in", "out/cfg")
    np.testing.assert_allclose(metrics.loss, figures["out/loss"], rtol=1e-4)
    np.testing.assert_allclose(metrics.gradient_norm, figures["out/g_norm"], rtol=1e-3)
    left_out = {n for n, s in metrics.statistics.items() if bool(s.is_degenerate)}
    assert left_out == {"stage1/mean", "stage1/std"}  # the groups of its norm have one channel
    assert len(metrics.statistics) - len(left_out) == len(figures["out/per_feature_loss"])
    for name, ours in (("conv1_std_4", "stem/std_4x4"), ("global", "raw"), ("norm_x", "input/rms")):
        statistics = metrics.statistics[ours]
        np.testing.assert_allclose(
            statistics.distance_scale, figures[f"metric/scale/{name}"], rtol=1e-4
        )
        expected = [figures[f"metric/loss_{t}/{name}"] for t in arguments["R_list"]]
        np.testing.assert_allclose(statistics.drift_mean_square, expected, rtol=2e-3)
    flat = {k.removeprefix("grad/"): figures[k] for k in figures.files if k.startswith("grad/")}
    gradient = leaves_by_path(release_names.generator_params(flat))
    found = leaves_by_path(state.opt_state[0])
    assert set(found) == set(gradient)
    for path, value in gradient.items():
        error = np.linalg.norm(found[path] - value)
        assert error < 1e-3 * np.linalg.norm(value) + 1e-5 * figures["out/g_norm"], path

    state = initial
    for i in (0, 1):
        state, _, metrics = run(state, f"step{i}", f"step{i}/cfg")
        np.testing.assert_allclose(metrics.loss, figures[f"step{i}/loss"], rtol=1e-4)
        np.testing.assert_allclose(metrics.gradient_norm, figures[f"step{i}/g_norm"], rtol=1e-3)
        for ours, path in [
            (("class_embedding", "embedding"), "Embed_0/embedding"),
            (
                ("final", "output", "kernel"),
                "LightningDiT_0/FinalLayer_0/TorchLinear_1/Dense_0/kernel",
            ),
        ]:
            for tree, name in ((state.params, "params"), (state.ema["0.9"], "ema")):
                leaf = functools.reduce(lambda t, k: t[k], ours, tree)
                expected = figures[f"step{i}/{name}/{path}"]
                # Adam turns the sign of a gradient of rounding noise into a whole step.
                wrong = np.abs(np.asarray(leaf) - expected) > 0.02 * figures[f"step{i}/lr"]
                assert np.mean(wrong) < 0.01, (i, name, path)
