"""Where the time of a compiled GPU program goes, by the limits of the device.

    pip install -e ".[gpu-compile]"
    python benchmarks/roofline.py --config=configs/digits.py --gpu=h100
    python benchmarks/roofline.py --config=configs/imagenet_latent.py:ablation --gpu=h100 --alone
    python benchmarks/roofline.py --hlo=program.hlo --gpu=h100

The program is the step of a config, which is compiled here without a GPU, or a file of
`compiled.as_text()`. The script prints the sums, the parts of the model by the names that Flax and
JAX give to operations, and the kernels that take longest. Loops count with their trips. With
--alone it compiles the drifting loss and its gradient for given features instead of the step: what
the method itself costs, in all passes over the microbatches of a step.
"""

import os
import re
from collections import Counter
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
from absl import app, flags

from drifting_jax.compiler import hlo, targets
from drifting_jax.compiler.gpus import GPUS
from drifting_jax.compiler.roofline import kernels_by_name, roofline
from drifting_jax.config import file_beside, resolve
from drifting_jax.data.sources import data_spec
from drifting_jax.method import feature_losses
from drifting_jax.training import build, compiled_report, dry_run, frozen

_CONFIG = flags.DEFINE_string("config", "configs/digits.py", "A config file and its variant.")
_GPU = flags.DEFINE_string("gpu", "h100", "A GPU, as in --topology.")
_HLO = flags.DEFINE_string("hlo", "", "Text of a compiled program, in place of a config.")
_SAVE = flags.DEFINE_string("save", "", "Where to write the text of the compiled program.")
_ALONE = flags.DEFINE_bool("alone", False, "The drifting loss for given features.")
_TOP = flags.DEFINE_integer("top", 15, "Kernels that are listed.", lower_bound=0)


def loss_alone(config, mesh, device) -> tuple[list[str], int]:
    """Texts of the passes over the features of a microbatch, and the number of microbatches."""
    found, spec = dry_run.program(config, mesh), data_spec(config.data)
    extras, vae = frozen.expected_networks(config)
    function = build.make_feature_function(config, spec, extras=extras, vae=vae)
    samples = jax.ShapeDtypeStruct((1, *spec.image_shape), jnp.float32)
    shapes = jax.eval_shape(function, found.frozen, samples)
    t, options = config.train, build.drift_options(config)
    rows = t.labels_per_step // found.microbatches
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def features(count: int):
        return {
            name: jax.ShapeDtypeStruct((rows, count, *x.shape[1:]), x.dtype, sharding=everywhere)
            for name, x in shapes.items()
        }

    counts = t.generated_per_label, t.positives_per_label, t.unconditional_per_label
    groups = [features(count) for count in counts if count]
    scalar = jax.ShapeDtypeStruct((), jnp.float32, sharding=everywhere)

    def sums(*groups):
        return feature_losses.distance_sums(feature_losses.FeatureSets(*groups), options)

    def squares(scales, *groups):
        sets = feature_losses.FeatureSets(*groups)
        return feature_losses.drift_means(sets, scales, options)

    def loss(statistics, *groups):
        sets = feature_losses.FeatureSets(*groups)
        return feature_losses.loss_and_cotangents(sets, options, statistics)

    def text(function, *arguments) -> str:
        lowered = jax.jit(function).lower(*arguments)
        return compiled_report.compile_for(device, lowered).as_text()

    if found.microbatches == 1:
        return [text(loss, None, *groups)], 1
    _, _, statistics = jax.eval_shape(loss, None, *groups)
    statistics = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), statistics
    )
    passes = [
        text(sums, *groups),
        text(squares, dict.fromkeys(shapes, scalar), *groups),
        text(loss, statistics, *groups),
    ]
    return passes, found.microbatches


def part(name: str) -> str:
    """The module that an operation belongs to; blocks and stages of a kind count together."""
    name = re.sub(r"_?\d+", "", name)
    names = re.findall(r"\b(?:blocks?|stage\w*|encoder|attention\w*|feed_forward\w*)\b", name)
    return "/".join(dict.fromkeys(names)) or "outside the networks"


def main(_) -> None:
    """Prints the tables."""
    gpu, times = GPUS[_GPU.value.partition(":")[0]], 1
    if _HLO.value:
        texts = [Path(_HLO.value).read_text()]
    else:
        path, _, variant = _CONFIG.value.partition(":")
        module = file_beside(path, Path(path).name)
        config = resolve(module.get_config(variant) if variant else module.get_config())
        mesh = build.make_mesh(config, devices=targets.devices_of(_GPU.value))
        device = mesh.devices.flat[0]
        if _ALONE.value:
            texts, times = loss_alone(config, mesh, device)
        else:
            lowered = dry_run.program(config, mesh).lower()
            texts = [compiled_report.compile_for(device, lowered).as_text()]
    if _SAVE.value:
        Path(_SAVE.value).write_text("\n\n".join(texts))
    modules = [hlo.parse(text) for text in texts]
    found = [roofline(module, gpu) for module in modules]
    for field in ("kernels", "flops", "num_bytes", "bound", "plausible"):
        print(f"{field:<12}{times * sum(getattr(one, field) for one in found):14.6g}")
    seconds, rows = Counter(), []
    for module in modules:
        for name, kernel in kernels_by_name(module):
            spent = times * kernel.times * kernel.seconds(gpu)
            seconds[part(name)] += spent
            rows.append((spent, kernel, name))
    print("\nms of the bound, by part")
    for name, spent in seconds.most_common():
        print(f"{1e3 * spent:10.3f}  {name}")
    print("\nms    launches       MB    kernel")
    for spent, kernel, name in sorted(rows, key=lambda row: -row[0])[: _TOP.value]:
        size = kernel.num_bytes / 1e6
        launches = times * kernel.times
        print(f"{1e3 * spent:8.3f} {launches:6} {size:10.1f}  {kernel.kind[:24]:<24} {name[-80:]}")


if __name__ == "__main__":
    app.run(main)
