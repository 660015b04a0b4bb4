"""Imports run one way, and the mathematics runs without the data and input/output libraries."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "drifting_jax"

# From the ground up: a folder imports from itself and from the lines before its own.
LAYERS = (
    {"errors", "compatibility"},
    {"files", "digests"},
    {"unpickle"},
    {"surroundings", "drawing"},
    {"compiler"},
    {"config", "models", "data"},
    {"method"},
    {"weights"},
    {"distributed"},
    {"steps", "workdir"},
    {"evaluation"},
    {"training"},
    {"policy", "pairs"},
    {"control"},
    {"demonstration"},
    {"commands"},
    {"sample", "evaluate", "prepare", "convert", "export", "diagnose", "demo", "rollout", "main"},
)
LEVEL = {room: i for i, rooms in enumerate(LAYERS) for room in rooms}

# What the mathematics may import, itself and all that it imports included.
PURE_LIBRARIES = {"jax", "flax", "optax", "numpy"}
PURE_FOLDERS = ("method.", "models.", "steps.", "evaluation.metrics.")
IMPURE = {  # of these folders: they read data or write tables
    "evaluation.metrics.small_images",
    "evaluation.metrics.points",
    "steps.generator",
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


def room(module: str) -> str:
    """The folder that a module lies in, or the module itself at the top."""
    return module.partition(".")[0]


def test_every_folder_has_its_layer():
    assert {room(module) for module in sources()} == set(LEVEL)


@pytest.mark.parametrize("folder", sorted(LEVEL))
def test_imports_run_one_way(folder):
    for module, path in sources().items():
        if room(module) == folder:
            above = {n for n in own(path) if LEVEL[room(n)] > LEVEL[folder]}
            beside = {n for n in own(path) if LEVEL[room(n)] == LEVEL[folder]}
            assert not above, f"{module} imports {above} from a folder above its own"
            assert {room(n) for n in beside} <= {folder}, f"{module} imports {beside}"


def test_no_module_imports_itself_in_a_circle():
    graph = {module: own(path) for module, path in sources().items()}
    while graph:
        free = {module for module, needs in graph.items() if not needs & set(graph)}
        assert free, f"these import each other in a circle: {sorted(graph)}"
        graph = {module: needs for module, needs in graph.items() if module not in free}


def is_pure(module: str) -> bool:
    return module.startswith(PURE_FOLDERS) and module not in IMPURE


def test_the_mathematics_needs_no_more_than_jax_flax_optax_and_numpy():
    allowed = (
        "errors",
        "compatibility",
        "surroundings",
        "distributed.meshes",
        "distributed.class_rows",
        "distributed.transfer",
    )
    for module, path in sources().items():
        if is_pure(module):
            assert foreign(path) <= PURE_LIBRARIES, module
            assert {n for n in own(path) if not is_pure(n)} <= set(allowed), module


def test_models_know_neither_devices_nor_data():
    for module, path in sources().items():
        if module.startswith("models."):
            assert {name.partition(".")[0] for name in own(path)} <= {"models"}, module


# These two run where libraries that read data and write tables are not installed.
TRAINS_A_TOY = """
import sys
sys.modules |= dict.fromkeys(("clu", "tensorflow_datasets", "tensorflow"))
import drifting_jax as dj

config = dj.base_config("toy")
config.model.widths = (8,)
config.data.num_samples = config.eval.num_samples = 64
config.eval.directions = 4
config.optim.schedule, config.optim.warmup_steps, config.mesh.data = "constant", 1, 1
config.train.generated = config.train.positives = 16
config.train.num_steps = config.train.save_every = config.log_every = 2
dj.train(dj.resolve_config(config), workdir=sys.argv[1])
"""
SAMPLES = """
import sys
sys.modules |= dict.fromkeys(("clu", "tensorflow_datasets", "tensorflow", "array_record", "grain"))
import drifting_jax.convert, drifting_jax.evaluate, drifting_jax.prepare, drifting_jax.sample
import drifting_jax as dj
import jax, jax.numpy as jnp, numpy as np
from drifting_jax.distributed.meshes import make_mesh
from drifting_jax.models.dit import DiT
from drifting_jax.models.generators import init_generator

channels = {"in_channels": 1, "out_channels": 1}
sizes = {"width": 16, "depth": 1, "num_heads": 2, "num_context_tokens": 2}
model = DiT(image_size=4, patch_size=2, num_classes=2, **channels, **sizes)
sampler = dj.make_sampler(model, make_mesh(1, 1))
label = jnp.zeros(1, jnp.int32)
key = jax.random.key(0)
assert sampler(init_generator(key, model), key, label, label, np.float32(1)).finite.all()
"""


@pytest.mark.slow
def test_a_toy_and_a_sampler_need_no_library_that_reads_data(tmp_path):
    for program in (TRAINS_A_TOY, SAMPLES):
        command = [sys.executable, "-c", program, str(tmp_path / "run")]
        subprocess.run(command, cwd=ROOT, check=True, timeout=300)
    assert (tmp_path / "run" / "metrics.jsonl").exists()


def test_flax_is_called_in_one_file():
    """`init` and `apply` of modules; optimizers, trackers and extractors have one of them too."""
    others = "optimizer|extractor|wandb|trackio"
    called = {}
    for module, path in sources().items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                of = ast.unparse(node.func.value)
                if node.func.attr in ("init", "apply") and not re.search(others, of):
                    called.setdefault(module, set()).add(of)
    assert set(called) == {"models.calls"}


def test_importing_a_package_imports_nothing_else():
    exempt = {PACKAGE, "config"}  # lazy by tests/test_public_api.py; what config files import from
    for path in (ROOT / PACKAGE).rglob("__init__.py"):
        if path.parent.name not in exempt:
            assert not imported(path), f"{path} imports {imported(path)}"


def test_the_reader_sees_every_kind_of_import(tmp_path):
    path = tmp_path / "module.py"
    path.write_text(
        "import jax.numpy as jnp, os\n"
        "from drifting_jax.method import losses, guidance\n"
        "from drifting_jax.models.dit import DiT\n"
        "def f():\n    from scipy.linalg import sqrtm\n"
    )
    assert own(path) == {"method.losses", "method.guidance", "models.dit"}
    assert foreign(path) == {"jax", "scipy"}
