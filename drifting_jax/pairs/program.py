"""The network and the program of a generator that learns from pairs."""

import flax.linen as nn
from jax.sharding import Mesh

from drifting_jax.config import ConfigDict
from drifting_jax.errors import UserError
from drifting_jax.models import generators
from drifting_jax.models.conditioned import ConditionedGenerator, ConditionedMLP
from drifting_jax.pairs.facts import PairShapes
from drifting_jax.training import single_target
from drifting_jax.training.program import Program


def make_network(config: ConfigDict, shapes: PairShapes) -> nn.Module:
    """Returns the network of config.model, whose condition is an array.

    Raises:
      UserError: it cannot make images of this shape, or cannot read such conditions.
    """
    m, c = config.model, config.condition
    is_map = c.kind == "map"
    if m.kind == "mlp":
        if is_map:
            raise UserError("config.condition.kind='map' needs config.model.kind 'dit' or 'unet'")
        return ConditionedMLP(
            width=m.width,
            depth=m.depth,
            mlp_ratio=m.mlp_ratio,
            condition_width=c.width,
            condition_depth=c.depth,
        )
    if is_map and len(shapes.condition) != 3:
        raise UserError(
            "config.condition.kind='map' needs conditions [n, h, w, channels]; found "
            f"{['n', *shapes.condition]}: use 'vector'"
        )
    try:
        generator = generators.make_generator(
            _section(config), kind=m.kind, image_shape=shapes.image, num_classes=1
        )
    except ValueError as error:
        raise UserError(str(error)) from None
    further = shapes.condition[-1] if is_map else 0
    generator = generator.clone(condition_width=c.width, in_channels=shapes.image[-1] + further)
    return ConditionedGenerator(generator, width=c.width, depth=c.depth, as_map=is_map)


def _section(config: ConfigDict) -> ConfigDict:
    """The section of a generator of classes, of which config.model has a part."""
    values = config.model.to_dict() | {"num_style_books": 0, "styles_per_book": 0}
    values["unet"] |= {"dropout": 0.0, "condition_width": config.condition.width}
    return ConfigDict(values)


def pairs_program(config: ConfigDict, shapes: PairShapes, mesh: Mesh) -> Program:
    """Assembles the step of a generator of pairs.

    Raises:
      UserError: the network does not fit the pairs.
    """
    task = single_target.TaskSpec(
        name="pairs",
        feature="images",
        model=make_network(config, shapes),
        condition=shapes.condition,
        target=shapes.image,
    )
    try:
        return single_target.assemble(config, task, mesh)
    except UserError:
        raise
    except ValueError as error:  # of the network, whose shapes are traced
        reason = str(error).partition("\n")[0]
        raise UserError(f"config.model does not fit the data: {reason}") from None
