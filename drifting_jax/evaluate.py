"""Measures a run, weights or images: `python -m drifting_jax.evaluate --workdir=runs/digits`.

    … reference --images=/data/imagenet --image_size=256 --out=ref.npz
    … --workdir=runs/imagenet_latent --reference=ref.npz --cfg_scales=1,1.5,2 --seeds=0,1,2
    … --weights=FOLDER --vae=hf://… --reference=ref.npz
    … --images=samples.npz --reference=ref.npz

Of runs of small images (digits, MNIST, CIFAR-10) the test split and a small classifier are the
measure, and no weights are needed. Everything else is measured as the field does: FID, sFID,
Inception Score, KID, precision, recall, density, coverage, and the Fréchet distance of DINOv2's
features. Goes on where it was stopped. Writes figures.jsonl, figures.txt and report.html.
"""

import dataclasses
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags

from drifting_jax.commands.command_line import exit_status, run_program
from drifting_jax.commands.evaluate_flags import (
    REFERENCE,
    SMALL,
    SUBJECTS,
    check_flags,
    define_flags,
    numbers,
    settings_of,
)
from drifting_jax.config import load_config
from drifting_jax.data.sources import SMALL_SOURCES
from drifting_jax.digests import digest_values
from drifting_jax.distributed import meshes, processes
from drifting_jax.distributed.agreement import on_all_processes, require_same
from drifting_jax.errors import UserError
from drifting_jax.evaluation import evaluator, measurement, pages, reference, small_runs
from drifting_jax.evaluation.features.array_images import ArrayImages
from drifting_jax.evaluation.features.extractors import Extractor, load_extractor
from drifting_jax.evaluation.features.image_sets import open_images
from drifting_jax.evaluation.measurement import EvaluationSetup, SampleSet
from drifting_jax.steps.generator import Generator, Run
from drifting_jax.training.restore import load_generator, load_run
from drifting_jax.workdir.interruption import Interruption
from drifting_jax.workdir.lock import locked_by_main_process
from drifting_jax.workdir.stopping import StopAgreement

_OF_DINOV2 = "fd_dinov2"


def main(argv: Sequence[str]) -> int:
    """Measures what the flags name."""
    values = flags.FLAGS
    if argv[1:] not in ([], ["reference"]):
        raise UserError(f"expected flags alone, or the word reference; found {argv[1]}")
    processes.initialize(
        coordinator_address=values.coordinator,
        num_processes=values.num_processes,
        process_id=values.process_id,
    )
    try:
        with Interruption(
            soon="keeping what is done and stopping after this batch"
        ) as interruption:
            stops = StopAgreement(interruption)
            if argv[1:]:
                _make_reference(values, stops)
            else:
                _measure(values, stops)
            if interruption.exit_status and processes.is_main_process():
                print("stopped; the same command goes on", file=sys.stderr)
            return interruption.exit_status
    except BaseException as error:
        processes.end_soon(exit_status(error) if isinstance(error, UserError | OSError) else 1)
        raise


def _measure(values: Any, stops: StopAgreement) -> None:
    given = [name for name in SUBJECTS if values[name].value]
    if len(given) != 1:
        found = " and ".join(given) or "none"
        raise UserError(f"expected one of --workdir, --weights and --images; found {found}")
    if values.workdir and load_config(Path(values.workdir)).data.source in SMALL_SOURCES:
        _measure_small(values, stops)
        return
    check_flags(values, given[0])
    out = _folder(values)
    ready = _ready(values, stops, out)  # what is refused leaves no folder
    out.mkdir(parents=True, exist_ok=True)
    with locked_by_main_process(out):
        _measure_images(values, stops, ready)


def _folder(values: Any) -> Path:
    if values.out:
        return Path(values.out)
    return Path(values.workdir) / "evaluation" if values.workdir else Path("evaluation")


def _generator(values: Any) -> Generator | None:
    if values.workdir:
        return load_run(
            Path(values.workdir), ema_decay=values.ema_decay, vae=values.vae, step=values.step
        )
    return load_generator(values.weights, vae=values.vae) if values.weights else None


@dataclasses.dataclass(frozen=True)
class _Ready:
    """All that is read before anything is made: subjects, their generator, the bench, notes."""

    subjects: Sequence[SampleSet]
    generator: Generator | None
    bench: EvaluationSetup
    notes: Sequence[str]


def _ready(values: Any, stops: StopAgreement, out: Path) -> _Ready:
    generator = _generator(values)
    extractors, notes = _same_extractors(values)
    bench = _bench(values, stops, extractors, out)
    if values.reference:
        found = reference.read_reference(Path(values.reference))
        reference.check_weights(found, extractors)
        if found.images is not None:
            measurement.check_count(ArrayImages(found.images))
        bench = dataclasses.replace(bench, reference=found)
    if generator is not None:
        generator.check_makes_pixels()
    subjects = _subjects(values, generator)
    for subject in subjects:
        measurement.check_count(subject.images)
    return _Ready(subjects, generator, bench, notes)


def _measure_images(values: Any, stops: StopAgreement, ready: _Ready) -> None:
    """Measures what is not measured yet, and writes the page."""
    bench, subjects = ready.bench, ready.subjects
    if bench.reference is not None:
        complete = measurement.complete_reference(bench, bench.reference)
        if complete is None:
            return
        bench = dataclasses.replace(bench, reference=complete)
    found = measurement.measure_all(bench, subjects)
    if found is None:
        return
    protocol = _protocol(bench, subjects)
    pictures = pages.class_grids(subjects)
    neighbors, told = _neighbors(values, bench, subjects, ready.generator)
    if processes.is_main_process():
        records, further = found
        table = pages.write_report(
            bench,
            records,
            [*ready.notes, *further, *told, *_other_sizes(protocol)],
            name=values.workdir or values.weights or values.images,
            protocol=protocol,
            pictures=pictures,
            neighbors=neighbors,
        )
        print(f"{table}\n\nreport: {bench.out / pages.REPORT_FILE}")
        if not values.keep_features:
            shutil.rmtree(bench.out / "reference", ignore_errors=True)


def _other_sizes(protocol: dict[str, str]) -> list[str]:
    """A note where samples and reference are of different sizes."""
    if not (theirs := protocol.get("reference: image size")):
        return []
    return [
        f"the images are {protocol['image size']}, those of the reference {theirs}: published "
        "figures compare images of one size"
    ]


def _same_extractors(values: Any) -> tuple[list[Extractor], list[str]]:
    """`_extractors`, which must be the same in all processes."""
    found = on_all_processes(_extractors, values)
    digest = digest_values([extractor.digest for extractor in found[0]])
    require_same(
        digest.encode(),
        "has other weights than process 0: put the same files on all machines",
    )
    return found


def _extractors(values: Any) -> tuple[list[Extractor], list[str]]:
    """The networks that the figures need, and why one is left out."""
    settings = settings_of(values)
    found, notes = [], []
    if settings.kinds - {"dinov2"}:
        found.append(load_extractor("inception", values.inception, flag="--inception"))
    if "dinov2" in settings.kinds:
        try:
            found.append(load_extractor("dinov2", values.dinov2, flag="--dinov2"))
        except UserError as error:
            if values.figures or values.dinov2:
                raise
            notes.append(f"{_OF_DINOV2} and nearest training images were left out: {error}")
    return found, [*notes, *(extractor.warning for extractor in found if extractor.warning)]


def _bench(
    values: Any, stops: StopAgreement, extractors: Sequence[Extractor], out: Path
) -> EvaluationSetup:
    mesh = meshes.make_mesh()
    return EvaluationSetup(
        out=out,
        extractors=extractors,
        settings=settings_of(values),
        reference=None,
        mesh=mesh,
        batch_size=values.batch_size * mesh.size,
        keep_features=values.keep_features,
        is_main_process=processes.is_main_process(),
        stopped=stops,
    )


def _subjects(values: Any, generator: Generator | None) -> list[SampleSet]:
    if generator is None:
        images = open_images(values.images, split=values.split, size=values.image_size)
        return [SampleSet(images, {"alpha": None, "seed": None})]
    config = generator.config if isinstance(generator, Run) else None
    return measurement.generated_subjects(
        generator,
        count=values.num_samples,
        cfg_scales=numbers(values.cfg_scales, float, "cfg_scales")
        or (list(config.eval.cfg_scales) if config else [1.0]),
        seeds=numbers(values.seeds, int, "seeds") or [config.seed if config else 0],
    )


def _protocol(bench: EvaluationSetup, subjects: Sequence[SampleSet]) -> dict[str, str]:
    """How the figures were made, in words by name."""
    first = subjects[0]
    found = dict(evaluator.protocol_of(bench.extractors, bench.settings, first.images))
    if "weights" in first.facts:
        count, classes = len(first.images), len(first.images.class_names)
        seeds = sorted({subject.facts["seed"] for subject in subjects})
        found |= {
            "images": f"{count} samples for each alpha and seed, one network evaluation each",
            "label law": f"balanced: {count / classes:g} of each of {classes} classes",
            "seeds": ", ".join(map(str, seeds)),
            "generator": f"step {first.facts['step']}, average of decay "
            f"{first.facts['ema_decay']:g}, weights {first.facts['weights']}",
        }
    if bench.reference is not None:
        for name, words in bench.reference.protocol.items():
            if found.get(name) != words:
                found[f"reference: {name}"] = words
    return found | {"devices": f"{bench.mesh.size} {bench.mesh.devices.flat[0].device_kind}"}


def _neighbors(values: Any, bench: EvaluationSetup, subjects: Sequence[SampleSet], generator):
    """Nearest training images of some samples, and why there are none."""
    found = [e for e in bench.extractors if e.name == "dinov2"]
    config = generator.config if isinstance(generator, Run) else None
    folder = values.training_images or (config.data.path if config else "")
    if generator is None:
        return None, []
    if not found:
        told = ["nearest training images need fd_dinov2 among --figures"]
        return None, told if values.training_images else []
    if jax.process_count() > 1:
        return None, ["nearest training images are looked for by a single process alone"]
    if not folder or (config and config.data.latent and not values.training_images):
        return None, ["nearest training images were left out: no --training_images"]
    try:
        near = pages.nearest_training_images(bench, subjects[0], found[0], Path(folder))
        return near, [] if near else ["nearest training images were left out: stopped"]
    except UserError as error:
        return None, [f"nearest training images were left out: {error}"]


def _make_reference(values: Any, stops: StopAgreement) -> None:
    if not values.images or not values.out.endswith(".npz"):
        raise UserError("reference: expected --images=FOLDER and --out=FILE.npz")
    check_flags(values, REFERENCE)
    path = Path(values.out)
    extractors, notes = _same_extractors(values)
    folder = path.with_suffix(".parts")
    bench = _bench(values, stops, extractors, folder)
    images = open_images(values.images, split=values.split, size=values.image_size)
    measurement.check_count(images)
    folder.mkdir(parents=True, exist_ok=True)
    with locked_by_main_process(folder):
        found = measurement.measure_reference(bench, images, keep=values.keep)
        if found is None or not processes.is_main_process():
            return
        reference.write_reference(path, found)
        if not values.keep_features:
            shutil.rmtree(folder, ignore_errors=True)
    for name, words in found.protocol.items():
        print(f"{name}: {words}")
    print("\n".join([*notes, f"reference: {path}"]))


def _measure_small(values: Any, stops: StopAgreement) -> None:
    """A run of small images: its own classifier and test split."""
    check_flags(values, SMALL)
    workdir = Path(values.workdir)
    run = load_run(workdir, ema_decay=values.ema_decay, step=values.step)
    scales = numbers(values.cfg_scales, float, "cfg_scales") or list(run.config.eval.cfg_scales)
    seeds = numbers(values.seeds, int, "seeds") or [run.config.seed]
    found = small_runs.evaluate_run(
        run,
        workdir=workdir,
        seeds=seeds,
        cfg_scales=scales,
        report=lambda table: print(table + "\n"),
        stopped=stops,
    )
    if found is not None and processes.is_main_process():
        for seed in seeds:
            print(f"figures: {small_runs.figures_path(run, workdir, seed, scales)}")
        print(f"report: {small_runs.page_path(run, workdir, seeds, scales)}")


def cli() -> None:
    """Entry point of `drifting-evaluate`."""
    define_flags()
    run_program(main, words=1, flags_of=define_flags.__module__)


if __name__ == "__main__":
    cli()
