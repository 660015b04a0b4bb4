"""One process of several that measure together, for test_evaluate_processes.py."""

import json
import sys
from pathlib import Path

import measuring as single
import numpy as np

from drifting_jax.distributed import processes
from drifting_jax.evaluation import measurement
from drifting_jax.evaluation.features.image_sets import open_images
from drifting_jax.evaluation.setup import SampleSet


def main(folder: Path, name: str) -> None:
    """Measures a set of a folder with all devices of all processes."""
    import jax

    is_main_process = jax.process_index() == 0
    setup = single.setup(
        folder / "together", devices=-1, batch_size=8, is_main_process=is_main_process
    )
    images = open_images(folder / name)
    found = measurement.measure_all(setup, [SampleSet(images, 1.0)])
    if is_main_process:
        (folder / "values.json").write_text(json.dumps(single.values(found)))
    again = measurement.measure_all(setup, [SampleSet(images, 1.0)])
    assert not is_main_process or again == found
    np.testing.assert_array_equal(jax.process_count(), 2)


if __name__ == "__main__":
    address, number, path, what = sys.argv[1:]
    processes.initialize(coordinator_address=address, num_processes=2, process_id=int(number))
    try:
        main(Path(path), what)
    except BaseException:
        processes.end_soon()
        raise
