"""Two-dimensional toy (section 5.1 of the paper): an MLP drifts onto a target, in pictures.

    python main.py --config=configs/toy2d.py              # two modes, q collapsed on one of them
    python main.py --config=configs/toy2d.py:far
    python main.py --config=configs/toy2d.py:checkerboard
    python main.py --config=configs/toy2d.py:attraction_only

A variant is one word, or several joined by commas: where q starts (collapsed, between, far), the
target (two_modes, eight_gaussians, checkerboard, two_moons), and one of the destructive cases of
Table 1 (attraction_1.5x, repulsion_1.5x, attraction_2x, repulsion_2x, attraction_only), which break
the anti-symmetry of the field and show what then goes wrong.

Under a minute on two CPU cores. The run leaves drift.gif (q drifting to p), field.png, drift.png,
and prints the mass per mode and the sliced Wasserstein distance beside that of real against real.
"""

from drifting_jax.config import base_config
from drifting_jax.errors import UserError

STARTS = ("collapsed", "between", "far")
TARGETS = ("two_modes", "eight_gaussians", "checkerboard", "two_moons")
DESTRUCTIVE = {  # attraction, repulsion
    "attraction_1.5x": (1.5, 1.0),
    "repulsion_1.5x": (1.0, 1.5),
    "attraction_2x": (2.0, 1.0),
    "repulsion_2x": (1.0, 2.0),
    "attraction_only": (1.0, 0.0),
}


def get_config(variant: str = "collapsed"):
    """The config of a variant; every field and its default is in drifting_jax/defaults.py."""
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
