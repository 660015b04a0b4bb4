"""The drifting loss over a set of features: one after another, of equal shape stacked, or joined.

    python benchmarks/feature_loss.py

Times the gradient of the same sum over features with one `drifting_loss` a feature, with a `vmap`
over all features of one shape, and as the library does it (equal channels together). Figures are
ratios within one run, with the order alternating.
"""

import time
from collections import defaultdict

import jax
import jax.numpy as jnp
import numpy as np

from drifting_jax.method.feature_losses import feature_drifting_loss
from drifting_jax.method.losses import drifting_loss

ROUNDS = 15
C, G, P, U = 10, 32, 64, 8
# Shapes of the features of a 32-wide encoder on a 4x4 grid: {(t, d): how many}.
FEATURES = {
    "digits encoder": {(16, 32): 2, (4, 32): 4, (1, 32): 8, (4, 64): 1, (1, 64): 4, (1, 128): 2},
    "many small": {(1, 64): 24},
}


def draw(shapes):
    """{name: [c, n, t, d]} for generated, positive and unconditional samples."""
    rng = np.random.default_rng(0)
    sets = [{} for _ in range(3)]
    for (t, d), count in shapes.items():
        for i in range(count):
            for features, n in zip(sets, (G, P, U), strict=True):
                x = rng.normal(size=(C, n, t, d)).astype(np.float32)
                features[f"{t}x{d}_{i}"] = jnp.asarray(x)
    return sets


def stacked_loss(generated, positive, unconditional):
    """The same sum, features of equal shape under one vmap."""
    groups = defaultdict(list)
    for name, x in generated.items():
        groups[x.shape].append(name)
    total = 0.0
    for names in groups.values():
        sets = [jnp.stack([f[n] for n in names]) for f in (generated, positive, unconditional)]
        losses, _ = jax.vmap(drifting_loss)(*sets)
        total += jnp.sum(losses)
    return total


def one_by_one_loss(generated, positive, unconditional):
    """The same sum, a `drifting_loss` a feature."""
    return sum(
        drifting_loss(generated[name], positive[name], unconditional[name])[0] for name in generated
    )


def main():
    """Prints compile times, milliseconds, and the ratio for each set of features."""
    for title, shapes in FEATURES.items():
        sets = draw(shapes)
        ways = {
            "one by one": jax.jit(jax.grad(one_by_one_loss)),
            "stacked": jax.jit(jax.grad(stacked_loss)),
            "as built": jax.jit(jax.grad(lambda *s: feature_drifting_loss(*s)[0])),
        }
        times = {name: [] for name in ways}
        compile_seconds, results = {}, {}
        for name, gradient in ways.items():
            started = time.perf_counter()
            results[name] = jax.block_until_ready(gradient(*sets))
            compile_seconds[name] = time.perf_counter() - started
        for name, x in results["one by one"].items():
            scale = float(jnp.abs(x).max())
            for other in ("stacked", "as built"):
                np.testing.assert_allclose(results[other][name], x, atol=1e-4 * scale)
        for i in range(ROUNDS):
            for name in sorted(ways, reverse=bool(i % 2)):
                started = time.perf_counter()
                jax.block_until_ready(ways[name](*sets))
                times[name].append(time.perf_counter() - started)
        medians = {name: 1e3 * float(np.median(values)) for name, values in times.items()}
        for name in ways:
            print(f"{title}, {name}: {medians[name]:.1f} ms, compile {compile_seconds[name]:.0f} s")
        for name in ("stacked", "as built"):
            print(f"{title}, {name} / one by one: {medians[name] / medians['one by one']:.2f}")
        print()


if __name__ == "__main__":
    main()
