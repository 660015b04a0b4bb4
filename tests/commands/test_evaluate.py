"""The command that measures images: its flags, the files that it writes, and its notes."""

import dataclasses
import functools
import json

import imagenet_like
import numpy as np
import pytest
from absl import flags
from fake_extractor import make_extractor
from fake_generator import FakeGenerator
from measuring import pixels

from drifting_jax import evaluate
from drifting_jax.commands import evaluate_flags
from drifting_jax.config import base_config, resolve, save_config
from drifting_jax.distributed import meshes
from drifting_jax.errors import UserError
from drifting_jax.evaluation import image_evaluation
from drifting_jax.training import monitoring
from drifting_jax.workdir.interruption import Interruption
from drifting_jax.workdir.stopping import StopAgreement


class Flags:
    """absl's flags, in a set of their own."""

    def __init__(self):
        self.FLAGS = flags.FlagValues()

    def __getattr__(self, name):
        return functools.partial(getattr(flags, name), flag_values=self.FLAGS)


@pytest.fixture
def command(monkeypatch, tmp_path):
    """Runs the command with networks that cost nothing; in a folder with images."""
    monkeypatch.chdir(tmp_path)
    for i, image in enumerate(pixels(0, 60)):
        path = tmp_path / "data" / "train" / "abc"[i % 3] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(imagenet_like.encoded(imagenet_like.Image.fromarray(image), "PNG"))
    np.savez(tmp_path / "samples.npz", arr_0=pixels(1, 50), arr_1=np.arange(50) % 3)
    monkeypatch.setattr(
        image_evaluation, "load_extractor", lambda name, weights, *, flag: make_extractor(name)
    )
    monkeypatch.setattr(
        evaluate, "load_generator", lambda *_, **__: FakeGenerator(meshes.make_mesh())
    )

    def run(*words: str) -> int:
        stand_in = Flags()
        for module in (evaluate, evaluate_flags):
            monkeypatch.setattr(module, "flags", stand_in)
        evaluate_flags.define_flags()
        return evaluate.main(stand_in.FLAGS(["evaluate", *words]))

    return run


def test_images_against_a_reference(command, tmp_path, capsys):
    assert command("reference", "--images=data", "--out=ref.npz", "--keep=40") == 0
    printed = capsys.readouterr().out
    assert "inception weights: sha256 0000" in printed
    assert printed.startswith("data: 60 images of 3 classes (a, b, c) in ")
    assert not (tmp_path / "ref.parts").exists()
    given = ("--images=samples.npz", "--reference=ref.npz", "--out=out", "--figures=fid,recall")
    assert command(*given) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("data: 50 images of samples.npz")
    assert "those of the reference" not in printed
    assert "FID ↓" in printed and "Recall ↑" in printed and "report: out/report.html" in printed
    page = (tmp_path / "out" / "report.html").read_text()
    assert "50 images of samples.npz" in page and "60 images of" in page and "sha256" in page
    lines = [json.loads(x) for x in (tmp_path / "out" / "figures.jsonl").read_text().splitlines()]
    assert [line.get("figure") for line in lines] == ["fid", "recall", None]
    assert command(*given) == 0  # and nothing is measured again
    assert len((tmp_path / "out" / "figures.jsonl").read_text().splitlines()) == 3


def test_weights_over_scales_and_seeds_beside_training_images(command, tmp_path, capsys):
    command("reference", "--images=data", "--out=ref.npz")
    assert command(
        "--weights=w", "--reference=ref.npz", "--cfg_scales=1,2,4", "--seeds=0,3",
        "--num_samples=30", "--training_images=data",
    ) == 0  # fmt: skip
    page = (tmp_path / "evaluation" / "report.html").read_text()
    assert "Nearest training images" in page and "balanced: 10 of each of 3 classes" in page
    assert page.count("data:image/png") > 10
    table = (tmp_path / "evaluation" / "figures.txt").read_text()
    assert "α = 4" in table and "±" in table
    assert not list((tmp_path / "evaluation" / "features").iterdir())
    printed = capsys.readouterr().out
    assert "note: kid is over subsets of 30" in printed and "images were left out" not in printed


def test_training_images_that_are_damaged_are_not_shown(command, tmp_path, monkeypatch):
    command("reference", "--images=data", "--out=ref.npz")
    for path in sorted((tmp_path / "data" / "train" / "a").iterdir())[::4]:
        path.write_bytes(b"damaged")
    seen = []
    monkeypatch.setattr(image_evaluation, "write_page", lambda _, page, **__: seen.append(page))
    given = ("--weights=w", "--cfg_scales=1", "--num_samples=30", "--training_images=data")
    assert command(*given) == 0
    near = seen[0].neighbors
    assert near.nearest.shape == (3, 5, 8, 8, 3)
    extractor = make_extractor("dinov2")

    def features(images):
        return np.asarray(extractor.apply(extractor.variables, images)["features"])

    for sample, nearest, distances in zip(near.samples, near.nearest, near.distances, strict=True):
        found = np.linalg.norm(features(nearest) - features(sample[None]), axis=1)
        np.testing.assert_allclose(found, distances, rtol=1e-4)


def test_fd_dinov2_is_left_out_without_its_weights(command, tmp_path, monkeypatch):
    def load(name, weights, *, flag):
        if name == "dinov2":
            raise UserError("there is no dinov2_vitl14_pretrain.pth")
        return make_extractor(name)

    monkeypatch.setattr(image_evaluation, "load_extractor", load)
    assert command("--images=samples.npz", "--out=out") == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "left out: there is no dinov2_vitl14" in page
    with pytest.raises(UserError, match="there is no dinov2_vitl14"):
        command("--images=samples.npz", "--out=out", "--figures=fd_dinov2")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "one of --workdir, --weights and --images; found none"),
        (("--images=a", "--weights=b"), "found weights and images"),
        (("--images=samples.npz", "--figures=fid,ssim"), "found 'ssim'"),
        (("--weights=w", "--sweep"), "--sweep goes with a run of small images, not with --weights"),
        (("--weights=w", "--nearest"), "--nearest goes with --workdir"),
        (("--workdir=w", "--nearest", "--k=3"), "--k goes with .* not with --nearest"),
        (("--images=samples.npz", "--seeds=1"), "--seeds goes with --workdir and --weights and"),
        (("--weights=w", "--step=3"), "--step goes with --workdir and a run of small images, not"),
        (("reference", "--images=data", "--out=a.npz", "--k=3"), "--k goes with .* not with refer"),
        (("--weights=w", "--cfg_scales=0"), "must be above 0"),
        (("--weights=w", "--cfg_scales=1,one"), "must be numbers with commas"),
        (("--weights=w", "--seeds=1,1"), "must be different numbers"),
        (("--weights=w", "--image_size=8"), "--image_size goes with --images and reference, not"),
        (
            ("--images=samples.npz", "--protocol=train_split"),
            "--protocol goes with a run of small images, not with --images",
        ),
        (("--images=samples.npz", "--max_excluded=2"), "a share from 0 to 1"),
        (("--images=samples.npz", "--reference=no.npz"), r"no.npz is no \.npz file"),
        (("reference", "--images=data"), "reference: expected --images=FOLDER and --out=FILE.npz"),
        (("refrence",), "expected flags alone, or the word reference; found refrence"),
        (("--workdir=nothing",), "nothing"),
    ],
)
def test_mistakes_are_one_line(command, tmp_path, words, told):
    with pytest.raises(UserError, match=told):
        command(*words)
    assert {path.name for path in tmp_path.iterdir()} == {"data", "samples.npz"}


@pytest.mark.parametrize("task", ["toy", "policy", "pairs"])
def test_runs_without_images_are_refused(command, tmp_path, task):
    save_config(tmp_path / "run", base_config(task))
    with pytest.raises(UserError, match=f"a run of task '{task}'; expected 'generator'"):
        command("--workdir=run")


def test_what_is_refused_leaves_nothing(command, tmp_path, monkeypatch):
    np.savez(tmp_path / "one.npz", arr_0=pixels(1, 1))
    np.savez(tmp_path / "float.npz", arr_0=np.zeros((4, 8, 8, 3)))
    before = {path.name for path in tmp_path.iterdir()}
    for words, told in (
        (("--images=one.npz",), "two images or more"),
        (("--images=samples.npz", "--reference=one.npz"), "two images or more"),
        (("--images=samples.npz", "--reference=float.npz"), "of uint8; found float64"),
        (("reference", "--images=one.npz", "--out=r.npz"), "two images or more"),
        (("reference", "--images=none", "--out=r.npz"), "none"),
    ):
        with pytest.raises(UserError, match=told):
            command(*words)

    def refuse(self):
        raise UserError("the generator makes latents")

    monkeypatch.setattr(FakeGenerator, "check_makes_pixels", refuse)
    with pytest.raises(UserError, match="makes latents"):
        command("--weights=w", "--num_samples=30")
    assert {path.name for path in tmp_path.iterdir()} == before


def test_warnings_on_weights_are_notes(command, monkeypatch, capsys):
    doubtful = dataclasses.replace(make_extractor("inception"), warning="another file")
    monkeypatch.setattr(image_evaluation, "load_extractor", lambda *_, **__: doubtful)
    command("--images=samples.npz", "--out=out", "--figures=inception_score")
    assert "note: another file" in capsys.readouterr().out


def test_images_of_another_size_than_the_reference_give_a_note(command, capsys):
    command("reference", "--images=data", "--image_size=12", "--out=ref.npz")
    command("--images=samples.npz", "--reference=ref.npz", "--out=out", "--figures=fid")
    assert "note: the images are 8x8, those of the reference 12x12" in capsys.readouterr().out


def test_a_reference_of_other_weights_is_refused(command, monkeypatch):
    command("reference", "--images=data", "--out=ref.npz")
    monkeypatch.setattr(
        image_evaluation, "load_extractor", lambda name, *_, **__: make_extractor(name, seed=4)
    )
    with pytest.raises(UserError, match=r"made with other weights of inception .* make it anew"):
        command("--images=samples.npz", "--reference=ref.npz")


def monitor(tmp_path, **changes):
    config = base_config("generator")
    config.data.source = "images"
    config.eval.every = 10
    config.eval.num_samples = 30
    config.eval.update(changes)
    stops = StopAgreement(Interruption())
    return monitoring.make_monitor(resolve(config), workdir=tmp_path, stops=stops)


def test_metrics_during_training(command, tmp_path, monkeypatch):
    monkeypatch.setattr(monitoring, "load_extractor", lambda name, *_, **__: make_extractor(name))
    command("reference", "--images=data", "--out=ref.npz")
    measure = monitor(tmp_path, reference=str(tmp_path / "ref.npz"))
    found = measure(FakeGenerator(meshes.make_mesh(), step=10))
    assert set(found) == {"fid", "inception_score"} and found["fid"] > 0
    assert measure(FakeGenerator(meshes.make_mesh(), step=10)) == pytest.approx(found)
    bad = FakeGenerator(meshes.make_mesh(), bad=tuple(range(1000, 1010)))
    assert measure(bad) == {}  # logged, and no reason to end the training
    assert monitor(tmp_path, every=0) is None
    with pytest.raises(UserError, match=r"config.eval.every measures FID against .*reference"):
        monitor(tmp_path)
    with pytest.raises(UserError, match=r"samples.npz holds images alone"):
        monitor(tmp_path, reference=str(tmp_path / "samples.npz"))
    monkeypatch.setattr(
        monitoring, "load_extractor", lambda name, *_, **__: make_extractor(name, seed=4)
    )
    with pytest.raises(UserError, match=r"made with other weights of inception"):
        monitor(tmp_path, reference=str(tmp_path / "ref.npz"))
