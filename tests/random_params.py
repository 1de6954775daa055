"""Parameters without a model's own initialisation, which takes longer to compile than most tests."""

import jax
import numpy as np


def random_params(model, *args, scale=0.3, seed=0):
    """Normal ones, biases included, for a model that is given ``args``."""
    rng = np.random.default_rng(seed)
    draw = lambda leaf: (scale * rng.standard_normal(leaf.shape)).astype(leaf.dtype)  # noqa: E731
    return jax.tree.map(draw, jax.eval_shape(model.init, jax.random.key(0), *args)["params"])
