"""Compares the drifting policy with regression, diffusion and flow matching; writes JSON cells.

    python benchmarks/control/compare.py --tasks=two_ways --episodes=200
    python benchmarks/control/compare.py              # all tasks; goes on where it was ended
    python benchmarks/control/compare.py --times      # milliseconds of a chunk on one core
    python benchmarks/control/compare.py --table      # prints the table of the results
    python benchmarks/control/compare.py --picture=docs/images/two_ways.png

All methods have the same demonstrations, horizons, network, optimizer, schedule, average and number
of steps. The rows of a baseline's step are as many as make its products cost what those of a
drifting step by the energy score cost. A seed is that of the training and of the rollouts; the
demonstrations are the same for all. Each cell (task, method, seed) is a file of its own, and is not
computed again unless the demonstrations or the rule of a drifting policy have changed.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import baselines
import jax
import numpy as np
from absl import app, flags

from drifting_jax.commands.demonstrating import write_demonstrations
from drifting_jax.compiler.flops import product_flops
from drifting_jax.config import base_config
from drifting_jax.config.base import resolve
from drifting_jax.control.environments.table import open_environment
from drifting_jax.control.measurement import Settings, measure, read_seed
from drifting_jax.control.pictures import paths_picture
from drifting_jax.files import read_json, write_bytes, write_json
from drifting_jax.method.fields.table import negatives_of, temperatures_of
from drifting_jax.policy.demonstrations import read_demonstrations
from drifting_jax.policy.policy import load_policy, policy_of
from drifting_jax.policy.program import policy_program
from drifting_jax.policy.training import program, read_data
from drifting_jax.training import build
from drifting_jax.training.run import run

_TASKS = flags.DEFINE_list("tasks", [], "Of TASKS; empty: all.")
_METHODS = flags.DEFINE_list("methods", [], "Of METHODS and DRIFTING; empty: METHODS.")
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Of training and rollouts.")
_EPISODES = flags.DEFINE_integer("episodes", 50, "Rollouts of a cell.")
_STEPS = flags.DEFINE_integer("steps", 2000, "Training steps.")
_RESULTS = flags.DEFINE_string("results", "benchmarks/results/control", "Folder of the cells.")
_SCRATCH = flags.DEFINE_string(
    "scratch", "runs/control", "Folder of demonstrations, runs and rollouts."
)
_TIMES = flags.DEFINE_bool("times", False, "Measure the time of a chunk on one core, and end.")
_TABLE = flags.DEFINE_bool("table", False, "Print the table of the results, and end.")
_PICTURE = flags.DEFINE_string("picture", "", "PNG of the paths in two_ways, a panel a method.")


class Task(NamedTuple):
    """Demonstrations, actions after which an episode ends, rows of a step and their samples."""

    demonstrations: int
    max_steps: int
    conditions: int
    generated: int


WIDTH = 128  # of the network
TASKS = {"two_ways": Task(200, 64, conditions=32, generated=16)} | {
    f"metaworld:{name}-v3": Task(50, 200, conditions=64, generated=8)
    for name in ("reach", "door-open", "push", "pick-place", "assembly")
}
# Of the drifting policies: what differs from the defaults of configs/policy.py.
_MEAN_SHIFT = {"drift.field": "mean_shift", "drift.temperatures": (0.02, 0.05, 0.2)}
DRIFTING = {
    "drifting": {},
    "fair_energy": {"drift.field": "fair_energy"},
    # Measured where --methods names them:
    "mmd_own": {"drift.negatives": "own"},
    "mmd_five": {"drift.temperatures": (0.02, 0.06, 0.2, 0.6, 2.0)},
    "mmd_near": {"drift.temperatures": (0.02, 0.05, 0.2, 1.0)},
    "energy": {"drift.field": "energy"},
    "mean_shift": _MEAN_SHIFT,
    "mean_shift_far": _MEAN_SHIFT | {"drift.temperatures": (0.02, 0.05, 0.2, 1.0)},
    "mean_shift_separate": _MEAN_SHIFT | {"drift.combine": "separate"},
    "mean_shift_neighbours": _MEAN_SHIFT | {"single_target.neighbours": 15},
    "learned_temperature": {
        "drift.field": "mean_shift",
        "drift.temperatures": (10.0,),
        "single_target.learned_temperature": True,
        "single_target.statistics": "row",
    },
}
CHEAPEST = "fair_energy"  # its step is what a baseline's costs; the others take up to 0.9% more
METHODS = ("drifting", "fair_energy", "regression", "diffusion_100", "flow_10", "flow_1")
NAMES = {
    "drifting": "drifting, 1 evaluation",
    "fair_energy": "drifting by the fair energy score",
    "regression": "regression",
    "diffusion_100": "diffusion, 100 steps",
    "flow_10": "flow matching, 10 steps",
    "flow_1": "flow matching, 1 step",
}


def policy_config(task: str, seed: int, method: str = "drifting") -> Any:
    """The config of a task: a network that a CPU trains in minutes."""
    config = base_config("policy")
    config.update_from_flattened_dict(DRIFTING.get(method, {}))
    config.seed = seed
    config.data.path = str(demonstrations_path(task))
    config.model.width = config.condition.width = WIDTH
    config.train.conditions = TASKS[task].conditions
    config.train.generated = TASKS[task].generated
    config.train.num_steps = config.train.save_every = _STEPS.value
    config.optim.warmup_steps = 50
    config.train.ema_decays, config.eval.ema_decay = (0.99,), 0.99
    config.mesh.data = 1
    return resolve(config)


def demonstrations_path(task: str) -> Path:
    return Path(_SCRATCH.value) / "demonstrations" / f"{task.replace(':', '_')}.npz"


def cell_path(task: str, method: str, seed: int | str) -> Path:
    return Path(_RESULTS.value) / f"{task.replace(':', '_')}-{method}-seed{seed}.json"


def collect_demonstrations(task: str) -> str:
    """Writes the demonstrations of a task, unless they are there; returns their fingerprint."""
    if not demonstrations_path(task).exists():
        write_demonstrations(
            str(demonstrations_path(task)), task, episodes=TASKS[task].demonstrations, seed=0
        )
    return read_demonstrations(str(demonstrations_path(task))).fingerprint


def is_kept(path: Path, identity: dict[str, Any]) -> bool:
    """Whether a cell is there, of these demonstrations and this rule."""
    return path.exists() and identity.items() <= read_json(path).items()


def rule_of(method: str) -> dict[str, Any]:
    """What decides how a drifting policy learns; nothing of a baseline."""
    if method not in DRIFTING:
        return {}
    config = policy_config("two_ways", 0, method)  # of any task
    options = build.drift_options(config)
    found = {name: getattr(options, name) for name in ("field", "combine")}
    found["negatives"] = negatives_of(options)
    found["temperatures"] = list(temperatures_of(options))
    for name in ("statistics", "learned_temperature", "neighbours"):
        found[name] = config.single_target[name]
    return {"rule": found}


def step_flops(config: Any) -> float:
    """Operations of the products of a drifting step."""
    built = program(config, build.make_mesh(config))
    return product_flops(jax.make_jaxpr(built.step)(built.carry, built.frozen, built.batch))


def trained(
    task: str, method: str, seed: int, identity: dict, cache: dict
) -> tuple[Any, dict[str, Any]]:
    """The policy of a cell, and what is known of its training."""
    config = policy_config(task, seed, method)
    flops = step_flops(config if method in DRIFTING else policy_config(task, seed, CHEAPEST))
    began = time.perf_counter()
    if method in DRIFTING:
        name = f"{task.replace(':', '_')}-{method}-seed{seed}-{identity['demonstrations']}"
        workdir = Path(_SCRATCH.value) / "runs" / name
        if run(config, workdir=workdir):
            sys.exit(75)
        policy, record = load_policy(workdir), {"rows": config.train.conditions, "flops": flops}
    else:
        loss = baselines.BASELINES[method][0]
        if (task, seed, loss) not in cache:
            cache[task, seed, loss] = baselines.train(config, loss, flops=flops)
        params, record = cache[task, seed, loss]
        policy = baselines.make_baseline(config, method, params)
    return policy, record | {"training_seconds": time.perf_counter() - began}


def measure_cell(task: str, method: str, seed: int, identity: dict, cache: dict) -> None:
    """Trains, rolls out, and writes a cell with its demonstrations and its rule."""
    policy, record = trained(task, method, seed, identity, cache)
    of_policy = {"method": method, "training_seed": seed, "steps": _STEPS.value}
    settings = Settings(
        environment=task,
        policy=of_policy | identity,
        episodes=_EPISODES.value,
        max_steps=TASKS[task].max_steps,
        draw_every=0,
    )
    out = rollouts_path(task, method)
    began = time.perf_counter()
    found = measure(policy, lambda: open_environment(task), out, settings=settings, seeds=[seed])
    assert found is not None  # nothing stops it
    summary = found[1]
    kept = ("success", "endings", "steps_of_a_success", "episodes", "max_steps")
    cell = {"task": task, "method": method, "seed": seed, "training_steps": _STEPS.value}
    cell |= identity | {name: summary[name] for name in kept} | record
    write_json(
        cell_path(task, method, seed), cell | {"rollout_seconds": time.perf_counter() - began}
    )


def rollouts_path(task: str, method: str) -> Path:
    return Path(_SCRATCH.value) / "rollouts" / f"{task.replace(':', '_')}-{method}"


def measure_times() -> None:
    """Writes the processor time of a chunk, for networks of random weights on one core."""
    task = "metaworld:reach-v3"
    collect_demonstrations(task)
    config = policy_config(task, 0)
    found = {}
    data, mesh = read_data(config), build.make_mesh(config)
    state = policy_program(config, data.sizes, mesh).init()
    drifting = policy_of(config, data.scalings, state, step=0, ema_decay=0.99, batch_size=1)
    params = baselines.initial(config)
    for method in ("drifting", *baselines.BASELINES):
        policy = drifting
        if method != "drifting":
            policy = baselines.make_baseline(config, method, params, batch_size=1)
        found[method] = _milliseconds(policy)
        print(method, found[method], flush=True)
    write_json(
        Path(_RESULTS.value) / "times.json",
        {"milliseconds": found, "device": jax.devices()[0].device_kind, "cores": 1},
    )


def _milliseconds(policy: Any) -> float:
    """Median processor time of a plan for one observation window."""
    window = np.zeros((1, policy.horizons.observation, policy.sizes.observation), np.float32)
    spent = []
    for index in range(33):
        began = time.process_time()
        policy.act(window, seed=0, indices=np.array([index]))
        spent.append(time.process_time() - began)
    return 1e3 * float(np.median(spent[3:]))


def print_table() -> None:
    """Success in percent, mean ± standard deviation over seeds, a row a task."""
    methods = _METHODS.value or METHODS
    print("| task | " + " | ".join(NAMES.get(m, m) for m in methods) + " |")
    print("|---" * (1 + len(methods)) + "|")
    for task in TASKS:
        cells = []
        for method in methods:
            paths = [cell_path(task, method, seed) for seed in _SEEDS.value]
            rates = [100 * read_json(path)["success"] for path in paths if path.exists()]
            cells.append(_cell(rates))
        if any(cells):
            print(f"| {task.removeprefix('metaworld:')} | " + " | ".join(cells) + " |")
    times = Path(_RESULTS.value) / "times.json"
    if times.exists() and not _METHODS.value:
        found = read_json(times)["milliseconds"]
        spent = [found["drifting" if m in DRIFTING else m] for m in METHODS]
        print("| ms a chunk | " + " | ".join(f"{ms:.2f}" for ms in spent) + " |")


def _cell(rates: list[float]) -> str:
    if not rates:
        return ""
    if len(rates) == 1:
        return f"{rates[0]:.1f} (one seed)"
    return f"{np.mean(rates):.1f} ± {np.std(rates, ddof=1):.1f}" + (
        "" if len(rates) == 3 else f" ({len(rates)} seeds)"
    )


def draw_picture(path: str) -> None:
    """The paths of the rollouts in two_ways of seed 0."""
    panels = {}
    for method in METHODS:
        out = rollouts_path("two_ways", method)
        if (out / "seed_0.json").exists():
            episodes = read_seed(out, read_json(out / "seed_0.json")["settings"])
            if episodes is not None:
                panels[NAMES[method]] = episodes
    write_bytes(path, paths_picture(panels))


def main(_: list[str]) -> None:
    """Does what the flags say."""
    if _TABLE.value:
        print_table()
        return
    if _PICTURE.value:
        draw_picture(_PICTURE.value)
        return
    if _TIMES.value:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # before JAX starts its threads
        measure_times()
        return
    Path(_RESULTS.value).mkdir(parents=True, exist_ok=True)
    for seed in map(int, _SEEDS.value):
        for task in _TASKS.value or TASKS:
            cache: dict = {}
            fingerprint = collect_demonstrations(task)
            for method in _METHODS.value or METHODS:
                path = cell_path(task, method, seed)
                identity = {"demonstrations": fingerprint} | rule_of(method)
                if not is_kept(path, identity):
                    measure_cell(task, method, seed, identity, cache)
                    print(path.read_text(), flush=True)


if __name__ == "__main__":
    app.run(main)
