"""A run that draws from its whole data set: what it loads, refuses, saves, and how it goes on."""

import functools

import jax
import numpy as np
import pytest
import tiny_run

from drifting_jax.data.in_memory import ArraySource
from drifting_jax.data.sources import make_source, spec_of
from drifting_jax.data.transforms import UnreadableImage
from drifting_jax.data.unlabelled import UnlabelledSource
from drifting_jax.distributed import meshes
from drifting_jax.errors import UserError
from drifting_jax.training import build, dataset, frozen, initial_states, programs
from drifting_jax.training.program import carry_of
from drifting_jax.workdir.checkpoint import Checkpoints

ONE_GROUP = {
    "data__labels": False,
    "queue__kind": "dataset",
    "train__labels_per_step": 1,
    "train__generated_per_label": 8,
    "train__positives_per_label": 8,
    "train__unconditional_per_label": 0,
    "optim__warmup_steps": 1,
}


@functools.cache
def started(**changes):
    """Program, frozen encoder and data set of a tiny run."""
    config = tiny_run.config(**ONE_GROUP | changes)
    source, mesh = make_source(config.data, "train"), build.make_mesh(config)
    spec = spec_of(source)
    program = programs.generator_program(config, spec, mesh)
    encoder = jax.jit(lambda: initial_states.init_encoder(config, spec).params)()
    variables, *_ = frozen.place_networks(
        config, encoder, frozen.load_pretrained(config, spec), mesh
    )
    return program, variables, dataset.load(source, mesh)


def after(carry, steps, **changes):
    program, variables, batch = started(**changes)
    for _ in range(steps):
        carry, report = program.step(carry, variables, batch)
    return carry, report


def assert_same(found, expected):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), jax.device_get(expected))


def test_a_resumed_run_has_the_same_bits_and_saves_its_places_alone(tmp_path):
    program, _, batch = started()
    for name, x in batch.items():
        shape = program.batch[name]
        assert (x.shape, x.dtype, x.sharding) == (shape.shape, shape.dtype, shape.sharding)
    half, _ = after(program.first_carry(), 2)
    items = program.checkpoint_items(half, 2)
    assert [x.shape for x in jax.tree.leaves(items["queue"])] == [(2,), (2,)]
    assert np.asarray(items["queue"].slot).tolist() == [16, 0]
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(2, items)
    expected, _ = after(half, 2)
    with Checkpoints(tmp_path, keep=1, read_only=True) as checkpoints:
        template = program.checkpoint_items(program.carry, 0)
        _, items = checkpoints.restore_latest(template, padded=("queue",))
    assert_same(after(carry_of(items), 2)[0], expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"data__labels": True, "train__labels_per_step": 4, "train__microbatches": 2},
        {"train__shared_statistics": "previous", "train__microbatches": 4},
        {"drift__negatives": "stale", "train__microbatches": 4},
    ],
    ids=("classes", "previous", "stale"),
)
def test_runs_with_classes_and_with_what_a_step_leaves_to_the_next(changes):
    """A step in microbatches draws the same samples as one in a single piece."""
    found = []
    for microbatches in (changes["train__microbatches"], 1):
        of_run = changes | {"train__microbatches": microbatches}
        program, variables, batch = started(**of_run)
        carry = program.first_carry()
        if program.prepare is not None:
            carry = program.prepare(carry, variables, batch)
        carry, report = after(carry, 2, **of_run)
        found.append(jax.device_get((carry.queue, report.metrics)))
    (queue, metrics), (expected, wanted) = found
    assert_same(queue, expected)
    for name, x in wanted.statistics.items():
        scale = metrics.statistics[name].distance_scale
        np.testing.assert_allclose(scale, x.distance_scale, rtol=1e-4, err_msg=name)


def source(count=7, dead=()):
    class Source(ArraySource):
        def __getitem__(self, index):
            if index in dead:
                raise UnreadableImage("torn")
            return super().__getitem__(index)

    images = np.arange(count, dtype=np.uint8)[:, None, None, None].repeat(2, 1).repeat(2, 2)
    return Source(images, np.arange(count) % 3, ["a", "b", "c"])


def test_the_data_set_is_sorted_by_label_on_every_device():
    mesh = meshes.make_mesh(4)
    found = dataset.load(source(), mesh)
    assert found["label"].tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert np.asarray(found["image"])[:, 0, 0, 0].tolist() == [0, 3, 6, 1, 4, 2, 5]
    assert found["image"].sharding.is_fully_replicated and len(found["image"].devices()) == 4


def test_a_source_without_labels_is_one_class_in_the_same_order():
    found, labelled = UnlabelledSource(source()), source()
    assert (found.num_classes, found.class_names, len(found)) == (1, ["unlabelled"], 7)
    for i in range(7):
        np.testing.assert_array_equal(found[i]["image"], labelled[i]["image"])
        assert found[i]["label"] == found.labels[i] == 0
    digits = tiny_run.config(data__labels=False).data
    assert spec_of(make_source(digits, "train")).num_classes == 1
    assert make_source(digits, "train", labels=True).num_classes == 10


def test_images_that_cannot_be_read_are_named():
    with pytest.raises(UserError, match="2 of 7 cannot be read, such as record 2: torn; remove"):
        dataset.load(source(dead=(2, 5)), meshes.make_mesh(1))


def test_a_data_set_that_does_not_fit_is_refused_in_one_line(monkeypatch):
    mesh, spec = meshes.make_mesh(1), spec_of(source())
    pages = {"SC_PAGE_SIZE": 8, "SC_PHYS_PAGES": 7}
    monkeypatch.setattr(dataset.os, "sysconf", pages.get)
    dataset.check_fits(spec, mesh)  # 7·(4 + 4) bytes
    pages["SC_PHYS_PAGES"] = 6
    dataset.check_fits(spec, mesh, held=1)  # a step that is assembled on a CPU, for a dry run
    refused = r"all 7 images .* use config\.queue\.kind='class'"
    with pytest.raises(UserError, match=refused) as found:
        dataset.check_fits(spec, mesh)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train__nearest_positives": 2}, "nearest_positives needs features of the samples"),
        ({"data__crop": "random_resized"}, "keeps one crop of each image"),
        ({"data__source": "imagenet", "data__latent": True}, "latents are drawn anew"),
    ],
    ids=lambda x: x if isinstance(x, str) else next(iter(x)),
)
def test_what_does_not_go_with_it(changes, message):
    with pytest.raises(UserError, match=message):
        tiny_run.config(**ONE_GROUP | changes)


def test_a_row_may_be_larger_than_the_rings_that_are_not_there():
    assert tiny_run.config(**ONE_GROUP, queue__per_class=2).queue.per_class == 2
    with pytest.raises(UserError, match=r"must be at most config\.queue\.per_class"):
        tiny_run.config(queue__per_class=2)
