"""Which encoder, which temperature? Answers before training.

    python -m drifting_jax.diagnose --config=configs/digits.py
    python -m drifting_jax.diagnose --config=configs/digits.py:quick --encoder=runs/digits_quick

Needs the data of the config, and takes an encoder from --encoder or config.encoder.path. Real
images of all classes stand in for generated samples. For each feature and temperature the command
measures how many positives the kernel sees, which samples it does not reach, and how far the drifts
by two draws of targets agree. It prints a table, and writes diagnosis.png and diagnosis.json.
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import config_flags

from drifting_jax.commands.command_line import run_program
from drifting_jax.config import ConfigDict, default_workdir, resolve
from drifting_jax.config.streams import stream_key
from drifting_jax.data.sources import Source, make_source, spec_of
from drifting_jax.distributed import meshes
from drifting_jax.errors import UserError
from drifting_jax.evaluation.diagnosis import measures, rows
from drifting_jax.evaluation.diagnosis.picture import diagnosis_picture
from drifting_jax.evaluation.diagnosis.summary import Diagnosis, record, report
from drifting_jax.files import write_bytes, write_json
from drifting_jax.method.fields.options import DriftOptions
from drifting_jax.surroundings import check_devices
from drifting_jax.training import build, data_identity, pixel_encoders
from drifting_jax.training.encoding import load_features

PICTURE_FILE, RECORD_FILE = "diagnosis.png", "diagnosis.json"
_GRID = ("0.02", "0.05", "0.1", "0.2", "0.5", "1")
_MOST_ROWS = 16


def define_flags() -> None:
    """Registers the command line's flags."""
    config_flags.DEFINE_config_file("config", help_string="Config file: PATH.py[:VARIANT].")
    flags.DEFINE_string("encoder", "", "Workdir or weights; default: config.encoder.path.")
    flags.DEFINE_list("temperatures", list(_GRID), "Further temperatures that are measured.")
    flags.DEFINE_enum(
        "generated",
        "",
        ("", *rows.STAND_INS),
        "What stands in for generated samples: real images of all classes, or means of two.",
    )
    flags.DEFINE_integer(
        "rows", 0, f"Class rows; 0: as the config, at most {_MOST_ROWS}.", lower_bound=0
    )
    flags.DEFINE_bool("per_feature", False, "Print every feature, in place of groups.")
    flags.DEFINE_string("out", "", "Folder to write; default: diagnose/<config>.")
    flags.mark_flag_as_required("config")


def main(argv: Sequence[str]) -> None:
    """Reads data and encoder, measures, prints and writes."""
    values = flags.FLAGS
    if argv[1:]:
        raise UserError(f"expected flags alone; found {' '.join(argv[1:])!r}")
    config = _config_of(values)
    options, chosen = _options_of(config, values.temperatures)
    check_devices()
    source = make_source(config.data, "train")
    print("\n".join(data_identity.describe_data(source)), flush=True)
    name = default_workdir(config_flags.get_config_filename(flags.FLAGS["config"])).name
    found = _diagnose(config, source, options, values)
    found = dataclasses.replace(found, title=name, chosen=chosen)
    out = Path(values.out or Path("diagnose") / name)
    out.mkdir(parents=True, exist_ok=True)
    print(f"\n{report(found, per_feature=values.per_feature)}\n", flush=True)
    write_json(out / RECORD_FILE, record(found))
    write_bytes(out / PICTURE_FILE, diagnosis_picture(found))
    if not config.encoder.path:
        print("note: name an encoder with --encoder=WORKDIR_OR_WEIGHTS to see its features")
    print(f"picture: {out / PICTURE_FILE}\nnumbers: {out / RECORD_FILE}")


def _config_of(values: Any) -> ConfigDict:
    """The config with the encoder that is diagnosed, and raw samples beside it."""
    config = resolve(values.config)
    if "encoder" not in config:
        raise UserError(f"a {config.task} has no encoder to diagnose; expected a config of images")
    if values.encoder:
        config.encoder.kind, config.encoder.path = "autoencoder", values.encoder
    config.features.raw = True
    build.check_choices(config)
    return config


def _options_of(
    config: ConfigDict, further: Sequence[str]
) -> tuple[DriftOptions, tuple[float, ...]]:
    """The options of the drift with all temperatures that are measured, and those of the config."""
    options = build.drift_options(config)
    if measures.kernel_of(options) is None:
        raise UserError(
            f"config.drift.field={options.field} has no kernel with a temperature: "
            "--config.drift.field=mean_shift diagnoses the encoder"
        )
    try:
        temperatures = [float(word) for word in further]
    except ValueError:
        temperatures = [math.nan]
    if not all(0 < temperature < math.inf for temperature in temperatures):
        raise UserError(
            f"--temperatures must be numbers above 0, such as 0.1,0.5; found {','.join(further)}"
        )
    chosen = tuple(options.temperatures)
    every = tuple(sorted({*chosen, *temperatures}))
    return dataclasses.replace(options, temperatures=every), chosen


def _diagnose(config: ConfigDict, source: Source, options: DriftOptions, values: Any) -> Diagnosis:
    """Measures all features on one device; the title is left empty."""
    mesh = meshes.make_mesh(1, 1, devices=jax.local_devices()[:1])
    function, variables = load_features(config, spec_of(source), mesh)
    key, t = stream_key(config, "diagnosis"), config.train
    of_classes, of_rows = jax.random.split(key)
    sizes = rows.row_sizes(
        np.asarray(source.labels),
        of_classes,
        rows=values.rows or min(t.labels_per_step, _MOST_ROWS),
        generated=t.generated_per_label,
        positives=t.positives_per_label,
        stand_in=values.generated,
    )
    for wanted, count, noun in (
        (t.positives_per_label, sizes.positives, "positives"),
        (t.generated_per_label, sizes.generated, "samples"),
    ):
        if count < wanted:
            print(f"note: {count} {noun} a draw in place of {wanted}: the data has no more images")
    images = [
        rows.draw_row(source, label, jax.random.fold_in(of_rows, label), sizes)
        for label in sizes.labels
    ]
    kernel = measures.kernel_of(options)
    assert kernel is not None
    extras = [choice.name for choice in pixel_encoders.choices(config)]
    return Diagnosis(
        title="",
        encoder=" and ".join(filter(None, (config.encoder.path, *extras))) or "no encoder",
        field=options.field,
        kernel=kernel,
        temperatures=options.temperatures,
        chosen=options.temperatures,
        sizes=sizes,
        features=measures.diagnose(
            function, variables, images, generated=sizes.generated, options=options
        ),
        extras=tuple(extras),
    )


def cli() -> None:
    """Entry point of `drifting-diagnose`."""
    define_flags()
    run_program(main, has_config=True)


if __name__ == "__main__":
    cli()
