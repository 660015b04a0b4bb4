"""A page that shows a trained run: `python -m drifting_jax.demo --workdir=runs/digits_quick`.

Or published weights, with nothing trained: `--weights=FOLDER`. Needs the extra `demo`.

The page offers a class, the guidance scale α, the number of samples, the seed and the average of
the weights, and says how long its pictures took. A toy shows its points during training, and fresh
ones. It listens on this machine alone unless --host names another address, serves no file of the
machine but its own pictures, and loads nothing from elsewhere.
"""

import signal
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from absl import flags

from drifting_jax.commands.command_line import run_program
from drifting_jax.commands.generator_choice import define_source_flags
from drifting_jax.config import ConfigDict, load_config
from drifting_jax.demonstration import server
from drifting_jax.demonstration.image_page import image_page
from drifting_jax.demonstration.points import PointsShow
from drifting_jax.demonstration.points_page import points_page
from drifting_jax.demonstration.studio import Studio
from drifting_jax.errors import UserError
from drifting_jax.surroundings import check_devices
from drifting_jax.training.restore import load_generator, load_run
from drifting_jax.training.tasks import hint_of
from drifting_jax.training.toy import load_toy, read_frames
from drifting_jax.weights import own_folders
from drifting_jax.weights.files import fetch
from drifting_jax.weights.reading import read_json
from drifting_jax.workdir.interruption import EXIT_INTERRUPTED, EXIT_RESUMABLE

_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_SHOWN = ("generator", "toy")  # tasks
_REFUSED = ("policy", "pairs")  # tasks that have folders of weights too
_SHOWN_WORDS = " and ".join(map(repr, _SHOWN))


def define_flags() -> None:
    """Registers the command line's flags."""
    define_source_flags()
    flags.DEFINE_string("host", "127.0.0.1", "Address to listen on; 0.0.0.0 for all.")
    flags.DEFINE_integer("port", 7860, "Port to listen on.", lower_bound=1, upper_bound=65535)


def main(_: Sequence[str]) -> None:
    """Loads, builds the page, and serves it until Ctrl-C."""
    values = flags.FLAGS
    if bool(values.workdir) == bool(values.weights):
        raise UserError("expected one of --workdir and --weights")
    server.check_address(values.host, values.port)
    workdir = Path(values.workdir) if values.workdir else None
    config = None if workdir is None else _config_of(workdir, values.vae)
    if values.weights:
        _check_weights(values.weights)
    # Both leave through the context below, which removes the files.
    signal.signal(signal.SIGINT, lambda *_: sys.exit(EXIT_INTERRUPTED))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_RESUMABLE))
    with tempfile.TemporaryDirectory(prefix="drifting_demo_", ignore_cleanup_errors=True) as name:
        folder = Path(name).resolve()
        gradio = server.import_gradio(folder)
        check_devices()
        if workdir is None or config is None:
            page = _page_of_weights(gradio, values.weights, values.vae, folder)
        else:
            page = _page_of_run(gradio, workdir, config, values.vae, folder)
        address = server.serve(
            page, host=values.host, port=values.port, folder=folder, secret=workdir
        )
        if values.host not in _LOOPBACK:
            print(
                f"note: everyone who reaches {values.host} can use the page; it has no password",
                file=sys.stderr,
            )
        print(f"The page is at {address} until Ctrl-C", flush=True)
        threading.Event().wait()  # until a signal


def _config_of(workdir: Path, vae: str) -> ConfigDict:
    """The config of a run, read before anything that takes long or may not be installed.

    Raises:
      UserError: there is no run, or none that the page can show.
    """
    config = load_config(workdir)
    if config.task not in _SHOWN:
        raise UserError(
            f"{workdir} is a run of task {config.task!r}; the page shows {_SHOWN_WORDS}"
            f"{hint_of(config.task)}"
        )
    if config.task == "toy" and vae:
        raise UserError("--vae is for generators of latents; a toy makes points: leave it out")
    return config


def _check_weights(name: str) -> None:
    """Raises UserError if a folder of ours holds another network than the page can show."""
    folder = fetch(name)
    files = own_folders.files_of(folder) if folder.is_dir() else None
    kind = None if files is None else read_json(files[0]).get("network")
    if kind in _REFUSED:
        raise UserError(f"{name} is of task {kind!r}; the page shows {_SHOWN_WORDS}{hint_of(kind)}")


def _page_of_weights(gradio: ModuleType, name: str, vae: str, folder: Path) -> Any:
    """The page of weights without a run."""
    title = name if "://" in name else Path(name).resolve().name
    return image_page(gradio, Studio(load_generator(name, vae=vae)), title=title, folder=folder)


def _page_of_run(
    gradio: ModuleType, workdir: Path, config: ConfigDict, vae: str, folder: Path
) -> Any:
    """The page of a run of this config."""
    title = workdir.resolve().name
    if config.task == "toy":
        show = PointsShow(load_toy(workdir), read_frames(config, workdir))
        return points_page(gradio, show, workdir / "drift.gif", title=title, folder=folder)
    generator = load_run(workdir, vae=vae)
    studio = Studio(
        generator,
        averages=config.train.ema_decays,
        load_average=lambda decay: load_run(workdir, ema_decay=decay, vae=vae, step=generator.step),
    )
    return image_page(gradio, studio, title=title, folder=folder)


def cli() -> None:
    """Entry point of `drifting-demo`."""
    define_flags()
    run_program(main)


if __name__ == "__main__":
    cli()
