"""An exported sampler needs JAX alone, and gives the images of `sample`, bit for bit."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax.export
import numpy as np
import onnxruntime
import pytest
from PIL import Image
from read_release import unpacked
from saved_run import save_run

from drifting_jax import export
from drifting_jax.commands import exported_sample, exporting
from drifting_jax.commands.class_choice import parse_classes
from drifting_jax.data.class_names import title
from drifting_jax.distributed import meshes, transfer
from drifting_jax.errors import UserError
from drifting_jax.steps import sampling
from drifting_jax.training.restore import load_generator, load_run

VAE = Path(__file__).parents[1] / "fixtures" / "torch" / "vae"
# Neither this package nor what it is built on can be imported.
ALONE = """
import runpy, sys
sys.modules |= dict.fromkeys(("drifting_jax", "flax", "optax", "orbax", "grain", "absl", "PIL"))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return save_run(tmp_path_factory.mktemp("saved") / "run")


@pytest.fixture(scope="module")
def generator(workdir):
    return load_run(workdir)


@pytest.fixture(scope="module")
def folder(workdir, tmp_path_factory):
    out = tmp_path_factory.mktemp("exported") / "sampler"
    run_export(workdir=str(workdir), out=str(out))
    return out


def run_export(**given):
    values = dict.fromkeys(("workdir", "weights", "vae", "out"), "")
    values |= dict.fromkeys(("ema_decay", "ema_sigma", "step"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "flags", SimpleNamespace(FLAGS=SimpleNamespace(**values | given)))
        export.main([])


def run_sample(folder, *flags, without=()):
    blocked = f"import sys; sys.modules |= dict.fromkeys({without!r})\n"
    return subprocess.run(
        [sys.executable, "-c", blocked + ALONE, str(folder / "sample.py"), *flags],
        env=os.environ | {"PYTHONPATH": ""},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_images_are_those_of_the_sample_command(generator, folder, tmp_path):
    labels, indices = sampling.class_major([7, 0, 3], 5)
    seed = 2**32 - 1
    expected = generator.sample(labels, indices, seed=seed, cfg_scale=1.5, batch_size=8)
    assert len({image.tobytes() for image in expected}) == 15
    for batch_size in (4, 64):
        out = tmp_path / f"{batch_size}.npz"
        flags = ("--classes=7,0,3-3", "--per_class=5", "--cfg_scale=1.5", f"--seed={seed}")
        found = run_sample(folder, *flags, f"--batch_size={batch_size}", f"--out={out}")
        assert found.returncode == 0, found.stderr
        assert found.stdout == f"15 samples: {out}\n"
        with np.load(out) as file:
            np.testing.assert_array_equal(file["arr_0"], expected)
            np.testing.assert_array_equal(file["arr_1"], labels)


@pytest.mark.parametrize(
    "names",
    [
        [str(i) for i in range(10)],
        ["cat", "dog", "n01440764", "ox", "0-1"],
        ["1", "2", "3"],
        ["10", "11", "12"],
        ["a1", "01", "1"],
    ],
    ids=",".join,
)
def test_classes_are_read_as_sample_reads_them(names, capsys):
    words = ("", "0", "2", "0-2", "1-3", "2-1", "10-12", "9-10", "1,1", "0-1,2", "0-2,1", "cat")
    words += ("cat,n01440764", "tench", "0-99999999999", "3-", " 1 , 2 ", "01", "1-1", "9" * 5000)
    for text in words:
        try:
            expected = parse_classes(text, names)
        except UserError:
            expected = None
        try:
            found = exported_sample.class_numbers(text, names, [title(name) for name in names])
        except SystemExit as error:
            assert error.code == 2
            found = None
        assert found == expected, text
        assert len(capsys.readouterr().err.splitlines()) == (expected is None)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_picture_holds_the_images(tmp_path, channels):
    images = np.random.default_rng(0).integers(0, 256, (6, 5, 5, channels), np.uint8)
    (tmp_path / "x.png").write_bytes(exported_sample.png(images, 3))
    picture = np.asarray(Image.open(tmp_path / "x.png")).reshape(400, 600, channels)
    shown = picture[20::40, 20::40].reshape(2, 5, 3, 5, channels).swapaxes(1, 2)
    np.testing.assert_array_equal(shown.reshape(images.shape), images)


def test_the_description_is_true(generator, folder):
    config = json.loads((folder / "config.json").read_text())
    assert config["jax"] == jax.__version__ and config["platforms"] == ["cpu", "cuda", "tpu"]
    assert (config["step"], config["ema_decay"]) == (7, 0.9)
    assert config["classes"] == config["titles"] == list("0123456789")
    assert config["image_shape"] == [8, 8, 1] and config["alpha_range"] == [1.0, 4.0]
    program = jax.export.deserialize((folder / "sampler.jax").read_bytes())
    assert list(program.platforms) == config["platforms"]
    assert [str(x.shape) for x in program.out_avals] == ["(n, 8, 8, 1)", "(n,)"]
    session = onnxruntime.InferenceSession(str(folder / "network.onnx"))
    assert {x.name: x.shape for x in session.get_inputs()} == {
        "noise": ["n", 8, 8, 1], "labels": ["n"], "styles": ["n", 2], "alpha": ["n"]
    }  # fmt: skip
    assert list(config["onnx"]["inputs"]) == [x.name for x in session.get_inputs()]
    assert config["onnx"]["inputs"]["styles"] == "[n, 2] int32: uniform, from 0 to 15"
    rng = np.random.default_rng(0)
    inputs = {
        "noise": rng.normal(size=(2, 8, 8, 1)).astype(np.float32),
        "labels": np.int32([3, 9]),
        "styles": np.int32([[0, 15], [4, 2]]),
        "alpha": np.float32([1, 2.5]),
    }
    params = transfer.fetch(generator.params)
    expected = jax.jit(generator.model.apply)({"params": params}, *inputs.values())
    np.testing.assert_allclose(session.run(None, inputs)[0], expected, atol=1e-4, rtol=0)


def test_a_sampler_of_another_version_is_one_line(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    program = jax.export.deserialize((other / "sampler.jax").read_bytes())
    code = bytearray(program.mlir_module_serialized)
    assert code[:4] == b"ML\xefR"  # MLIR's bytecode; its version follows, in the upper bits
    code[4] = 2 * 100 + 1
    program = dataclasses.replace(program, mlir_module_serialized=bytes(code))
    (other / "sampler.jax").write_bytes(program.serialize())
    config = json.loads((other / "config.json").read_text()) | {"jax": "99.1"}
    (other / "config.json").write_text(json.dumps(config))
    expected = f"error: jax {jax.__version__} cannot run sampler.jax, which jax 99.1 wrote"
    assert_one_line(run_sample(other), expected)
    (other / "sampler.jax").write_bytes(b"damaged")
    assert_one_line(run_sample(other), expected)


def assert_one_line(found, message):
    assert found.returncode == 2, found.stderr
    lines = [line for line in found.stderr.splitlines() if line]
    assert len(lines) == 1 and message in lines[0], found.stderr


@pytest.mark.parametrize(
    "flag, message",
    [
        ("--classes=3,cat", "'cat' is no class"),
        ("--classes=7-12", "classes run from 0 to 9; found '7-12' in --classes"),
        ("--per_class=0", "--per_class and --batch_size are at least 1"),
        ("--seed=-1", "--seed is from 0 to 2**32 - 1"),
        ("--seed=x", "invalid int value: 'x'"),
        ("--cfg_scale=0", "--cfg_scale is a number above 0"),
        ("--cfg_scale=nan", "--cfg_scale is a number above 0"),
        ("--out=x.jpg", "--out ends in .png or .npz"),
        ("--nothing=1", "unrecognized arguments: --nothing=1"),
    ],
)
def test_bad_flags_of_the_sampler_are_one_line(folder, monkeypatch, capsys, flag, message):
    monkeypatch.setattr(exported_sample, "HERE", folder)
    monkeypatch.setattr(sys, "argv", ["sample.py", flag])
    with pytest.raises(SystemExit) as end:
        exported_sample.main()
    assert_one_line(
        SimpleNamespace(returncode=end.value.code, stderr=capsys.readouterr().err), message
    )


def test_without_flatbuffers(generator, folder, tmp_path, monkeypatch):
    found = run_sample(folder, without=("flatbuffers",))
    assert_one_line(found, "pip install jax flatbuffers")

    def serialize(_):
        raise ModuleNotFoundError("No module named 'flatbuffers'")

    monkeypatch.setattr(jax.export.Exported, "serialize", serialize)
    with pytest.raises(UserError, match=r"'flatbuffers': pip install -e '\.\[export\]'"):
        exporting.export_generator(generator, tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_without_onnx_there_is_no_graph(generator, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    notes = exporting.export_generator(generator, tmp_path / "x")
    assert notes == ["no network.onnx: it needs pip install -e '.[onnx]'"]
    assert json.loads((tmp_path / "x" / "config.json").read_text())["onnx"] is None
    names = {"config.json", "sample.py", "sampler.jax", "weights.npz"}
    assert {path.name for path in (tmp_path / "x").iterdir()} == names


def test_bad_flags_of_the_command(workdir, folder, tmp_path):
    for given, message in (
        ({}, "expected --out"),
        ({"out": str(folder)}, "must be a new folder"),
        ({"out": str(tmp_path / "x")}, "expected one of --workdir and --weights"),
        ({"out": str(tmp_path / "x"), "weights": "x", "step": 3}, "--step goes with --workdir"),
        ({"out": str(tmp_path / "x"), "workdir": str(workdir), "step": 3}, "step 3"),
    ):
        with pytest.raises(UserError, match=message):
            run_export(**given)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_latents_are_decoded(tmp_path):
    weights = str(unpacked("gen_latent", tmp_path))
    run_export(weights=weights, vae=str(VAE), out=str(tmp_path / "sampler"))
    with np.load(tmp_path / "sampler" / "weights.npz") as file:  # without the VAE's encoder
        parts = {"/".join(name.split("/")[:3]) for name in file.files if name.startswith("vae")}
    assert parts == {"vae/params/decoder", "vae/params/post_quant_conv"}
    out = tmp_path / "x.npz"
    found = run_sample(tmp_path / "sampler", "--classes=10,0", "--per_class=3", f"--out={out}")
    assert found.returncode == 0, found.stderr
    generator, mesh = load_generator(weights, vae=str(VAE)), meshes.make_mesh(1, 1)
    # The decoder's convolutions round as the size of the batch on a device lets them.
    sampler = sampling.make_sampler(generator.model, mesh, vae=generator.vae)
    params = transfer.fetch(generator.params)
    generator = dataclasses.replace(generator, mesh=mesh, sampler=sampler, params=params)
    labels, indices = sampling.class_major([10, 0], 3)
    expected = generator.sample(labels, indices, seed=0, cfg_scale=1.0, batch_size=8)
    assert expected.shape == (6, 16, 16, 3)
    with np.load(out) as file:
        np.testing.assert_array_equal(file["arr_0"], expected)
    config = json.loads((tmp_path / "sampler" / "config.json").read_text())
    assert config["image_shape"] == [16, 16, 3] and config["alpha_range"] is None
    rng, model = np.random.default_rng(0), generator.model
    side, books = model.image_size, (2, model.num_style_books)
    inputs = {
        "noise": rng.normal(size=(2, side, side, model.in_channels)).astype(np.float32),
        "labels": np.int32([3, 9]),
        "styles": rng.integers(0, model.styles_per_book, books, np.int32),
        "alpha": np.float32([1, 2.5]),
    }
    network = jax.jit(lambda *x: sampling.images_of(model, *x, vae=generator.vae))
    images = network(params, *inputs.values())
    session = onnxruntime.InferenceSession(str(tmp_path / "sampler" / "network.onnx"))
    np.testing.assert_allclose(session.run(None, inputs)[0], images, atol=1e-4, rtol=0)
