"""Converts weights: `python -m drifting_jax.convert --source=… --out=DIR`, or `--list=FILE`.

A source is the workdir of a run (`--part=generator` or `encoder`), an artifact of the paper's
release, a folder of diffusers or transformers, a file of torchvision's, torch.hub's or MoCo's
tensors or of a generator's, or hf://owner/repo. No code in a file is run: the reader of pickles
accepts only tensors. `--to=release` writes generators and autoencoders in the release's format,
which the release's code loads too; `--to=plain` writes any network as network.json and params.npz.
`--to=hub` writes a generator, of classes or of pairs, or a policy for the Hugging Face Hub, with a
model card.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from drifting_jax.commands.command_line import run_program
from drifting_jax.commands.hub_folder import write_hub_folder
from drifting_jax.config import load_config
from drifting_jax.distributed import meshes, transfer
from drifting_jax.errors import UserError
from drifting_jax.files import check_new
from drifting_jax.surroundings import check_devices
from drifting_jax.training import build, data_identity
from drifting_jax.training.encoder import read_trained
from drifting_jax.training.restore import load_generator, load_run
from drifting_jax.training.tasks import module_of
from drifting_jax.weights import files, release
from drifting_jax.weights.networks import KINDS, Network, load_network, save_network


def define_flags() -> None:
    """Registers the command line's flags."""
    flags.DEFINE_string("list", "", "File or folder whose tensors are listed.")
    flags.DEFINE_string("source", "", "Where the network is read from.")
    flags.DEFINE_string("out", "", "Folder that is written, which must not exist.")
    flags.DEFINE_enum("to", "plain", ("plain", "release", "hub"), "Format that is written.")
    flags.DEFINE_string("kind", "", f"What the source is, if unclear: {', '.join(KINDS)}.")
    flags.DEFINE_enum("part", "generator", ("generator", "encoder"), "Of a run's workdir.")
    flags.DEFINE_float("ema_decay", None, "Which average of a run; default: the config's.")
    flags.DEFINE_string("vae", "", "hub: what decodes latents for the picture: folder or hf://….")
    flags.DEFINE_string("license", "", "hub: the licence in the model card, such as apache-2.0.")


def read_source(
    source: str, *, kind: str = "", part: str = "generator", ema_decay: float | None = None
) -> Network:
    """Reads the network that the flags name.

    Args:
      source: workdir of a run, or what `load_network` takes.
      kind: of `load_network`.
      part: "generator" or "encoder" of a run.
      ema_decay: which moving average of a run; None for that of its config.

    Raises:
      UserError: there is no such network.
    """
    workdir = Path(source)
    if not _is_workdir(workdir):
        if part == "encoder" or ema_decay is not None:
            raise UserError(f"--part and --ema_decay are of a run's workdir; {source} is none")
        return load_network(source, kind=kind)
    if part == "encoder":
        return _encoder_of(workdir)
    run = load_run(workdir, ema_decay=ema_decay)
    config, data_spec = run.config, run.data_spec
    assert config is not None and data_spec is not None  # it is of a run
    params = transfer.fetch(run.params)
    params = params["generator"] if config.data.latent and run.makes_pixels else params
    model = build.make_generator(config, data_spec)
    return Network("generator", model, {"params": params}, run.step, run.ema_decay)


def _is_workdir(path: Path) -> bool:
    return (path / "config.json").is_file() and (path / "metrics.jsonl").is_file()


def _encoder_of(workdir: Path) -> Network:
    config = load_config(workdir)
    if "encoder" not in config:
        raise UserError(f"{workdir} is a run of task {config.task!r}, which has no encoder")
    (spec, _), mesh = data_identity.read_data_spec(workdir, config), meshes.make_mesh()
    step, params = read_trained(config, spec, mesh, workdir)
    decay = config.encoder.train.ema_decay
    model = build.make_encoder(config, spec)
    return Network("autoencoder", model, {"params": transfer.fetch(params)}, step, decay)


def write_network(out: Path, network: Network, *, to: str) -> None:
    """Writes a network in the format `to`, "plain" or "release".

    Raises:
      UserError: the folder exists, or the release has no format for such a network.
    """
    check_new(out)
    if to == "plain":
        save_network(out, network)
    elif release.has_format(network.model):
        release.write_artifact(
            out,
            network.model,
            network.variables["params"],
            step=network.step,
            ema_decay=network.ema_decay,
        )
    else:
        raise UserError(
            "the release's format holds generators (DiT) and autoencoders; this is a "
            f"{network.kind} ({type(network.model).__name__}): use --to=plain"
        )


def _write_for_hub(values: Any, out: Path) -> None:
    """Writes the generator or policy that the flags name as a folder for the Hub."""
    check_new(out)
    source = Path(values.source)
    workdir = source if _is_workdir(source) else None
    if values.part != "generator" or values.kind not in ("", "generator"):
        raise UserError("--to=hub holds generators: use --to=plain for other networks")
    if (task := module_of(values.source, "write_for_hub")) is not None:
        if values.vae or values.kind:
            raise UserError("--vae and --kind are for generators of images")
        decay, name = values.ema_decay, values.license
        print(task.write_for_hub(values.source, out, ema_decay=decay, license_name=name))
        return
    if workdir is not None:
        generator = load_run(workdir, ema_decay=values.ema_decay, vae=values.vae)
    elif values.ema_decay is not None:
        raise UserError(f"--ema_decay is of a run's workdir; {source} is none")
    else:
        generator = load_generator(values.source, vae=values.vae)
    write_hub_folder(out, generator, workdir=workdir, license_name=values.license)
    print(f"generator of step {generator.step}: {out}; README.md there is its model card")


def main(_: Sequence[str]) -> None:
    """Lists the tensors of a file, or converts a network and prints its kind and step."""
    values = flags.FLAGS
    if bool(values.list) == bool(values.source) or bool(values.source) != bool(values.out):
        raise UserError("expected either --list, or --source and --out")
    if values.to != "hub" and (values.vae or values.license):
        raise UserError("--vae and --license go with --to=hub")
    if values.list:
        print(files.list_tensors(files.fetch(values.list)))
        return
    check_devices()
    if values.to == "hub":
        _write_for_hub(values, Path(values.out))
        return
    network = read_source(
        values.source, kind=values.kind, part=values.part, ema_decay=values.ema_decay
    )
    write_network(Path(values.out), network, to=values.to)
    print(f"{network.kind} of step {network.step}: {values.out}")


def cli() -> None:
    """Entry point of `drifting-convert`."""
    define_flags()
    run_program(main)


if __name__ == "__main__":
    cli()
