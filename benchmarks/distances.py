"""What the exact distances to the nearest targets cost, beside the matmul of all distances.

    python benchmarks/distances.py

Times `pairwise_distance` over many locations, with and without the exact neighbours, and the whole
loss with its gradient. The numbers are ratios of medians within one run, in alternating order.
"""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np

from drifting_jax.method.fields import sets
from drifting_jax.method.losses import drifting_loss

ROUNDS = 9
G, P, U = 64, 64, 16
SHAPES = {"64 channels, 64 locations": (64, 64), "640 channels, 16 locations": (16, 640)}


def timed(ways: dict) -> dict[str, float]:
    """Median seconds of each function, in alternating order."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for function in ways.values():
        jax.block_until_ready(function())
    for i in range(ROUNDS):
        for name in sorted(ways, reverse=bool(i % 2)):
            began = time.perf_counter()
            jax.block_until_ready(ways[name]())
            seconds[name].append(time.perf_counter() - began)
    return {name: float(np.median(values)) for name, values in seconds.items()}


def main() -> None:
    """Prints a line for each shape."""
    exact = sets.EXACT_NEIGHBOURS
    for title, (t, d) in SHAPES.items():
        rng = np.random.default_rng(0)
        x, y, u = (jnp.float32(rng.normal(size=(2, n, t, d))) for n in (G, P, U))
        targets = jnp.concatenate([x, u, y], axis=1)
        programs = {}
        for count in (0, exact):
            sets.EXACT_NEIGHBOURS = count
            over_all = jax.vmap(jax.vmap(sets.pairwise_distance, in_axes=1), in_axes=0)
            gradient = jax.value_and_grad(lambda *s: drifting_loss(*s)[0])
            programs[f"distances, {count}"] = jax.jit(over_all).lower(x, targets).compile()
            programs[f"loss, {count}"] = jax.jit(gradient).lower(x, y, u).compile()
        arguments = {"distances": (x, targets), "loss": (x, y, u)}
        ways = {
            name: functools.partial(program, *arguments[name.partition(",")[0]])
            for name, program in programs.items()
        }
        found = timed(ways)
        for what in arguments:
            ratio = found[f"{what}, {exact}"] / found[f"{what}, 0"]
            print(f"{title}: {what} with {exact} exact neighbours over none: {ratio:.2f}")


if __name__ == "__main__":
    main()
