"""Two-dimensional toy: an MLP drifts onto a target, in pictures (5.1).

    python main.py --config=configs/toy2d.py              # two modes; q starts collapsed on one
    python main.py --config=configs/toy2d.py:far
    python main.py --config=configs/toy2d.py:checkerboard
    python main.py --config=configs/toy2d.py:attraction_only

A variant is one of these words, or several joined by commas:

* where q starts: collapsed, between, far;
* the target: two_modes, eight_gaussians, checkerboard, two_moons;
* a destructive case of Table 1: attraction_1.5x, repulsion_1.5x, attraction_2x, repulsion_2x,
  attraction_only. These break the anti-symmetry of the field and show what goes wrong then.

Takes under a minute on two CPU cores. The run writes drift.gif (q drifts to p), field.png and
drift.png, and prints the mass per mode and the sliced Wasserstein distance beside that of real
points. Expect about 0.024, against 0.018 of real points, for the default.
"""

from drifting_jax.config import base_config
from drifting_jax.errors import UserError

STARTS = ("collapsed", "between", "far")
TARGETS = ("two_modes", "eight_gaussians", "checkerboard", "two_moons")
DESTRUCTIVE = {  # name: (attraction, repulsion)
    "attraction_1.5x": (1.5, 1.0),
    "repulsion_1.5x": (1.0, 1.5),
    "attraction_2x": (2.0, 1.0),
    "repulsion_2x": (1.0, 2.0),
    "attraction_only": (1.0, 0.0),
}


def get_config(variant: str = "collapsed"):
    """Returns the config of a variant; `drifting_jax.config.fields` lists every field."""
    config = base_config("toy")
    for word in variant.split(","):
        if word in STARTS:
            config.start = word
        elif word in TARGETS:
            config.data.target = word
        elif word in DESTRUCTIVE:
            config.drift.attraction, config.drift.repulsion = DESTRUCTIVE[word]
        else:
            known = ", ".join((*STARTS, *TARGETS, *DESTRUCTIVE))
            raise UserError(f"configs/toy2d.py has no variant {word!r}; it knows {known}")
    return config
