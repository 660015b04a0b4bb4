"""Other policies with the same network and data: regression, diffusion and flow matching.

All predict the scaled chunk of actions [H, d_a]. Regression maps the observations to it, with zeros
for noise, and has the mean squared error as its loss. Diffusion (DDPM) predicts the noise over 100
levels of the squared-cosine schedule, and takes all 100 steps to sample, with x0 cut to [-1, 1]:
the choices of Diffusion Policy. Flow matching predicts the velocity from noise to actions along
straight lines, and takes Euler steps. Both learn the time from features that are appended to each
observation, so that it reaches every layer as the observations do.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from drifting_jax.compiler.flops import product_flops
from drifting_jax.config import ConfigDict
from drifting_jax.config.streams import samples_key, stream_key
from drifting_jax.models.calls import apply, init_params
from drifting_jax.policy.networks import make_network
from drifting_jax.policy.program import PolicySizes, horizons_of
from drifting_jax.policy.scaling import Scalings
from drifting_jax.policy.training import read_data
from drifting_jax.policy.windows import Horizons
from drifting_jax.steps.state import NO_CULPRIT, apply_gradients, create_state, ema_name
from drifting_jax.training import build

PyTree = Any
LEVELS = 100  # of noise, and steps of diffusion
TIME_FEATURES = 16
STEPS_AT_ONCE = 50  # of training, in one program

# (x [n, H, d_a], observations [n, h, d_o], time [n] in [0, 1]) -> [n, H, d_a].
Network = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def with_time(observations: jax.Array, time: jax.Array) -> jax.Array:
    """Appends sines and cosines of time [n] to observations [n, h, d_o]."""
    angles = time[:, None] * jnp.pi * 2.0 ** np.arange(TIME_FEATURES // 2)
    features = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)[:, None]
    shape = (*observations.shape[:2], TIME_FEATURES)
    return jnp.concatenate([observations, jnp.broadcast_to(features, shape)], axis=-1)


def signal_shares() -> np.ndarray:
    """The share [LEVELS] of the variance that is signal after each level, squared-cosine."""
    at = np.arange(LEVELS + 1) / LEVELS
    whole = np.cos((at + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.cumprod(1 - np.minimum(1 - whole[1:] / whole[:-1], 0.999))


def regression_loss(network: Network, observations, actions, key):
    """Mean squared error."""
    time = jnp.zeros(len(actions))
    return jnp.mean(jnp.square(network(jnp.zeros_like(actions), observations, time) - actions))


def diffusion_loss(network: Network, observations, actions, key):
    """Mean squared error of the noise at a random level."""
    level_key, noise_key = jax.random.split(key)
    level = jax.random.randint(level_key, (len(actions),), 0, LEVELS)
    noise = jax.random.normal(noise_key, actions.shape)
    share = jnp.asarray(signal_shares(), jnp.float32)[level][:, None, None]
    noisy = jnp.sqrt(share) * actions + jnp.sqrt(1 - share) * noise
    return jnp.mean(jnp.square(network(noisy, observations, level / LEVELS) - noise))


def flow_loss(network: Network, observations, actions, key):
    """Mean squared error of the velocity at a random time."""
    time_key, noise_key = jax.random.split(key)
    time = jax.random.uniform(time_key, (len(actions),))
    noise = jax.random.normal(noise_key, actions.shape)
    at = time[:, None, None]
    found = network((1 - at) * noise + at * actions, observations, time)
    return jnp.mean(jnp.square(found - (actions - noise)))


def regression_chunks(network: Network, observations, noise, keys):
    """One evaluation."""
    return network(jnp.zeros_like(noise), observations, jnp.zeros(len(noise)))


def diffusion_chunks(network: Network, observations, noise, keys):
    """LEVELS evaluations: DDPM with the smaller of its two variances."""
    shares = signal_shares()
    before = np.concatenate([[1.0], shares[:-1]])
    step_share = shares / before  # 1 - beta
    tables = {
        "share": shares,
        "of_x0": np.sqrt(before) * (1 - step_share) / (1 - shares),
        "of_x": np.sqrt(step_share) * (1 - before) / (1 - shares),
        "deviation": np.sqrt((1 - step_share) * (1 - before) / (1 - shares)),
    }
    tables = {name: jnp.asarray(values, jnp.float32) for name, values in tables.items()}

    def step(x, level):
        t = {name: values[level] for name, values in tables.items()}
        time = jnp.full(len(x), level / LEVELS)
        predicted = network(x, observations, time)
        x0 = (x - jnp.sqrt(1 - t["share"]) * predicted) / jnp.sqrt(t["share"])
        x0 = jnp.clip(x0, -1, 1)
        fresh = jax.vmap(
            lambda key: jax.random.normal(jax.random.fold_in(key, level), x.shape[1:])
        )(keys)
        return t["of_x0"] * x0 + t["of_x"] * x + t["deviation"] * fresh, None

    return jax.lax.scan(step, noise, jnp.arange(LEVELS)[::-1])[0]


def flow_chunks(network: Network, observations, noise, keys, *, steps: int):
    """`steps` evaluations: Euler from noise to actions."""

    def step(x, i):
        return x + network(x, observations, jnp.full(len(x), i / steps)) / steps, None

    return jax.lax.scan(step, noise, jnp.arange(steps))[0]


LOSSES = {"regression": regression_loss, "diffusion": diffusion_loss, "flow": flow_loss}
# {name: (loss, what samples, evaluations for a chunk)}
BASELINES: dict[str, tuple[str, Callable[..., jax.Array], int]] = {
    "regression": ("regression", regression_chunks, 1),
    "diffusion_100": ("diffusion", diffusion_chunks, LEVELS),
    "flow_10": ("flow", functools.partial(flow_chunks, steps=10), 10),
    "flow_1": ("flow", functools.partial(flow_chunks, steps=1), 1),
}


def network_of(model: Any, params: PyTree) -> Network:
    """The network of parameters, for one chunk of each condition."""

    def network(x, observations, time):
        return apply(model, params, x[:, None], with_time(observations, time))[:, 0]

    return network


@dataclasses.dataclass(frozen=True)
class Baseline:
    """A policy that samples in another way; see `drifting_jax.policy.policy.Policy`.

    `chunks` is what BASELINES has for it.
    """

    horizons: Horizons
    sizes: PolicySizes
    scalings: Scalings
    params: PyTree
    model: Any
    chunks: Callable[..., jax.Array]
    batch_size: int

    def act(self, observations: np.ndarray, *, seed: int, indices: np.ndarray) -> np.ndarray:
        """Returns the actions to carry out [n, action horizon, d_a] of at most batch_size rows."""
        n, missing = len(observations), self.batch_size - len(observations)
        rows = np.pad(observations.astype(np.float32), ((0, missing), (0, 0), (0, 0)))
        numbers = np.pad(indices.astype(np.uint32), (0, missing))
        found = self._sampler(self.params, rows, numbers, np.uint32(seed))
        return np.asarray(found)[:n, self.horizons.executed]

    @functools.cached_property
    def _sampler(self) -> Callable[..., jax.Array]:
        @jax.jit
        def sampler(params, observations, indices, seed):
            shape = (self.horizons.prediction, self.sizes.action)
            keys = jax.vmap(jax.random.fold_in, (None, 0))(samples_key(seed), indices)
            noise = jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
            scaled = self.scalings.observation.scaled(observations)
            actions = self.chunks(network_of(self.model, params), scaled, noise, keys)
            return self.scalings.action.unscaled(jnp.clip(actions, -1, 1))

        return sampler


def initial(config: ConfigDict) -> PyTree:
    """Parameters before the training; the input layer is wider than a policy's by the time."""
    source = read_data(config).windows
    horizon, size = source.image_shape
    observations = jnp.zeros((1, *source.observation_shape))
    inputs = jnp.zeros((1, 1, horizon, size)), with_time(observations, jnp.zeros(1))
    return init_params(make_network(config), stream_key(config, "policy_init"), *inputs)


def train(config: ConfigDict, loss_name: str, *, flops: float) -> tuple[PyTree, dict[str, Any]]:
    """Trains a baseline for config.train.num_steps steps.

    Args:
      config: of task "policy": data, network, optimizer, steps, averages, seed.
      loss_name: a key of LOSSES.
      flops: of a step; the rows of a step are as many as come nearest to it.

    Returns:
      The average of decay config.eval.ema_decay, and {"rows": of a step, "flops": of a step}.
    """
    source = read_data(config).windows
    every = np.arange(len(source))
    observations = jnp.asarray(source.observation(every))
    actions = jnp.asarray(np.stack([source[i]["target"][0] for i in every]))
    model, optimizer = make_network(config), build.generator_optimizer(config)
    decay = config.eval.ema_decay
    state = create_state(initial(config), optimizer, ema_decays=(decay,))
    root = stream_key(config, "policy_steps")

    def step(state, _, *, rows):
        key, index_key = jax.random.split(jax.random.fold_in(root, state.step))
        chosen = jax.random.randint(index_key, (rows,), 0, len(actions))

        def loss_function(params):
            network = network_of(model, params)
            return LOSSES[loss_name](network, observations[chosen], actions[chosen], key)

        loss, gradients = jax.value_and_grad(loss_function)(state.params)
        state = apply_gradients(
            state,
            gradients,
            optimizer,
            ema_decays=(decay,),
            finite=jnp.isfinite(loss),
            culprit=jnp.int32(NO_CULPRIT),
        )
        return state, loss

    cost = product_flops(jax.make_jaxpr(functools.partial(step, rows=1))(state, 0))
    rows = max(1, round(flops / cost))

    @jax.jit
    def several(state):
        return jax.lax.scan(functools.partial(step, rows=rows), state, jnp.arange(STEPS_AT_ONCE))

    losses = []
    for _ in range(-(-config.train.num_steps // STEPS_AT_ONCE)):
        state, found = several(state)
        losses.append(float(jnp.mean(found)))
    record = {"rows": rows, "flops": cost * rows, "last_loss": losses[-1]}
    return jax.device_get(state.ema[ema_name(decay)]), record


def make_baseline(
    config: ConfigDict, name: str, params: PyTree, *, batch_size: int = 64
) -> Baseline:
    """The policy of trained parameters; `name` is a key of BASELINES."""
    data = read_data(config)
    return Baseline(
        horizons=horizons_of(config),
        sizes=data.sizes,
        scalings=data.scalings,
        params=params,
        model=make_network(config),
        chunks=BASELINES[name][1],
        batch_size=batch_size,
    )
