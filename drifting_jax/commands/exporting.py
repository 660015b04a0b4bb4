"""Writes a generator as a folder that samples without this package: with JAX alone, or as ONNX."""

import functools
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from drifting_jax import __version__
from drifting_jax.commands import exported_sample
from drifting_jax.compiler.exported import PLATFORMS, exported
from drifting_jax.compiler.onnx_graph import OPSET, UnsupportedError, write_onnx
from drifting_jax.config import streams
from drifting_jax.data.class_names import title
from drifting_jax.distributed import meshes, transfer
from drifting_jax.files import check_new, new_folder, write_bytes, write_json, write_npz
from drifting_jax.models import generators
from drifting_jax.models.vae import decoder_params
from drifting_jax.steps import sampling
from drifting_jax.steps.generator import Generator
from drifting_jax.surroundings import settled_jax

PyTree = Any
Model = TypeVar("Model", bound=nn.Module)

_SAMPLER, _WEIGHTS, _SCRIPT, _ONNX = "sampler.jax", "weights.npz", "sample.py", "network.onnx"


@settled_jax()
def export_generator(generator: Generator, folder: Path) -> list[str]:
    """Writes a folder that samples as the generator does, bit for bit on a CPU.

    It holds the sampler (`jax.export`), its weights, config.json, sample.py and, where the package
    onnx is installed, the network as ONNX.

    Args:
      generator: one that makes pixels.
      folder: it is made, and must not exist.

    Returns:
      Notes for a person.

    Raises:
      UserError: the folder exists, the generator makes latents and nothing decodes them, or the
        package flatbuffers is missing.
    """
    generator.check_makes_pixels()
    check_new(folder)
    params = _sampled_params(generator)
    program, image_shape = _exported(generator, params)
    with new_folder(folder) as partial:
        write_bytes(partial / _SAMPLER, program)
        write_npz(partial / _WEIGHTS, flatten_dict(params, sep="/"))
        shutil.copyfile(exported_sample.__file__, partial / _SCRIPT)
        onnx, notes = _write_network(generator, params, partial / _ONNX)
        names = list(generator.class_names)
        write_json(
            partial / "config.json",
            {
                "sampler": "images of a Drifting Model (arXiv 2602.04770), one evaluation each",
                "jax": jax.__version__,
                "drifting_jax": __version__,
                "platforms": PLATFORMS,
                "step": generator.step,
                **generator.average_record,
                "classes": names,
                "titles": [title(name) for name in names],
                "image_shape": image_shape,
                "alpha_range": generator.alpha_range,
                "calling_convention": _convention(len(names), image_shape),
                "onnx": onnx,
            },
        )
    return notes


def _sampled_params(generator: Generator) -> PyTree:
    """The parameters that a sample depends on, on the host."""
    params = transfer.fetch(generator.params)
    if generator.vae is None:
        return params
    vae = {"params": decoder_params(params["vae"]["params"])}
    return {"generator": params["generator"], "vae": vae}


def _exported(generator: Generator, params: PyTree) -> tuple[bytes, list[int]]:
    """The sampler for one device of any of `PLATFORMS`, and the shape of an image."""
    mesh = meshes.make_mesh(1, 1, devices=jax.local_devices()[:1])
    sampler = sampling.make_sampler(generator.model, mesh, vae=generator.vae)

    def sample(weights, labels, indices, seed, alpha):
        key = streams.samples_key(seed)
        tree = unflatten_dict(weights, sep="/")
        return tuple(sampler(tree, key, labels, indices, alpha))  # a class could not be stored

    of = jax.ShapeDtypeStruct
    weights = {name: of(x.shape, x.dtype) for name, x in flatten_dict(params, sep="/").items()}
    (n,) = jax.export.symbolic_shape("n")
    batch = of((n,), jnp.int32)
    arguments = (weights, batch, batch, of((), jnp.uint32), of((), jnp.float32))
    program, outputs = exported(sample, *arguments)
    return program, list(outputs[0].shape[1:])


def _convention(num_classes: int, image_shape: list[int]) -> dict[str, Any]:
    sizes = ", ".join(map(str, image_shape))
    return {
        "read": f"jax.export.deserialize(the bytes of {_SAMPLER}), which needs flatbuffers",
        "call": "images, finite = sampler.call(weights, labels, indices, seed, alpha)",
        "weights": f"the arrays of {_WEIGHTS} by name",
        "labels": f"[n] int32, from 0 to {num_classes - 1}; n is free",
        "indices": "[n] int32: sample i of a class; with seed, class and alpha it fixes the image",
        "seed": "[] uint32",
        "alpha": "[] float32, the guidance scale",
        "images": f"[n, {sizes}] uint8",
        "finite": "[n] bool; where false, the image means nothing",
    }


def _write_network(
    generator: Generator, params: PyTree, path: Path
) -> tuple[dict[str, Any] | None, list[str]]:
    """Writes the network without the random numbers as ONNX: its description, and notes."""
    model = _in_float32(generator.model)
    vae = _in_float32(generator.vae) if generator.vae is not None else None
    (b,) = jax.export.symbolic_shape("n")
    key = jax.eval_shape(functools.partial(streams.root_key, 0))
    noise, styles = jax.eval_shape(functools.partial(generators.draw_inputs, model=model), key)
    of = jax.ShapeDtypeStruct
    inputs = {
        "noise": of((b, *noise.shape), noise.dtype),
        "labels": of((b,), jnp.int32),
        "styles": of((b, *styles.shape), styles.dtype),
        "alpha": of((b,), jnp.float32),
    }

    constants = jax.tree.map(jnp.asarray, params)

    def network(*arrays: jax.Array) -> jax.Array:
        return sampling.images_of(model, constants, *arrays, vae=vae)

    try:
        write_onnx(path, network, inputs, output="images")
    except ImportError:
        return None, [f"no {path.name}: it needs pip install -e '.[onnx]'"]
    except UnsupportedError as error:
        return None, [f"no {path.name}: {error}"]
    return _description(path.name, inputs, generator.model), []


def _in_float32(model: Model) -> Model:
    """The same network, computed in float32: few runtimes of ONNX know bfloat16."""
    dtypes = {name: jnp.float32 for name in ("dtype", "attention_dtype") if hasattr(model, name)}
    return model.clone(**dtypes)


def _description(
    name: str, inputs: Mapping[str, jax.ShapeDtypeStruct], model: nn.Module
) -> dict[str, Any]:
    words = {"noise": "standard normal", "labels": "classes", "alpha": "guidance scales"}
    styles = max(getattr(model, "styles_per_book", 1), 1)
    words["styles"] = f"uniform, from 0 to {styles - 1}"
    return {
        "file": f"{name}, with its weights in {name}.data",
        "opset": OPSET,
        "inputs": {
            key: f"[{', '.join(map(str, x.shape))}] {np.dtype(x.dtype).name}: {words[key]}"
            for key, x in inputs.items()
        },
        "outputs": {"images": "[n, h, w, c] float32 in [-1, 1], not clipped"},
        "random_numbers": "noise and styles are drawn outside of the graph",
        "dtype": "float32, whatever the network was trained in",
    }
