"""The tensors of another library's model by name: each taken in the shape that ours needs, and none left over."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from attn_jax.convert.errors import ConversionError


class Tensors:
    """What is there, and what was asked for. Faults are collected, so that `check` can name all of them.

    Args:
      arrays: theirs by name.
      where: what an error names.

    >>> tensors = Tensors({"bias": np.ones(3)}, "model.bin")
    >>> tensors.take("bias", 3).sum()
    np.float64(3.0)
    >>> tensors.check()
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], where: str):
        self.arrays, self.where = arrays, where
        self.taken: dict[str, tuple[int, ...]] = {}

    def take(self, name: str, *shape: int) -> np.ndarray:
        """The tensor of that name; zeros where there is none of that shape, and then `check` fails."""
        self.taken[name] = shape
        found = self.arrays.get(name)
        return found if found is not None and found.shape == shape else np.zeros(shape, np.float32)

    def check(self) -> None:
        """Compares names and shapes of all that was taken with all that is there.

        Raises:
          ConversionError: with every tensor that is missing, left over or of another shape.
        """
        missing, left = sorted(self.taken.keys() - self.arrays.keys()), sorted(self.arrays.keys() - self.taken.keys())
        remedy = "do the settings and the weights belong together?"
        if missing or left:
            raise ConversionError(
                f"{self.where}: expected {len(self.taken)} tensors, found {len(self.arrays)}; missing: "
                f"{', '.join(f'{name} {list(self.taken[name])}' for name in missing) or 'none'}; not expected: "
                f"{', '.join(f'{name} {list(self.arrays[name].shape)}' for name in left) or 'none'}; {remedy}"
            )
        wrong = [name for name, shape in sorted(self.taken.items()) if self.arrays[name].shape != shape]
        if wrong:
            shapes = (f"{name} {list(self.taken[name])}, found {list(self.arrays[name].shape)}" for name in wrong)
            raise ConversionError(f"{self.where}: expected {'; '.join(shapes)}; {remedy}")
