"""Inception features for metrics on a CPU: seconds an image, ours over torch-fidelity's.

    pip install -e .
    pip install torch==2.13.0 tqdm scipy pillow && pip install torch-fidelity==0.4.0 --no-deps
    python benchmarks/evaluation.py --side=256

torchvision is not needed: if it is missing, empty modules replace it, which the Inception extractor
never calls. Both get the same random weights and the same uint8 images, resize them to 299x299 and
return [b, 2048] to NumPy, with as many threads each, in an order that changes every round. The
benchmark prints the median milliseconds an image by wall clock and by CPU (which other programs
disturb less), the ratio of speeds (above 1 if ours is faster), the FLOPs of an image beside the
rate of a large matrix product, and the peak of memory over more and more images, which must not
grow.
"""

import argparse
import importlib.util
import os
import sys
import tempfile
import time
import types
from importlib.machinery import ModuleSpec
from pathlib import Path


def parse_arguments():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--side", type=int, default=256, help="of the images, in pixels")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2, help="of torch; ours has all cores")
    parser.add_argument("--memory_images", type=int, default=640, help="0 to leave it out")
    return parser.parse_args()


def use_cores(count):
    """Keeps this process to some cores: XLA has a thread for each that it sees."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def draw_weights(template, table):
    """{name in the file: float32 array}: He-normal kernels, norms near the identity."""
    import numpy as np
    from flax.traverse_util import flatten_dict, unflatten_dict

    from drifting_jax.weights.mapping import disassemble

    rng = np.random.default_rng(0)
    arrays = {}
    for path, leaf in flatten_dict(template).items():
        noise = rng.standard_normal(leaf.shape)
        if path[-1] in ("kernel", "fc_kernel"):
            noise *= (2 / np.prod(leaf.shape[:-1])) ** 0.5
        else:
            noise = 0.1 * noise + (path[-1] in ("scale", "variance"))
        arrays[path] = noise.astype(np.float32)
    return disassemble(unflatten_dict(arrays), table)


def make_ours(tensors):
    """uint8 [b, h, w, 3] -> [b, 2048], and the lowered program's FLOPs for a batch."""
    import jax
    import numpy as np

    from drifting_jax.evaluation.features.extractors import inception_extractor
    from drifting_jax.weights import inception
    from drifting_jax.weights.networks import Network

    extractor = inception_extractor(Network("inception", *inception.load(tensors)))
    variables = jax.device_put(extractor.variables)
    apply = jax.jit(lambda variables, images: extractor.apply(variables, images)["features"])

    def flops(images):
        return apply.lower(variables, images).compile().cost_analysis()["flops"]

    return lambda images: np.asarray(apply(variables, images)), flops


def stand_in_for_torchvision():
    """Puts empty modules under the names that torch-fidelity imports if torchvision is missing."""
    if importlib.util.find_spec("torchvision"):
        return
    for name in ("", ".datasets", ".models", ".transforms", ".transforms.functional"):
        module = types.ModuleType(f"torchvision{name}")
        module.__spec__ = ModuleSpec(module.__name__, None)
        sys.modules[module.__name__] = module
        parent, _, child = module.__name__.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
    for name in ("CIFAR10", "CIFAR100", "STL10"):
        setattr(sys.modules["torchvision.datasets"], name, type(name, (), {}))


def make_theirs(tensors, threads):
    """torch-fidelity's extractor with the same weights: uint8 [b, h, w, 3] -> [b, 2048]."""
    stand_in_for_torchvision()
    import numpy as np
    import torch
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    torch.set_num_threads(threads)
    state = {name: torch.from_numpy(np.array(array)) for name, array in tensors.items()}
    for name in [name for name in state if name.endswith(".bn.weight")]:
        state[name.replace("weight", "num_batches_tracked")] = torch.tensor(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.pth"
        torch.save(state, path)
        extractor = FeatureExtractorInceptionV3(
            "inception", ["2048"], feature_extractor_weights_path=str(path)
        )

    def run(images):
        with torch.inference_mode():
            pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
            return extractor(pixels)[0].numpy()

    return run


def compare(ours, theirs, images, rounds):
    """Prints milliseconds an image of both, and their ratio; returns our CPU seconds an image."""
    import numpy as np

    ways = {"ours": ours, "torch-fidelity": theirs}
    features = {name: run(images) for name, run in ways.items()}
    scale = np.abs(features["torch-fidelity"]).max()
    error = np.abs(features["ours"] - features["torch-fidelity"]).max() / scale
    print(f"features differ by {error:.1e} of the largest")
    wall, cpu = ({name: [] for name in ways} for _ in range(2))
    for i in range(rounds):
        for name in sorted(ways, reverse=bool(i % 2)):
            started, busy = time.perf_counter(), time.process_time()
            ways[name](images)
            wall[name].append((time.perf_counter() - started) / len(images))
            cpu[name].append((time.process_time() - busy) / len(images))
    for name in ways:
        middle, used = (float(np.median(x[name])) for x in (wall, cpu))
        each = ", ".join(f"{1e3 * x:.0f}" for x in wall[name])
        print(f"{name}: {1e3 * middle:.0f} ms an image ({1e3 * used:.0f} ms of CPU); each {each}")
    ratios = np.divide(wall["torch-fidelity"], wall["ours"])
    print(
        f"speed, ours / torch-fidelity: {np.median(ratios):.2f} "
        f"(rounds {ratios.min():.2f} to {ratios.max():.2f}); by CPU "
        f"{np.median(cpu['torch-fidelity']) / np.median(cpu['ours']):.2f}"
    )
    return float(np.median(cpu["ours"]))


def flops_of_a_core():
    """FLOPs in a second of CPU of a large product of matrices in float32."""
    import jax
    import jax.numpy as jnp

    n = 2048
    x = jnp.ones((n, n), jnp.float32)
    product = jax.jit(lambda x: jnp.dot(x, x, precision="highest"))
    product(x).block_until_ready()
    best = float("inf")
    for _ in range(10):
        started = time.process_time()
        product(x).block_until_ready()
        best = min(best, time.process_time() - started)
    return 2 * n**3 / best


def peak_memory():
    """Largest resident size so far, MiB."""
    import resource

    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def memory(ours, images, count):
    """Prints the peak of memory after the first batch and after each quarter of the images."""
    ours(images)
    peaks = {len(images): peak_memory()}
    for i in range(1, 5):
        for _ in range(-(-count // (4 * len(images)))):
            ours(images)
        peaks[i * count // 4] = peak_memory()
    print("peak memory:", ", ".join(f"{x:.0f} MiB at {n} images" for n, x in peaks.items()))


def main():
    """Prints the speed of this machine."""
    arguments = parse_arguments()
    use_cores(arguments.threads)
    os.environ["JAX_PLATFORMS"] = "cpu"
    import numpy as np

    from drifting_jax.models.inception import InceptionV3
    from drifting_jax.weights import inception
    from drifting_jax.weights.shapes import param_shapes

    template = param_shapes(InceptionV3())
    tensors = draw_weights(template, inception.table(template))
    side, batch = arguments.side, arguments.batch
    images = np.random.default_rng(1).integers(0, 256, (batch, side, side, 3), np.uint8)
    ours, flops = make_ours(tensors)
    print(f"{batch} images of {side}x{side}, {arguments.threads} threads")
    if arguments.memory_images:  # first: torch would add to the peak
        memory(ours, images, arguments.memory_images)
    theirs = make_theirs(tensors, arguments.threads)
    seconds = compare(ours, theirs, images, arguments.rounds)
    needed, core = flops(images) / batch, flops_of_a_core()
    print(
        f"{needed / 1e9:.2f} GFLOP an image; a product of matrices reaches {core / 1e9:.0f} GFLOP "
        f"in a second of CPU, so an image takes {1e3 * needed / core:.0f} ms or more: ours runs at "
        f"{needed / core / seconds:.0%} of that rate"
    )


if __name__ == "__main__":
    main()
