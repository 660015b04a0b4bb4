"""Imports run one way, and the mathematics runs without the data and input/output libraries."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "drifting_jax"

# From the ground up: a module imports from its own layer and from those before it.
LAYERS = {
    "mathematics": {
        "errors",  # what every layer raises
        "files",  # and writes with
        "fields",
        "guidance",
        "evaluation.rows",
        "evaluation.frechet",
        "evaluation.resize",
        "evaluation.kid",
        "evaluation.inception_score",
        "evaluation.figures",
        "evaluation.toy",
    },
    "parts": {
        "losses",
        "feature_losses",
        "batches",
        "features",
        "models.layers",
        "models.transformer",
        "models.dit",
        "models.mlp",
        "models.resnet_mae",
        "models.convnext",
        "models.dinov2",
        "models.inception",
        "models.pixels",
        "models.resnet",
        "models.vae",
        "encoders",
        "data.points",
        "data.transforms",
        "data.folder",
        "data.shards",
        "data.tfds",
        "data.imagenet",
        "data.images",
        "data.sources",
        "data.pipeline",
        "evaluation.classifier",
        "processes",
        "distributed",
        "evaluation.blocks",
        "evaluation.distances",
        "evaluation.neighbors",
        "sample_queue",
        "state",
        "optim",
    },
    "programs": {
        "train_step",
        "encoder_step",
        "sampling",
        "evaluation.small",
        "evaluation.summaries",
        "evaluation.tables",
        "evaluation.curves",
        "evaluation.page_style",
    },
    "input and output": {
        "defaults",
        "config",
        "config_checks",
        "checksums",
        "weights.mapping",
        "weights.convnext",
        "weights.dinov2",
        "weights.inception",
        "weights.resnet",
        "weights.vae",
        "weights.release",
        "weights.release_names",
        "weights.files",
        "weights.reading",
        "weights.safetensors",
        "weights.shapes",
        "weights.unpickle",
        "weights.pth",
        "weights.networks",
        "agreement",
        "orbax_settings",
        "evaluation.extractors",
        "evaluation.image_set",
        "evaluation.array_images",
        "evaluation.image_sets",
        "evaluation.feature_store",
        "evaluation.reference",
        "evaluation.evaluator",
        "checkpoint",
        "checkpoint_items",
        "metrics",
        "interruption",
        "compiled",
        "lock",
        "command_line",
        "evaluation.report",
    },
    "loops and commands": {
        "build",
        "feeding",
        "filling",
        "frozen",
        "packing",
        "prepare",
        "loop",
        "train_mae",
        "train",
        "loading",
        "pictures",
        "toy",
        "sample",
        "convert",
        "generator",
        "evaluate_flags",
        "evaluate_images",
        "evaluate_pages",
        "evaluate_small",
        "monitoring",
        "evaluate",
        "run",
        "dry_run",
    },
    "main": {"main"},
}
LEVEL = {module: i for i, names in enumerate(LAYERS.values()) for module in names}

# What the mathematics may import, itself and all that it imports included.
PURE_LIBRARIES = {"jax", "flax", "optax", "numpy"}
PURE = {
    "errors",
    "fields",
    "losses",
    "feature_losses",
    "batches",
    "encoder_step",
    "features",
    "guidance",
    "sampling",
    "train_step",
    "optim",
    "state",
    "sample_queue",
    "distributed",
    "evaluation.rows",
    "evaluation.frechet",
    "evaluation.resize",
    "evaluation.kid",
    "evaluation.inception_score",
    "evaluation.figures",
    "evaluation.blocks",
    "evaluation.distances",
    "evaluation.neighbors",
    "models.layers",
    "models.transformer",
    "models.dit",
    "models.mlp",
    "models.resnet_mae",
    "models.convnext",
    "models.dinov2",
    "models.inception",
    "models.pixels",
    "models.resnet",
    "models.vae",
    "encoders",
}


def sources() -> dict[str, Path]:
    """{dotted name within the package: file}, with main.py."""
    found = {"main": ROOT / "main.py"}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        if path.name != "__init__.py":
            parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
            found[".".join(parts)] = path
    return found


def imported(path: Path) -> set[str]:
    """Every module that a file imports, at its top or inside a function: "jax", "a.b.c"."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            # `from package import module` may name a module as well as what is in one.
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def own(path: Path) -> set[str]:
    """Modules of this package that a file imports."""
    prefix = f"{PACKAGE}."
    names = {n.removeprefix(prefix) for n in imported(path) if n.startswith(prefix)}
    return names & set(sources())


def foreign(path: Path) -> set[str]:
    """Libraries outside of the standard one and of this package that a file imports."""
    roots = {name.partition(".")[0] for name in imported(path)}
    return roots - set(sys.stdlib_module_names) - {PACKAGE}


def test_every_module_has_its_layer():
    assert set(sources()) == set(LEVEL), "put new modules into LAYERS, take old ones out"
    assert sum(map(len, LAYERS.values())) == len(LEVEL)


@pytest.mark.parametrize("module", sorted(LEVEL))
def test_imports_run_one_way(module):
    path = sources()[module]
    above = {name for name in own(path) if LEVEL[name] > LEVEL[module]}
    assert not above, f"{module} imports {above} from a layer above its own"


def test_no_module_imports_itself_in_a_circle():
    graph = {module: own(path) for module, path in sources().items()}
    while graph:
        free = {module for module, needs in graph.items() if not needs & set(graph)}
        assert free, f"these import each other in a circle: {sorted(graph)}"
        graph = {module: needs for module, needs in graph.items() if module not in free}


@pytest.mark.parametrize("module", sorted(PURE))
def test_the_mathematics_needs_no_more_than_jax_flax_optax_and_numpy(module):
    path = sources()[module]
    assert foreign(path) <= PURE_LIBRARIES
    assert own(path) <= PURE


def test_models_know_neither_devices_nor_data():
    for module, path in sources().items():
        if module.startswith("models."):
            assert {name.partition(".")[0] for name in own(path)} <= {"models"}, module


def test_importing_a_package_imports_nothing_else():
    for path in (ROOT / PACKAGE).rglob("__init__.py"):
        assert not imported(path), f"{path} imports {imported(path)}"


def test_the_reader_sees_every_kind_of_import(tmp_path):
    path = tmp_path / "module.py"
    path.write_text(
        "import jax.numpy as jnp, os\n"
        "from drifting_jax import losses, toy\n"
        "from drifting_jax.models.dit import DiT\n"
        "def f():\n    from scipy.linalg import sqrtm\n"
    )
    assert own(path) == {"losses", "toy", "models.dit"}
    assert foreign(path) == {"jax", "scipy"}
