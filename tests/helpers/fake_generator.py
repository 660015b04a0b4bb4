"""A generator that costs nothing: 8x8 noise that depends on label, index, seed and α."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from drifting_jax.steps import sampling


@dataclasses.dataclass(frozen=True)
class FakeGenerator:
    """The samples in `bad`, each given as 1000·label + index, are not finite."""

    mesh: object
    bad: tuple[int, ...] = ()
    class_names: tuple[str, ...] = ("a", "b", "c")
    step: int = 5
    ema_decay: float = 0.9
    config: object = None
    params: object = dataclasses.field(default_factory=lambda: {"w": np.ones(3)})

    @property
    def average_record(self):
        return {"ema_decay": self.ema_decay}

    def check_makes_pixels(self):
        pass

    def batches(self, labels, indices, *, seed, cfg_scale, batch_size):
        def sampler(params, key, labels, indices, scale):
            noise = jax.vmap(
                lambda a, b: jax.random.uniform(jax.random.fold_in(jax.random.key(a), b), (8, 8, 3))
            )(labels + 100 * seed, indices)
            finite = ~jnp.isin(labels * 1000 + indices, jnp.asarray(self.bad or (-1,)))
            return sampling.Samples((noise * 255 / scale).astype(jnp.uint8), finite)

        return sampling.sample_in_batches(
            jax.jit(sampler),
            None,
            None,
            labels,
            indices,
            cfg_scale=cfg_scale,
            batch_size=batch_size,
            mesh=self.mesh,
        )
