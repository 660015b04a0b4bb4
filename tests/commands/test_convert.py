"""The commands sample and convert published weights, and write those of a run for others."""

import json
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import tiny_config
from PIL import Image
from read_release import unpacked
from saved_run import save_run

from drifting_jax import convert, sample
from drifting_jax.config import resolve
from drifting_jax.data.sources import make_source
from drifting_jax.distributed import transfer
from drifting_jax.errors import UserError
from drifting_jax.training import build, restore
from drifting_jax.training import encoder as train_mae
from drifting_jax.weights.networks import load_network
from drifting_jax.weights.release import read_artifact

VAE = Path(__file__).parents[1] / "fixtures" / "torch" / "vae"


def assert_same(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


DEFAULTS = {"to": "plain", "vae": "", "license": ""}  # of flags of convert


def run_with(monkeypatch, module, **values):
    values = DEFAULTS | values
    monkeypatch.setattr(module, "flags", SimpleNamespace(FLAGS=SimpleNamespace(**values)))
    module.main([])


def test_an_artifact_is_sampled_through_the_decoder(tmp_path, monkeypatch, capsys):
    artifact = unpacked("gen_latent", tmp_path)
    values = {
        "workdir": "",
        "weights": str(artifact),
        "vae": str(VAE),
        "classes": "10,0-1",
        "per_class": 3,
        "cfg_scale": 1.5,
        "seed": 0,
        "ema_decay": None,
        "ema_sigma": None,
        "interpolate": None,
        "conditions": "",
        "step": None,
        "batch_size": 8,
        "out": str(tmp_path / "samples.npz"),
    }
    run_with(monkeypatch, sample, **values)
    assert "9 samples of step 1234" in capsys.readouterr().out
    with np.load(values["out"]) as file:
        assert file["arr_0"].shape == (9, 16, 16, 3) and file["arr_0"].dtype == np.uint8
        np.testing.assert_array_equal(file["arr_1"], [10] * 3 + [0] * 3 + [1] * 3)
        assert len({image.tobytes() for image in file["arr_0"]}) == 9
    with pytest.raises(UserError, match=r"makes latents of 4 channels: say with --vae"):
        restore.load_generator(str(artifact))
    with pytest.raises(UserError, match="kind 'autoencoder'; expected 'generator'"):
        restore.load_generator(str(unpacked("mae_latent", tmp_path)))


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return save_run(tmp_path_factory.mktemp("saved") / "run")


def test_a_run_is_written_for_others(workdir, tmp_path, monkeypatch, capsys):
    common = {"list": "", "source": str(workdir), "kind": "", "ema_decay": None}
    run_with(
        monkeypatch, convert, **common, part="generator", to="release", out=str(tmp_path / "gen")
    )
    assert "generator of step 7" in capsys.readouterr().out
    artifact = read_artifact(tmp_path / "gen")
    expected = transfer.fetch(restore.load_run(workdir).params)
    assert_same(artifact.params, expected)
    assert (artifact.metadata["step"], artifact.metadata["ema_decay"]) == (7, 0.9)
    for part in ("generator", "encoder"):
        run_with(monkeypatch, convert, **common, part=part, to="plain", out=str(tmp_path / part))
    assert_same(load_network(tmp_path / "generator").variables["params"], expected)
    encoder = load_network(tmp_path / "encoder")
    assert (encoder.kind, encoder.step) == ("autoencoder", 10)
    with pytest.raises(UserError, match="must be a new folder"):
        run_with(
            monkeypatch, convert, **common, part="encoder", to="plain", out=str(tmp_path / "gen")
        )
    with pytest.raises(UserError, match="autoencoders of 4 stages and 32 groups"):
        run_with(
            monkeypatch, convert, **common, part="encoder", to="release", out=str(tmp_path / "x")
        )


def test_a_folder_for_the_hub_samples_as_the_run_does(workdir, tmp_path, monkeypatch, capsys):
    metrics = {"step": 7, "seed": 3, "ema_decay": 0.9, "num_samples": 80}
    metrics["alpha"] = {
        "1": {"accuracy": 0.25, "accuracy_floor": 0.75}, "2": {"accuracy": 0.5}
    }  # fmt: skip
    (workdir / "evaluation.json").write_text(json.dumps(metrics))
    common = {"list": "", "source": str(workdir), "kind": "", "part": "generator", "to": "hub"}
    out = tmp_path / "digits<3"
    run_with(monkeypatch, convert, **common, ema_decay=None, license="cc-by-4.0", out=str(out))
    assert "generator of step 7" in capsys.readouterr().out
    names = {"README.md", "config.json", "evaluation.json", "model.safetensors", "samples.png"}
    assert {path.name for path in out.iterdir()} == names
    card = (out / "README.md").read_text()
    assert "\nlicense: cc-by-4.0\n" in card and "# digits&lt;3" in card
    assert "`digits`: all images of 8×8×1, of 10 classes: 0, 1, 2" in card
    assert "| `model.width` | 16 |" in card and "| accuracy | 0.2500 | 0.5000 | 0.7500 |" in card
    assert "* seeds: 3" in card and "* generator: step 7, average of decay 0.9" in card
    assert json.loads((out / "evaluation.json").read_text()) == metrics

    run, found = restore.load_run(workdir), restore.load_generator(str(out))
    assert found.class_names == tuple("0123456789") and found.alpha_range == (1.0, 4.0)
    assert_same(transfer.fetch(found.params), transfer.fetch(run.params))
    asked = {"seed": 5, "cfg_scale": 2.0, "batch_size": 8}
    labels = np.arange(8, dtype=np.int32)
    assert_same(found.sample(labels, labels, **asked), run.sample(labels, labels, **asked))
    picture = np.asarray(Image.open(out / "samples.png"))
    first = run.sample(labels[:1] * 0, labels[:1] * 0, **asked | {"seed": 0, "cfg_scale": 1.0})
    side = picture.shape[0] // 91  # rows of 8 pixels and a line
    pixels = picture[side + side // 2 :: side, side + side // 2 :: side]
    assert_same(pixels[:8, :8], first[0, ..., 0])

    # Metrics of another average are not those of these weights.
    other = tmp_path / "other"
    run_with(monkeypatch, convert, **common, ema_decay=0.99, out=str(other))
    assert not (other / "evaluation.json").exists()
    card = (other / "README.md").read_text()
    assert "## Metrics" not in card and "license:" not in card and "Not stated." in card


@pytest.mark.parametrize(
    "given, message",
    [
        ({"license": "my licence"}, "--license must be a name such as apache-2.0"),
        ({"part": "encoder"}, "--to=hub holds generators: use --to=plain"),
        ({"to": "plain", "license": "mit"}, "--vae and --license go with --to=hub"),
        ({"source": "nowhere"}, "there is no file or folder nowhere"),
        ({"source": "nowhere", "ema_decay": 0.9}, "--ema_decay is of a run's workdir"),
        ({"vae": str(VAE)}, "--vae is for generators of latents"),
        ({"out": "."}, "must be a new folder"),
    ],
)
def test_mistakes_with_folders_for_the_hub(workdir, tmp_path, monkeypatch, given, message):
    values = {"list": "", "source": str(workdir), "kind": "", "part": "generator", "to": "hub"}
    values |= {"ema_decay": None, "out": str(tmp_path / "out")}
    with pytest.raises(UserError, match=message):
        run_with(monkeypatch, convert, **values | given)
    assert not (tmp_path / "out").exists()


def test_converted_encoders_serve_runs(workdir, tmp_path, monkeypatch):
    out = tmp_path / "encoder"
    common = {"list": "", "source": str(workdir), "kind": "", "ema_decay": None}
    run_with(monkeypatch, convert, **common, part="encoder", to="plain", out=str(out))
    config = tiny_config.get_config()
    config.encoder.path = str(out)
    source, mesh = make_source(config.data, "train"), build.make_mesh(resolve(config))

    def params(config, workdir):
        return train_mae.encoder_params(
            resolve(config), source, mesh, workdir=workdir, context=None
        )

    expected = load_network(out).variables["params"]
    assert_same(transfer.fetch(params(config, tmp_path / "other")), expected)
    config.encoder.width = 8
    with pytest.raises(UserError, match=r"has other sizes than config\.encoder: it has width 4"):
        params(config, tmp_path / "third")


def test_files_are_listed(monkeypatch, capsys):
    path = str(VAE / "diffusion_pytorch_model.safetensors")
    run_with(monkeypatch, convert, list=path, source="", out="")
    assert "decoder.conv_in.weight" in capsys.readouterr().out
    with pytest.raises(UserError, match="expected either --list, or --source and --out"):
        run_with(monkeypatch, convert, list="", source="x", out="")
