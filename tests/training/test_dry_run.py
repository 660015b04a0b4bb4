"""What a run would need: counted by hand for what is small, compiled for a TPU slice."""

import functools
import types
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny_config

from drifting_jax.compiler import targets
from drifting_jax.config import base_config, file_beside, resolve
from drifting_jax.data.sources import DataSpec, data_spec
from drifting_jax.distributed import meshes
from drifting_jax.errors import UserError
from drifting_jax.training import build, compiled_report, dry_run, loop, programs, run

CONFIGS = Path(__file__).parents[2] / "configs"


def load(name, variant):
    found = file_beside(CONFIGS / "any.py", f"{name}.py").get_config
    return found(variant) if variant else found()


def config(**changes):
    found = tiny_config.get_config()
    found.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return resolve(found)


@functools.cache
def flops_of_a_step():
    """The work of a whole step of the tiny config, with 4 samples generated per label."""
    return dry_run.count_flops(config(train__generated_per_label=4), 1)


def test_bytes_of_a_step_on_one_device_and_on_eight():
    one = dry_run.program(config(), build.make_mesh(config()))
    parameters = dry_run.parameter_counts(one)["generator"]
    state = meshes.bytes_per_device(one.carry.state)
    # Parameters, two moments, two averages; a few counters besides.
    assert 0 <= state - 5 * 4 * parameters < 100
    ring = 8 * 10 * 64 + 32 * 64  # uint8 pixels, 10 classes
    assert 0 <= meshes.bytes_per_device(one.carry.queue) - ring < 200
    rules = (("kernel", (None, "fsdp")),)
    split = config(mesh__data=1, mesh__fsdp=8, mesh__rules=rules, train__generated_per_label=8)
    eight = dry_run.program(split, build.make_mesh(split))
    assert meshes.bytes_per_device(eight.carry.state) < 0.6 * state
    padded = 8 * 2 * 64 + 32 * 64  # 16 classes over 8 devices
    assert 0 <= meshes.bytes_per_device(eight.carry.queue) - padded < 200


@pytest.mark.slow
def test_work_grows_with_the_batch_and_not_with_the_mesh():
    more = dry_run.count_flops(config(train__generated_per_label=8), 1)
    less = flops_of_a_step()
    assert 1.2 < more / less < 2.2
    of_encoder = {"task": "encoder", "encoder__train__microbatches": 2}
    assert dry_run.count_flops(config(**of_encoder), 2) == dry_run.count_flops(
        config(task="encoder"), 1
    )


def test_what_microbatches_cost():
    """With kept maps one more forward pass of all samples, and two more without."""
    one, kept = flops_of_a_step(), dry_run.count_flops(config(), 4)
    again = dry_run.count_flops(config(), 4, keep_maps=False)
    assert 1.1 < kept / one < again / one < 2.3
    assert again / kept > 1.1


def test_a_failure_of_the_compiler_is_one_line_with_a_flag(monkeypatch):
    def fails(device, lowered):
        raise jax.errors.JaxRuntimeError(message)

    monkeypatch.setattr(compiled_report, "compile_for", fails)
    mesh = build.make_mesh(config())
    program = dry_run.program(config(), mesh)
    device = types.SimpleNamespace(device_kind="a GPU", platform="gpu", process_index=0)
    gpu = types.SimpleNamespace(devices=np.array([device]), size=1)
    monkeypatch.setattr(targets, "memory_of", lambda _: 0)
    message = "UNKNOWN: 'scf.if' op along control flow edge\n%138 = ..."
    with pytest.raises(UserError, match=r"failed: UNKNOWN: .*hlo_passes=triton-softmax-rewriter$"):
        compiled_report.compile_step(program, gpu)
    message = "INTERNAL: Couldn't find output tile sizes"
    with pytest.raises(UserError, match=r"try XLA_FLAGS=--xla_gpu_enable_triton_gemm=false$"):
        compiled_report.compile_step(program, gpu)
    message = "INTERNAL: no ptxas"
    with pytest.raises(UserError, match=r"^the compiler for a GPU failed: INTERNAL: no ptxas$"):
        compiled_report.compile_step(program, gpu)
    message = "RESOURCE_EXHAUSTED: Out of memory"
    (line,) = compiled_report.compiled_lines(compiled_report.compile_step(program, gpu))
    assert "does NOT fit (RESOURCE_EXHAUSTED: Out of memory)" in line


def test_the_report():
    told = dry_run.dry_run(config())
    assert "generator: " in told and "encoder: " in told and "TFLOP" in told
    assert told.endswith("no plan: neither the memory nor the speed of a cpu is known")
    assert "toy: " in dry_run.dry_run(resolve(base_config("toy")))
    with pytest.raises(UserError, match=r"batch_size must be a multiple of 8 devices"):
        changes = {"mesh__data": 8, "train__generated_per_label": 8}
        dry_run.dry_run(config(**changes, encoder__train__batch_size=9))


def test_the_batch_of_an_encoder_that_is_given_need_not_fit():
    changes = {"mesh__data": 8, "train__generated_per_label": 8, "encoder__train__batch_size": 9}
    found = config(**changes, encoder__path="runs/another")
    assert dry_run.program(found, build.make_mesh(found)).name == "generator"


@pytest.mark.slow
def test_the_dry_run_lowers_the_very_program_that_training_runs(tmp_path, monkeypatch):
    """Lowered with the arrays of a training, and with the shapes of a dry run."""
    found, seen, real = config(encoder__train__num_steps=12), {}, loop.run

    def watched(program, carry, frozen, batches, hooks, *, start):
        lowered = program.step.lower(carry, frozen, next(batches.batches))
        seen[program.name] = lowered.as_text()
        if program.name == "encoder":
            return real(program, carry, frozen, batches, hooks, start=start)
        return carry, False

    monkeypatch.setattr(loop, "run", watched)
    run.run(found, workdir=tmp_path / "run")
    mesh = build.make_mesh(found)
    assert seen["generator"] == dry_run.program(found, mesh).lower().as_text()
    alone = found.copy_and_resolve_references()
    with alone.unlocked():
        alone.task = "encoder"
    assert seen["encoder"] == dry_run.program(alone, mesh).lower().as_text()


@pytest.mark.parametrize(
    ("name", "variant", "millions"),
    [
        ("imagenet_latent", "ablation", {"generator": 133, "encoder": 340}),
        ("imagenet_latent", "B", {"generator": 133, "encoder": 2127}),
        ("imagenet_latent", "L", {"generator": 463, "encoder": 2127}),
        ("imagenet512_latent", "B", {"generator": 133, "encoder": 2127}),
        ("imagenet512_latent", "L", {"generator": 463, "encoder": 2127}),
        ("imagenet_pixel", "B", {"generator": 134, "encoder": 2127, "convnext": 88}),
        ("imagenet_pixel", "L", {"generator": 464, "encoder": 2127, "convnext": 88}),
        ("mae_latent", "256", {"encoder": 431}),
        ("mae_pixel", "640", {"encoder": 2690}),
    ],
)
def test_networks_of_the_paper(name, variant, millions):
    """Table 8; and the largest states split over eight devices."""
    found = resolve(load(name, variant))
    program = dry_run.program(found, build.make_mesh(found))
    counted = {key: round(count / 1e6) for key, count in dry_run.parameter_counts(program).items()}
    assert counted.keys() == millions.keys()
    for key, expected in millions.items():
        assert abs(counted[key] - expected) <= 3, (key, counted)
    whole = sum(4 * x.size for x in jax.tree.leaves(program.carry.state))
    assert meshes.bytes_per_device(program.carry.state) < 0.2 * whole
    assert data_spec(found.data).image_shape in ((32, 32, 4), (64, 64, 4), (256, 256, 3))


@pytest.mark.parametrize(
    ("name", "variant", "shape", "millions", "tokens"),
    [
        ("imagenet64_latent", "", (8, 8, 4), {"generator": 25.8, "encoder": 340.2}, 64),
        ("imagenet_latent", "one_gpu", (32, 32, 4), {"generator": 33.9, "encoder": 340.2}, 256),
        ("images", "128", (128, 128, 3), {"generator": 40.5, "encoder": 17.2}, 256),
    ],
)
def test_networks_for_one_gpu(name, variant, shape, millions, tokens):
    found = resolve(load(name, variant))
    spec = DataSpec(shape, 10) if name == "images" else data_spec(found.data)
    assert spec.image_shape == shape
    assert (shape[0] // found.model.patch_size) ** 2 == tokens
    mesh = meshes.make_mesh(1, devices=jax.devices()[:1])
    program = programs.generator_program(found, spec, mesh)
    for key, count in dry_run.parameter_counts(program).items():
        assert count / 1e6 == pytest.approx(millions[key], abs=0.06)
    # Parameters, two moments and the averages, in float32.
    copies = 3 + len(found.train.ema_decays)
    state = 4 * copies * dry_run.parameter_counts(program)["generator"]
    assert 0 <= meshes.bytes_per_device(program.carry.state) - state < 100


def test_unknown_variants_are_named():
    for name in ("imagenet_latent", "imagenet_pixel", "mae_latent", "mae_pixel"):
        with pytest.raises(UserError, match=f"{name}.py has no variant 'XL'; it knows"):
            load(name, "XL")


@pytest.mark.slow
def test_the_real_program_compiles_for_a_tpu_slice():
    pytest.importorskip("libtpu")
    told = dry_run.dry_run(
        config(mesh__data=-1, train__labels_per_step=4, task="encoder"), topology="v5e:2x2"
    )
    assert "TPU v5 lite" in told and "collectives: " in told and "fits" in told
    assert "compiler's estimate" in told
    assert len(targets.devices_of("v4:2x2x1")) == 4  # a device for each chip, as JAX shows them
    for one_chip in ("v5e:1x1", "v6e:1x1", "v4:1x1x1"):
        assert len(targets.devices_of(one_chip)) == 1
    with pytest.raises(UserError, match="--topology=v5e:3x7 cannot be compiled for"):
        dry_run.dry_run(config(), topology="v5e:3x7")
