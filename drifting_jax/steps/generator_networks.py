"""The networks of a generator's step, applied to groups of samples of class rows."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from drifting_jax.distributed import class_rows, meshes
from drifting_jax.method.encoders import FeatureFunction
from drifting_jax.models import generators
from drifting_jax.models.calls import apply
from drifting_jax.steps.generator_rows import Rows, real_samples

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Networks:
    """The networks of a step, on groups of samples of class rows [c, n, ...]."""

    model: nn.Module
    feature_function: FeatureFunction
    frozen: PyTree
    mesh: Mesh

    def generate(self, params: PyTree, rows: Rows, keys: jax.Array) -> jax.Array:
        """Returns [c, g, h, w, channels] samples of keys [c, g] of rows, split over the mesh."""
        # Gathered for use: split weights would split the activations, over channels.
        params = jax.lax.with_sharding_constraint(params, meshes.replicated(self.mesh))
        c, g = keys.shape
        sharding = meshes.row_sharding(self.mesh, c, g)

        def for_each_sample(per_row: jax.Array) -> jax.Array:
            return class_rows.merge(jnp.broadcast_to(per_row[:, None], (c, g)), sharding)

        def draw(key: jax.Array) -> tuple[jax.Array, ...]:
            found = generators.draw_inputs(key, self.model)
            return *found, *generators.dropout_inputs(key, self.model)

        drawn = jax.vmap(jax.vmap(draw))(keys)
        noise, styles, *dropout = (class_rows.merge(x, sharding) for x in drawn)
        generated = apply(
            self.model,
            params,
            noise,
            for_each_sample(rows.label),
            styles,
            for_each_sample(rows.cfg_scale),
            *dropout,
        )
        generated = class_rows.keep_split(generated, sharding)
        return class_rows.split(generated, sharding, c, g)

    def maps(self, groups: Mapping[str, jax.Array]) -> dict[str, PyTree]:
        """Returns {group: maps [c, n, ...]} of groups of images, in one call of the encoders."""
        of_images = functools.partial(self.feature_function.maps, self.frozen)
        return class_rows.of_rows(of_images, self.mesh, groups)

    def maps_of_all(self, params: PyTree, rows: Rows) -> dict[str, PyTree]:
        """Returns the maps of the generated and the real samples of some rows."""
        generated = self.generate(params, rows, rows.input_keys)
        return self.maps({"generated": generated} | self.other_samples(params, rows))

    def other_samples(self, params: PyTree, rows: Rows) -> dict[str, jax.Array]:
        """Returns the samples of some rows that no gradient reaches: real ones, and fresh ones."""
        found = real_samples(rows)
        if rows.fresh_keys is not None:
            found["fresh"] = self.generate(params, rows, rows.fresh_keys)
        return found

    def features(self, maps: Mapping[str, PyTree]) -> dict[str, dict[str, jax.Array]]:
        """Returns {group: {name: [c, n, t, d]}} of the maps of groups (3.4)."""
        return {group: jax.vmap(self.feature_function.features)(x) for group, x in maps.items()}
