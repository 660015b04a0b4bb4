"""The commands sample and convert published weights, and write those of a run for others."""

from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import tiny_config
from read_release import unpacked
from saved_run import save_run

from drifting_jax import convert, sample
from drifting_jax.config import resolve, save_config
from drifting_jax.data.sources import make_source
from drifting_jax.distributed import transfer
from drifting_jax.errors import UserError
from drifting_jax.training import build, programs, restore
from drifting_jax.training import encoder as train_mae
from drifting_jax.weights.networks import load_network
from drifting_jax.weights.release import read_artifact
from drifting_jax.workdir.checkpoint import Checkpoints
from drifting_jax.workdir.layout import encoder_checkpoints, generator_checkpoints

VAE = Path(__file__).parents[1] / "fixtures" / "torch" / "vae"


def assert_same(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def run_with(monkeypatch, module, **values):
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
