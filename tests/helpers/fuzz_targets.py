"""What reads files of others or of a run, each with good files to damage."""

import functools
import io
import json
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import flax.serialization
import jax
import numpy as np
import tiny_config
import tiny_generator
import torch_files
from expert_planner import StraightPlanner
from fuzzing import Target
from imagenet_like import encoded, oddities, picture
from read_release import unpacked
from safetensors.numpy import save_file
from torch_generator import state_dict

from drifting_jax.commands import packing
from drifting_jax.config import base_config, load_config, resolve, save_config
from drifting_jax.control.environments.two_ways import TwoWays
from drifting_jax.control.measurement import Settings, measure, read_seed, summarize
from drifting_jax.data import transforms
from drifting_jax.data.facts import Skipped
from drifting_jax.data.file_list import FileList
from drifting_jax.data.journal import Journal
from drifting_jax.data.names import Names
from drifting_jax.data.records import open_records
from drifting_jax.data.shard_writer import ShardWriter
from drifting_jax.data.shards import ShardRecords
from drifting_jax.data.transforms import Augmentation, UnreadableImage
from drifting_jax.errors import UserError
from drifting_jax.evaluation.features.array_images import ArrayImages
from drifting_jax.evaluation.features.feature_store import FeatureStore
from drifting_jax.evaluation.measurement import measure_all
from drifting_jax.evaluation.reference import read_reference
from drifting_jax.files import read_json
from drifting_jax.models.calls import init_params
from drifting_jax.models.conditioned import ConditionedGenerator, ConditionedMLP
from drifting_jax.models.dit import DiT
from drifting_jax.pairs import folders as pair_folders
from drifting_jax.pairs.data import Pairs, read_pairs
from drifting_jax.pairs.facts import PairFacts, facts_of
from drifting_jax.pairs.generator import load_pairs
from drifting_jax.policy.demonstrations import read_demonstrations
from drifting_jax.policy.folders import Weights, write_folder
from drifting_jax.policy.hub_folder import write_for_hub
from drifting_jax.policy.policy import load_policy
from drifting_jax.policy.scaling import Scalings
from drifting_jax.policy.windows import Horizons
from drifting_jax.steps.scaling import scaling_of
from drifting_jax.training import batch_log, data_identity
from drifting_jax.training.toy import read_frames
from drifting_jax.weights import files, own_folders
from drifting_jax.weights.networks import Network, load_network, save_network
from drifting_jax.weights.shapes import param_shapes
from drifting_jax.workdir.metrics import MetricWriter, read_metrics
from drifting_jax.workdir.opening import is_complete
from drifting_jax.workdir.snapshots import read_averages, read_header, write_snapshot

TORCH = Path(__file__).parents[1] / "fixtures" / "torch"


@functools.cache
def make_targets() -> dict[str, Target]:
    """All targets by name."""
    return {**_weights(), **_networks(), **_runs(), **_data(), **_evaluations(), **_images()}


def _npz(**arrays: Any) -> bytes:
    data = io.BytesIO()
    np.savez(data, **arrays)
    return data.getvalue()


def _npy(array: np.ndarray) -> bytes:
    data = io.BytesIO()
    np.save(data, array)
    return data.getvalue()


def _content(folder: Path) -> dict[str, bytes]:
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def _made_by(write) -> dict[str, bytes]:
    """The files that a function writes into a folder."""
    folder = Path(tempfile.mkdtemp())
    try:
        write(folder)
        return _content(folder)
    finally:
        shutil.rmtree(folder)


def _weights() -> dict[str, Target]:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    tree = {"state_dict": {"w": torch_files.tensor(values, "0")}, "epoch": 3}
    header = {"w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}
    text = json.dumps(header).encode()
    safetensors = len(text).to_bytes(8, "little") + text + values.tobytes()
    index = json.dumps({"metadata": {}, "weight_map": {"w": "a.safetensors"}}).encode()
    contents = {
        "x.pth": {"x.pth": _made_by(lambda p: torch_files.write_zip(p / "x", tree))["x"]},
        "legacy": {"x.pth": torch_files.legacy_bytes(tree)},
        "x.safetensors": {"x.safetensors": safetensors},
        "x.npz": {"x.npz": _npz(w=values, n=np.int64(3))},
        "x.msgpack": {"x.msgpack": flax.serialization.msgpack_serialize({"a": {"w": values}})},
        "index": {"model.safetensors.index.json": index, "a.safetensors": safetensors},
    }

    def read(folder: Path) -> None:
        path = next(folder.glob("*.index.json"), None) or next(folder.iterdir())
        for use in (files.list_tensors, files.read_tensors):
            use(path)

    return {f"weights {name}": Target(data, read, (UserError,)) for name, data in contents.items()}


def _networks() -> dict[str, Target]:
    def ours(folder: Path, *, for_hub: bool = False) -> None:
        model = DiT(
            image_size=4,
            in_channels=3,
            out_channels=3,
            patch_size=2,
            width=8,
            depth=1,
            num_heads=2,
            num_classes=2,
        )
        shapes = param_shapes(model)
        params = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), shapes)
        network = Network("generator", model, {"params": params}, 3, 0.9, ("a", "b"), (1.0, 4.0))
        save_network(folder, network, for_hub=for_hub)

    def of_torch(folder: Path) -> None:
        model = tiny_generator.MODEL.clone(in_channels=3, out_channels=3)
        params = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), param_shapes(model))
        save_file(state_dict(model, params), folder / "model.safetensors")
        names = {"pos_embed": "position_embedding"}
        config = {"fields": {"num_heads": 2, "rope": True}, "names": names}
        (folder / "config.json").write_text(json.dumps(config))

    def artifact(folder: Path) -> None:
        unpacked("mae_latent", folder)

    def read(folder: Path) -> None:
        load_network(next(iter([*folder.glob("mae_latent"), folder])))

    found = {
        "ours": Target(_made_by(ours), read, (UserError,), fixed=("params.npz",)),
        "hub": Target(_made_by(functools.partial(ours, for_hub=True)), read, (UserError,)),
        "of torch": Target(_made_by(of_torch), read, (UserError,)),
        "artifact": Target(_made_by(artifact), read, (UserError,)),
    }
    for name in ("vae", "dinov2"):
        content = _content(TORCH / name)
        content = {n: x for n, x in content.items() if n.endswith((".safetensors", "config.json"))}
        found[name] = Target(content, read, (UserError,))
    return {f"network {name}": target for name, target in found.items()}


def _runs() -> dict[str, Target]:
    config = resolve(tiny_config.get_config())
    data = {"count": 3, "fingerprint": "", "image_shape": [8, 8, 1], "class_names": ["a", "b"]}
    lines = (
        b'{"stage": "toy", "step": 1, "loss": 0.5}\n{"stage": "toy", "step": 2, "loss": "NaN"}\n'
    )
    batches = (
        b'{"stage": "a", "batch": 0, "index": [1], "sha256": "x"}\n{"stage": "a", "batch": 1}\n'
    )
    walk = np.ones((5, 2), np.float32)
    scalings = Scalings(scaling_of(walk), scaling_of(walk))
    pairs = Pairs(walk, np.zeros((5, 2, 2, 1), np.uint8))
    digits = SimpleNamespace(data=SimpleNamespace(source="digits", path=""), train=config.train,
                             encoder=config.encoder, task="generator")  # fmt: skip

    def metrics(folder: Path) -> None:
        read_metrics(folder, stage="toy")
        with MetricWriter(folder) as writer:
            writer.truncate("toy", 1)

    def logs(folder: Path) -> None:
        batch_log.unreadable_records(folder, 1.0, 10)
        batch_log.BatchLog(folder, stage="a", start=1)

    def policy(folder: Path, *, for_hub: bool = True) -> None:
        model = ConditionedMLP(width=4, depth=1, condition_width=4, condition_depth=1)
        inputs = np.zeros((1, 1, 4, 2)), np.zeros((1, 2, 2))
        params = jax.device_get(init_params(model, jax.random.key(0), *inputs))
        write_folder(folder, Weights(model, params, Horizons(2, 4, 2), scalings, 3, 0.99))
        if not for_hub:
            record = read_json(folder / "config.json")
            shutil.rmtree(folder)
            own_folders.write(folder, record, params, for_hub=False)

    def of_pairs(folder: Path) -> None:
        inner = DiT(image_size=2, in_channels=1, out_channels=1, patch_size=1, width=8, depth=1,
                    num_heads=2, num_classes=1, num_style_books=0, condition_width=4)  # fmt: skip
        model = ConditionedGenerator(inner, width=4, depth=1)
        inputs = np.zeros((1, 1, 2, 2, 1)), np.zeros((1, 2))
        params = jax.device_get(init_params(model, jax.random.key(0), *inputs))
        pair_folders.write_folder(
            folder, pair_folders.Weights(facts_of(pairs), params, model, 3, 0.99)
        )

    def measured(folder: Path) -> None:
        policy(folder)
        part = dict.fromkeys(("energy_score", "error", "nearest", "spread"), 0.5)
        rollouts = {"environment": "x", "episodes": 2, "max_steps": 0, "success": 0.5,
                    "success_deviation": 0.1, "endings": {"done": 1.0}}  # fmt: skip
        found = {"step": 3, "ema_decay": 0.99, "training": part, "rollouts": [rollouts]}
        (folder / "evaluation.json").write_text(json.dumps(found))

    def snapshot(folder: Path) -> None:
        params = {"a": {"b": np.linspace(-1, 1, 6, dtype=np.float32)}}
        write_snapshot(folder, step=3, updates=3, averages={0.05: params, 0.1: params})

    return {
        "run config.json": Target(
            _made_by(lambda folder: save_config(folder, config)),
            lambda folder: resolve(load_config(folder)),
            (UserError,),
        ),
        "run data.json": Target(
            {"data.json": json.dumps(data).encode()},
            lambda folder: data_identity.read_data_spec(folder, digits),
            (UserError,),
        ),
        "run data.json again": Target(
            {"data.json": json.dumps(data).encode()},
            lambda folder: data_identity.open_source(digits, folder),
            (UserError,),
        ),
        "run data.json of a policy": Target(
            {"data.json": json.dumps({"scaling": scalings.record()}).encode()},
            lambda folder: Scalings.from_record(
                read_json(folder / "data.json").get("scaling"), "data.json"
            ),
            (UserError,),
        ),
        "run pairs": Target(
            {"pairs.npz": _npz(condition=pairs.conditions, image=pairs.images)},
            lambda folder: read_pairs(str(folder / "pairs.npz")),
            (UserError,),
        ),
        "run data.json of pairs": Target(
            {"data.json": json.dumps(facts_of(pairs).record()).encode()},
            lambda folder: PairFacts.from_record(read_json(folder / "data.json"), "data.json"),
            (UserError,),
        ),
        "run folder of pairs": Target(_made_by(of_pairs), load_pairs, (UserError,)),
        "run policy": Target(_made_by(policy), load_policy, (UserError,)),
        "run policy plain": Target(
            _made_by(functools.partial(policy, for_hub=False)), load_policy, (UserError,)
        ),
        "run metrics of a policy": Target(
            _made_by(measured),
            lambda folder: write_for_hub(
                str(folder), folder / "out", ema_decay=None, license_name=""
            ),
            (),
            fixed=("config.json", "model.safetensors"),
        ),
        "run demonstrations": Target(
            {"demos.npz": _npz(observations=walk, actions=walk, episode_ends=np.array([2, 5]))},
            lambda folder: read_demonstrations(str(folder / "demos.npz")),
            (UserError,),
        ),
        "run metrics.jsonl": Target({"metrics.jsonl": lines}, metrics, (UserError,)),
        "run logs": Target(
            {"batches_0.jsonl": batches, "unreadable_0.jsonl": b'{"index": 3, "name": "x"}\n'},
            logs,
            (UserError,),
        ),
        "run frames": Target(
            {"frames/00000000.npy": _npy(np.ones((3, 2), np.float32))},
            lambda folder: read_frames(resolve(base_config("toy")), folder),
            (UserError,),
        ),
        "run snapshot": Target(
            _made_by(snapshot),
            lambda folder: (read_header(folder, 3), read_averages(folder, 3)),
            (UserError,),
        ),
        "run complete": Target(
            {"evaluation.json": b'{"step": 4}', "complete.json": b'{"step": 9}'},
            lambda folder: is_complete(config, folder),
            (),
        ),
    }


def _data() -> dict[str, Target]:
    def pictures(folder: Path) -> None:
        for i in range(4):
            path = folder / "train" / f"c{i % 2}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(picture(i, 9, 8), "PNG"))

    plan = {"format": "drifting_jax.images", "image_size": 0}

    def shards(folder: Path) -> None:
        pictures(folder / "in")
        records = open_records(folder / "in", "train")
        writer = ShardWriter(folder / "out", records, plan=plan, records_per_shard=2)
        writer.open()
        make = packing.shard_records(records, size=0, jpeg_quality=0, threads=1)
        packing.write_shards(writer, make, report=lambda count: None)
        writer.complete()
        shutil.rmtree(folder / "in")

    def cached(folder: Path) -> None:
        names = Names.of(["a/0.png", "b/1.png"])
        FileList(
            names=names,
            labels=np.array([0, 1], np.int32),
            class_names=Names.of(["a", "b"]),
            folders=Names.of(["", "a", "b"]),
            states=np.ones((3, 5), np.int64),
            skipped=(Skipped.of("hidden", [".x"]),),
        ).write(folder / "list.npz")

    def read_cached(folder: Path) -> None:
        found = FileList.read(folder / "list.npz")
        if found is not None:
            found.is_settled()
            found.is_current(folder)
            for i, name in enumerate(found.names):
                assert isinstance(name + found.class_names[int(found.labels[i])], str)
            assert isinstance(sum(entry.count for entry in found.skipped), int)

    def begun(folder: Path) -> None:
        pictures(folder)
        records = open_records(folder, "train")
        ShardWriter(folder / "out", records, plan=plan, records_per_shard=2).open()
        journal = Journal(folder / "out" / "00000.journal")
        journal.append(b"abc")
        journal.close()

    def read_shards(folder: Path) -> None:
        records = ShardRecords(folder / "out")
        for i in range(len(records)):
            records.name(i)
            records.read(i)

    def read_begun(folder: Path) -> None:
        records = open_records(folder, "train")
        writer = ShardWriter(folder / "out", records, plan=plan, records_per_shard=2)
        writer.open()
        list(writer.journal(0).records())

    made = {"shards": _made_by(shards), "cached list": _made_by(cached), "begun": _made_by(begun)}
    allowed = (UserError, UnreadableImage)
    return {
        "data shards": Target(made["shards"], read_shards, allowed),
        "data cached list": Target(made["cached list"], read_cached, allowed),
        "data begun": Target(
            made["begun"],
            read_begun,
            allowed,
            fixed=tuple(name for name in made["begun"] if name.startswith("train")),
        ),
    }


class NoImages:
    """A set of images that was measured."""

    digest, words = "s", "no images"

    def __len__(self) -> int:
        return 0


def _evaluations() -> dict[str, Target]:
    covariance = np.eye(3)
    reference = _npz(
        mu=np.zeros(3), sigma=covariance, features=np.ones((4, 3), np.float32),
        protocol=np.array(json.dumps({"a": 1})),
    )  # fmt: skip
    samples = _npz(arr_0=np.zeros((3, 4, 4, 3), np.uint8), arr_1=np.array([0, 1, 1]))
    record = {"figure": "fid", "value": 1.5, "alpha": 1.0, "seed": 0, "set": "s", "bench": "b"}
    last = {"notes": [], "figures": ["fid"], "left_out": 0, "set": "s", "bench": "b"}
    lines = "\n".join(map(json.dumps, (record, last))) + "\n"

    def read_samples(folder: Path) -> None:
        images = ArrayImages(folder / "x.npz")
        images.pick([0, len(images) - 1])

    def known(folder: Path) -> None:
        """Looks for known metrics; a set of no images cannot be measured anew."""
        settings = SimpleNamespace(metrics=("fid",), max_excluded=1.0)
        setup = SimpleNamespace(out=folder, digest="b", settings=settings, is_main_process=True)
        measure_all(setup, [SimpleNamespace(images=NoImages())])

    settings = Settings("two_ways", {"step": 1}, episodes=2, draw_every=0)

    def rollouts(folder: Path) -> None:
        measure(StraightPlanner((0, 0)), TwoWays, folder, settings=settings, seeds=[0], report=len)

    def read_rollouts(folder: Path) -> None:
        found = read_seed(folder, settings.identity(0))
        if found is not None:
            summarize({0: found})

    def store(folder: Path) -> None:
        FeatureStore(folder / "s", rows=3, widths={"pool": 2})

    return {
        "evaluation reference": Target(
            {"x.npz": reference}, lambda folder: read_reference(folder / "x.npz"), (UserError,)
        ),
        "evaluation samples": Target({"x.npz": samples}, read_samples, (UserError,)),
        "evaluation figures.jsonl": Target({"figures.jsonl": lines.encode()}, known, (UserError,)),
        "evaluation store": Target(_made_by(store), store, (UserError,)),
        "evaluation rollouts": Target(_made_by(rollouts), read_rollouts, ()),
    }


def _images() -> dict[str, Target]:
    small = picture(1, 40, 33)
    kinds = {
        kind: encoded(small, kind) for kind in ("PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG")
    }
    kinds["progressive"] = encoded(small, "JPEG", progressive=True)
    kinds["palette"] = encoded(small.convert("P"), "PNG")
    kinds |= oddities()

    def read(folder: Path) -> None:
        data = (folder / "x").read_bytes()
        random = Augmentation(crop="random_resized", flip=True)
        for decoder in transforms.DECODERS:
            transforms.load(data, 16, decoder=decoder)
            rng = np.random.default_rng(0)
            transforms.load(data, 16, augmentation=random, rng=rng, decoder=decoder)

    return {
        f"image {name}": Target({"x": data}, read, (UnreadableImage,))
        for name, data in kinds.items()
    }
