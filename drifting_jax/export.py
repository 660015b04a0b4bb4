"""Writes a sampler that needs no drifting_jax: `python -m drifting_jax.export --workdir=… --out=…`.

    python -m drifting_jax.export --workdir=runs/digits_quick --out=sampler
    python sampler/sample.py --classes=3,7 --per_class=8 --out=samples.png

Or of weights without a run: `--weights=FOLDER`. The folder samples with JAX alone, on a CPU, a GPU
or a TPU; with the extra `onnx` it also holds the network as ONNX. A policy becomes a folder that
acts (`policy.py` in it), a generator of pairs one that takes conditions.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from drifting_jax.commands.command_line import run_program
from drifting_jax.commands.exporting import export_generator
from drifting_jax.commands.generator_choice import (
    check_source,
    chosen_generator,
    define_average_flags,
    define_source_flags,
)
from drifting_jax.errors import UserError
from drifting_jax.files import check_new
from drifting_jax.surroundings import check_devices
from drifting_jax.training.tasks import module_of


def define_flags() -> None:
    """Registers the command line's flags."""
    define_source_flags()
    define_average_flags()
    flags.DEFINE_string("out", "", "Folder that is written, which must not exist.")


def main(_: Sequence[str]) -> None:
    """Loads, exports, and says what was written."""
    values = flags.FLAGS
    if not values.out:
        raise UserError("expected --out, the folder that is written")
    check_new(Path(values.out))
    check_source(values)
    name = values.workdir or values.weights
    if (task := module_of(name, "export")) is not None:
        if values.ema_sigma is not None or values.vae:
            raise UserError("--ema_sigma and --vae are for generators of images")
        check_devices()
        out = Path(values.out)
        print(task.export(name, out, ema_decay=values.ema_decay, step=values.step))
        return
    generator = chosen_generator(values)
    notes = export_generator(generator, Path(values.out))
    for note in notes:
        print(f"note: {note}")
    print(f"sampler of step {generator.step}: {values.out}; try python {values.out}/sample.py")


def cli() -> None:
    """Entry point of `drifting-export`."""
    define_flags()
    run_program(main)


if __name__ == "__main__":
    cli()
