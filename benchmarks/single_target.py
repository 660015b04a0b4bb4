"""Compares rules for conditions with a single target each, on actions of two modes; prints a table.

    python benchmarks/single_target.py            # all rules; goes on where it was ended
    python benchmarks/single_target.py --rules=fair_energy,mean_shift+neighbours --seeds=0
    python benchmarks/single_target.py --table    # prints the table of the results alone

An observation (c, e), uniform in [-1, 1]², has two equally good actions, (±(0.6 + 0.3·c), 0.5·e),
with normal noise of 0.05. A data set of 2000 observations shows one action of each. All rules have
the same network, optimizer, number of samples and steps. Samples of 200 new observations, 64 each,
are compared with their true actions:

* both: share of the observations of which each mode has at least a fifth of the samples;
* near: share of the samples within three standard deviations (0.15) of a mode;
* distance: unbiased energy distance to as many true actions, mean over the observations.

Each run is a row of a JSON file, and is not computed again with the same settings.
"""

import time
from pathlib import Path

import jax
import numpy as np
from absl import app, flags

from drifting_jax.config import base_config, resolve
from drifting_jax.distributed import meshes
from drifting_jax.files import read_json, write_json
from drifting_jax.policy.demonstrations import Demonstrations
from drifting_jax.policy.networks import make_network
from drifting_jax.policy.policy import Policy
from drifting_jax.policy.program import horizons_of, policy_program
from drifting_jax.policy.scaling import Scalings
from drifting_jax.policy.training import PolicyData
from drifting_jax.policy.windows import WindowSource
from drifting_jax.steps.scaling import scaling_of
from drifting_jax.surroundings import settled_jax

_ENERGY = {"drift.field": "fair_energy"}
_MEAN_SHIFT = {"drift.field": "mean_shift", "drift.temperatures": (0.02, 0.05, 0.2)}
RULES = {
    "mmd": {},
    "mmd, neighbours": {"single_target.neighbours": 15},
    "fair_energy": _ENERGY,
    "fair_energy, rows": _ENERGY | {"single_target.statistics": "row"},
    "fair_energy, neighbours": _ENERGY | {"single_target.neighbours": 15},
    "learned_temperature": {
        "drift.field": "mean_shift",
        "drift.temperatures": (10.0,),
        "single_target.learned_temperature": True,
        "single_target.statistics": "row",
    },
    "mean_shift": _MEAN_SHIFT,
    "mean_shift, neighbours": _MEAN_SHIFT | {"single_target.neighbours": 15},
}
RULES["learned_temperature, neighbours"] = RULES["learned_temperature"] | {
    "single_target.neighbours": 15
}
_RULES = flags.DEFINE_list("rules", [], "Names of the rules, with + for a comma and a space.")
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds.")
_STEPS = flags.DEFINE_integer("steps", 1200, "Training steps.")
_GENERATED = flags.DEFINE_integer("generated", 16, "Samples of a row.")
_WIDTH = flags.DEFINE_float("width", 0.05, "Width of the kernel on neighbours.")
_RESULTS = flags.DEFINE_string(
    "results", "benchmarks/results/single_target.json", "File of the rows."
)
_TABLE = flags.DEFINE_bool("table", False, "Print the table of the results, and end.")

POINTS, NOISE, NEW, SAMPLES = 2000, 0.05, 200, 64


def true_actions(observations, rng):
    """Draws one action of each observation [n, 2]."""
    side = rng.choice([-1, 1], len(observations))
    centres = np.stack([side * (0.6 + 0.3 * observations[:, 0]), 0.5 * observations[:, 1]], axis=1)
    return (centres + NOISE * rng.normal(size=centres.shape)).astype(np.float32)


def config_of(rule, seed):
    config = base_config("policy")
    small = {"data.observation_horizon": 1, "data.prediction_horizon": 1, "data.action_horizon": 1}
    small |= {"model.width": 64, "condition.width": 64, "mesh.data": 1, "optim.warmup_steps": 50}
    small |= {"train.conditions": 64, "optim.learning_rate": 2e-3}
    small |= {"train.num_steps": _STEPS.value, "train.generated": _GENERATED.value, "seed": seed}
    small |= {"single_target.neighbour_width": _WIDTH.value}
    config.update_from_flattened_dict(small | RULES[rule])
    return resolve(config)


@settled_jax()
def trained(config):
    """Returns the policy of a config, and the scalars of its last step."""
    rng = np.random.default_rng(config.seed)
    observations = rng.uniform(-1, 1, (POINTS, 2)).astype(np.float32)
    data = Demonstrations(observations, true_actions(observations, rng), np.arange(1, POINTS + 1))
    scalings = Scalings(scaling_of(data.observations), scaling_of(data.actions))
    source = WindowSource(
        data, horizons_of(config), scalings, neighbours=config.single_target.neighbours
    )
    mesh = meshes.make_mesh(1, 1, devices=jax.devices()[:1])
    program = policy_program(config, PolicyData(source, None, scalings).sizes, mesh)
    carry, report = program.first_carry(), None
    for _ in range(config.train.num_steps):
        records = [source[int(i)] for i in rng.integers(len(source), size=config.train.conditions)]
        batch = {name: np.stack([r[name] for r in records]) for name in records[0]}
        carry, report = program.step(carry, {}, jax.device_put(batch))
    policy = Policy(
        horizons=horizons_of(config),
        scalings=scalings,
        params=carry.state.ema["0.99"]["network"],
        model=make_network(config),
        batch_size=256,
        step=config.train.num_steps,
        ema_decay=0.99,
        config=config,
    )
    return policy, program.to_scalars(jax.device_get(report.metrics))


def measured(policy):
    rng = np.random.default_rng(99)
    observations = rng.uniform(-1, 1, (NEW, 2)).astype(np.float32)
    many = np.repeat(observations, SAMPLES, axis=0)
    found = policy.predict(many[:, None], seed=0)[:, 0].reshape(NEW, SAMPLES, 2)
    true = true_actions(many, rng).reshape(NEW, SAMPLES, 2)
    first = 0.6 + 0.3 * observations[:, :1]
    sides = np.stack([first, -first])  # [2, n, 1]
    centres = np.stack([sides, np.broadcast_to(0.5 * observations[None, :, 1:], sides.shape)], -1)
    to_modes = np.linalg.norm(found[None] - centres, axis=-1)  # [2, n, s]
    shares = np.stack([to_modes[0] < to_modes[1], to_modes[0] >= to_modes[1]]).mean(axis=2)

    def apart(x, y):
        return np.linalg.norm(x[:, :, None] - y[:, None], axis=-1).sum(axis=(1, 2))

    within = (apart(found, found) + apart(true, true)) / (SAMPLES * (SAMPLES - 1))
    distance = 2 * apart(found, true) / SAMPLES**2 - within
    return {
        "both": float((shares.min(axis=0) >= 0.2).mean()),
        "near": float((to_modes.min(axis=0) < 3 * NOISE).mean()),
        "distance": float(distance.mean()),
    }


def settings_of(rule, seed):
    """What a row depends on."""
    settings = {"rule": rule, "seed": seed, "steps": _STEPS.value}
    return settings | {"generated": _GENERATED.value, "neighbour_width": _WIDTH.value}


def kept_row(settings):
    """The row of these settings, or None."""
    path = Path(_RESULTS.value)
    rows = read_json(path)["rows"] if path.is_file() else []
    return next((row for row in rows if settings.items() <= row.items()), None)


def measure_row(settings):
    """Trains, measures, and adds a row to the results."""
    started = time.process_time()
    policy, last = trained(config_of(settings["rule"], settings["seed"]))
    row = settings | measured(policy) | {"temperature": last.get("temperature")}
    row["processor_seconds"] = round(time.process_time() - started, 1)
    path = Path(_RESULTS.value)
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = read_json(path)["rows"] if path.is_file() else []
    write_json(path, {"rows": [*rows, row]})


def print_table(rules, seeds):
    """A row a rule: mean and deviation over the seeds that are measured."""
    print("| rule | seeds | both | near | distance | temperature |\n|---|---|---|---|---|---|")
    for rule in rules:
        rows = [row for seed in seeds if (row := kept_row(settings_of(rule, seed)))]
        if not rows:
            continue
        cells = [", ".join(str(row["seed"]) for row in rows)]
        for name in ("both", "near", "distance"):
            values = [row[name] for row in rows]
            cells.append(f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}")
        learned = [f"{row['temperature']:.3f}" for row in rows if row["temperature"] is not None]
        print("| " + " | ".join([rule, *cells, ", ".join(learned) or "–"]) + " |")


def main(_):
    """Measures what the results lack, and prints the table."""
    rules = [name for name in RULES if not _RULES.value or name.replace(", ", "+") in _RULES.value]
    seeds = [int(seed) for seed in _SEEDS.value]
    for seed in () if _TABLE.value else seeds:
        for rule in rules:
            if kept_row(settings := settings_of(rule, seed)) is None:
                measure_row(settings)
                print(kept_row(settings), flush=True)
    print_table(rules, seeds)


if __name__ == "__main__":
    app.run(main)
