"""PyTorch state dicts to parameters of linen modules, and back. Neither direction needs PyTorch.

A *layout* says where each array goes: rules ``(their names, our names, transform)``. It is data, and holds no size;
`attn_jax.convert.torch_layouts` has the layouts of ``torch.nn`` and of whole models. `from_torch` is an affine function
of the state dict, so JAX can differentiate through it; `to_torch` gives a state dict from which it makes the same
parameters again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

Array = jax.Array | np.ndarray


class Transform(NamedTuple):
    """How arrays of one side become those of the other.

    Attributes:
      there: ``(theirs, like) -> ours``; ``like`` are arrays or shapes that ours must have.
      back: ``ours -> theirs``.
    """

    there: Callable[[Sequence[Array], Sequence[Any]], Sequence[Array]]
    back: Callable[[Sequence[Array]], Sequence[Array]]


class Rule(NamedTuple):
    """One line of a layout: names in the state dict, paths ``a/b`` in the parameters, and what is done in between.

    Without names of theirs, it says what PyTorch's module does not have: ours are made by ``there`` from nothing, and
    must be zeros on the way back.
    """

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    transform: Transform


Layout = tuple[Rule, ...]


def _joined(axis: int, turned: bool) -> Transform:
    """One array of theirs is ours, joined along ``axis`` of ours."""
    turn = (lambda array: array.T) if turned else (lambda array: array)

    def there(theirs, like):
        ends = np.cumsum([one.shape[axis] for one in like])
        return jnp.split(turn(theirs[0]), ends[:-1], axis)

    return Transform(there, lambda ours: [turn(jnp.concatenate(ours, axis))])


COLUMNS = _joined(0, turned=True)
"""``weight [out, in]`` is ``kernel [in, out]`` turned; or several kernels, if the input is vectors side by side."""
ROWS = _joined(1, turned=True)
"""The same for several kernels ``[in, out]`` of one input, whose outputs are side by side."""
ENTRIES = _joined(0, turned=False)
"""As it is; or several arrays, one after the other."""
VECTOR = Transform(lambda theirs, like: [theirs[0][0]], lambda ours: [ours[0][None]])
"""A weight with one output, ``[1, in]``, is a vector."""
ZEROS = Transform(lambda theirs, like: [jnp.zeros(one.shape, one.dtype) for one in like], lambda ours: [])
"""PyTorch's module has no such array, which is as if it were zeros."""
BIASES = Transform(lambda theirs, like: [theirs[0] + theirs[1]], lambda ours: [ours[0], jnp.zeros_like(ours[0])])
"""PyTorch adds a bias to the input's product and one to the state's: only their sum matters."""


def _gru_biases_there(theirs: Sequence[Array], like: Sequence[Any]) -> Sequence[Array]:
    inner, candidate = jnp.split(theirs[1], [2 * like[1].shape[0]])
    return [theirs[0] + jnp.concatenate([inner, jnp.zeros_like(candidate)]), candidate]


def _gru_biases_back(ours: Sequence[Array]) -> Sequence[Array]:
    bias, candidate = ours
    return [bias, jnp.concatenate([jnp.zeros(2 * candidate.shape[0], bias.dtype), candidate])]


GRU_BIASES = Transform(_gru_biases_there, _gru_biases_back)
"""The gates r and z take the sum of both biases; the candidate keeps its second, which the reset gate multiplies."""

_product = partial(jnp.matmul, precision="highest")

ONE_HOT = Transform(
    lambda theirs, like: [jnp.eye(*like[0].shape, dtype=like[0].dtype), *(weight.T for weight in theirs)],
    lambda ours: [_product(ours[0], kernel).T for kernel in ours[1:]],
)
"""Weights that read one-hot words are kernels after an embedding: the identity there, their product on the way back."""


def _dense_first_there(theirs: Sequence[Array], like: Sequence[Any]) -> Sequence[Array]:
    weight, *biases = theirs
    nothing = jnp.zeros(like[1].shape, like[1].dtype)
    return [jnp.eye(*like[0].shape, dtype=like[0].dtype), nothing, weight.T, sum(biases)]


def _dense_first_back(ours: Sequence[Array]) -> Sequence[Array]:
    embed, embed_bias, kernel, bias = ours
    return [_product(embed, kernel).T, bias + _product(embed_bias, kernel), jnp.zeros_like(bias)]


DENSE_FIRST = Transform(_dense_first_there, _dense_first_back)
"""A recurrent layer that reads continuous inputs as they are is one after a dense layer: identity, or the product."""


def numbered(transform: Transform, ids: Sequence[int] | None, missing: float = 0.0) -> Transform:
    """A transform between vocabularies that number their words differently; theirs has a row for each word.

    Args:
      transform: what is done besides, one array to one.
      ids: our id of each of their words, in their order; None: the same numbers.
      missing: what words get that they do not have. On the way back those are left out.

    Raises:
      ValueError: in both directions, for an id that comes twice or is not one of ours.

    >>> embedding = numbered(ENTRIES, [1, 2, 4])
    >>> (ours,) = embedding.there([jnp.array([[5.0], [6.0], [7.0]])], [jnp.zeros((5, 1))])
    >>> ours.ravel().tolist(), embedding.back([ours])[0].ravel().tolist()
    ([0.0, 5.0, 6.0, 0.0, 7.0], [5.0, 6.0, 7.0])
    """
    if ids is None:
        return transform
    rows = np.asarray(ids)

    def there(theirs, like):
        (whole,) = jax.eval_shape(transform.back, like)
        return transform.there([jnp.full(whole.shape, missing, whole.dtype).at[rows].set(theirs[0])], like)

    def back(ours):
        (whole,) = transform.back(ours)
        size = whole.shape[0]
        if len(set(ids)) < len(ids) or not all(0 <= row < size for row in ids):
            raise ValueError(f"ids must be one number for each word, all different, below {size}; found {list(ids)}")
        return [whole[rows]]

    return Transform(there, back)


def under(theirs: str, ours: str, layout: Layout) -> Layout:
    """The layout of a submodule: what is called ``theirs`` there and ``ours`` here stands before each name.

    >>> [(rule.theirs, rule.ours) for rule in under("fc", "head", (Rule(("weight",), ("kernel",), COLUMNS),))]
    [(('fc.weight',), ('head/kernel',))]
    """
    return tuple(
        Rule(
            tuple(f"{theirs}.{name}" if theirs else name for name in rule.theirs),
            tuple(f"{ours}/{name}" if ours else name for name in rule.ours),
            rule.transform,
        )
        for rule in layout
    )


def override(layout: Layout, *rules: Rule) -> Layout:
    """The layout with ``rules`` in place of those for the same arrays of the state dict.

    >>> plain = Rule(("weight",), ("kernel",), COLUMNS), Rule(("bias",), ("bias",), ENTRIES)
    >>> [rule.ours for rule in override(plain, Rule(("weight",), ("embedding", "kernel"), ONE_HOT))]
    [('bias',), ('embedding', 'kernel')]
    """
    taken = {name for rule in rules for name in rule.theirs}
    return (*(rule for rule in layout if not taken.intersection(rule.theirs)), *rules)


_WITHOUT_COUNTERPART = {
    "weight_hr": "an LSTM with proj_size, whose projection has no counterpart here; train it without proj_size",
    "bias_k": "attention with add_bias_kv, which has no counterpart here; train it without add_bias_kv",
}


def from_torch(state: Mapping[str, Array], layout: Layout, like: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a linen module from a PyTorch state dict.

    Args:
      state: arrays by name: ``{name: array.numpy() for name, array in module.state_dict().items()}``, or read from a
        safetensors file.
      layout: which array becomes which.
      like: parameters of our module, or only their shapes: ``jax.eval_shape(module.init, key, inputs)["params"]``.

    Returns:
      Nested parameters with the shapes and types of ``like``.

    Raises:
      ValueError: if the names of the state dict, or of ``like``, are not those of the layout (with both); for shapes
        that do not fit (with those expected and found); and for what has no counterpart.

    >>> layout = Rule(("weight",), ("kernel",), COLUMNS), Rule(("bias",), ("bias",), ENTRIES)
    >>> like = {"kernel": jnp.zeros((2, 1)), "bias": jnp.zeros(1)}
    >>> params = from_torch({"weight": np.array([[1.0, 2.0]]), "bias": np.array([3.0])}, layout, like)
    >>> params["kernel"].tolist(), params["bias"].tolist()
    ([[1.0], [2.0]], [3.0])
    """
    for name in state:
        for part, what in _WITHOUT_COUNTERPART.items():
            if name.split(".")[-1].startswith(part):
                raise ValueError(f"{name!r} belongs to {what}")
    shapes, ours = flatten_dict(like, sep="/"), {}
    _check_names("the state dict", state, [name for rule in layout for name in rule.theirs])
    _check_names("the module", shapes, [name for rule in layout for name in rule.ours])
    for rule in layout:
        wanted = [jax.ShapeDtypeStruct(shapes[name].shape, shapes[name].dtype) for name in rule.ours]
        arrays = [jnp.asarray(state[name], wanted[0].dtype) for name in rule.theirs]
        expected = jax.eval_shape(lambda *of, rule=rule: _back(rule, of), *wanted)
        for name, array, shape in zip(rule.theirs, arrays, expected, strict=True):
            if array.shape != shape.shape:
                raise ValueError(_misfit(name, shape.shape, array.shape, rule, wanted))
        made = rule.transform.there(arrays, wanted)
        for array, shape in zip(made, wanted, strict=True):
            if array.shape != shape.shape:
                found = ", ".join(f"{name} {array.shape}" for name, array in zip(rule.ours, made, strict=True))
                raise ValueError(
                    f"{_named(rule.ours, wanted)} expected, found {found} from {', '.join(rule.theirs)}; give the "
                    "module these sizes (an embedding that stands for one-hot words is as wide as they are many)"
                )
        ours |= zip(rule.ours, made, strict=True)
    return unflatten_dict(ours, sep="/")


def to_torch(params: Mapping[str, Any], layout: Layout) -> dict[str, np.ndarray]:
    """The state dict of a PyTorch module from our parameters, for ``load_state_dict`` after ``torch.tensor``.

    What PyTorch stores twice, the biases of recurrent layers, is in the first of the two; the second is zeros.

    Args:
      params: of a linen module.
      layout: which array becomes which.

    Returns:
      Arrays by name.

    Raises:
      ValueError: if the names of ``params`` are not those of the layout (with both); for shapes that do not fit
        together; and for parameters that PyTorch's module does not have, unless they are zeros.

    >>> layout = Rule(("weight",), ("kernel",), COLUMNS), Rule((), ("bias",), ZEROS)
    >>> to_torch({"kernel": jnp.array([[1.0], [2.0]]), "bias": jnp.zeros(1)}, layout)
    {'weight': array([[1., 2.]], dtype=float32)}
    """
    ours = flatten_dict(params, sep="/")
    _check_names("the parameters", ours, [name for rule in layout for name in rule.ours])
    state = {}
    for rule in layout:
        arrays = [jnp.asarray(ours[name]) for name in rule.ours]
        if not rule.theirs and any(np.any(array) for array in arrays):
            raise ValueError(
                f"{', '.join(rule.ours)} must be zeros, because the PyTorch module has nothing in their place; give it "
                "biases, and use the layout with them"
            )
        state |= zip(rule.theirs, map(np.asarray, _back(rule, arrays)), strict=True)
    return state


def _back(rule: Rule, arrays: Sequence[Array]) -> Sequence[Array]:
    """``back`` of a rule; a ValueError if its arrays have shapes that do not fit together."""
    try:
        return rule.transform.back(arrays)
    except TypeError as error:
        raise ValueError(
            f"{_named(rule.ours, arrays)} do not fit together as {', '.join(rule.theirs)}; choose the layout of the "
            "PyTorch module that has them"
        ) from error


def _check_names(what: str, found: Collection[str], expected: Collection[str]) -> None:
    """Raises a ValueError with both sets of names unless they are the same."""
    missing, more = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if missing or more:
        raise ValueError(
            f"{what} and the layout differ: expected {', '.join(sorted(expected))}; found {', '.join(sorted(found))}; "
            f"missing: {', '.join(missing) or 'none'}; too many: {', '.join(more) or 'none'}; choose the layout of "
            "this module, rename entries, or leave out what it does not use"
        )


def _misfit(name: str, expected: tuple, found: tuple, rule: Rule, wanted: Sequence[Any]) -> str:
    return (
        f"{name}: expected shape {expected} for {_named(rule.ours, wanted)}, found {found}; build the module with the "
        "sizes of the state dict, or choose the layout of the PyTorch module that it is from"
    )


def _named(names: Sequence[str], arrays: Sequence[Any]) -> str:
    return ", ".join(f"{name} {tuple(array.shape)}" for name, array in zip(names, arrays, strict=True))


# ----------------------------------------------------------------------------------------------------- recurrent states


def carry_from_torch(state: Any, *, bidirectional: bool = False) -> tuple:
    """The carry of a `attn_jax.nn.recurrent.RecurrentStack` from PyTorch's ``h_n``, or an LSTM's ``(h_n, c_n)``.

    Args:
      state: arrays ``[layers * directions, batch, hidden]``, the directions of a layer next to each other.
      bidirectional: whether there are two.

    Returns:
      One carry a layer; with both directions a pair of them. Ours of an LSTM is ``(cell, hidden)``.

    >>> carry = carry_from_torch((np.full((2, 1, 1), 5.0), np.full((2, 1, 1), 7.0)))
    >>> len(carry), [array.item() for array in carry[0]]
    (2, [7.0, 5.0])
    """
    arrays = state[::-1] if isinstance(state, tuple) else (state,)
    steps = [tuple(map(jnp.asarray, one)) if len(one) > 1 else jnp.asarray(one[0]) for one in zip(*arrays, strict=True)]
    return tuple(zip(steps[::2], steps[1::2], strict=True)) if bidirectional else tuple(steps)


def carry_to_torch(carry: tuple, *, bidirectional: bool = False) -> Any:
    """PyTorch's ``h_n``, or an LSTM's ``(h_n, c_n)``, from the carry of a stack: the inverse of `carry_from_torch`.

    >>> hidden, cell = carry_to_torch(((jnp.full((1, 1), 7.0), jnp.full((1, 1), 5.0)),))
    >>> hidden.tolist(), cell.tolist()
    ([[[5.0]]], [[[7.0]]])
    """
    steps = [one for layer in carry for one in (layer if bidirectional else (layer,))]
    if not isinstance(steps[0], tuple):
        return np.stack(steps)
    cell, hidden = (np.stack(part) for part in zip(*steps, strict=True))
    return hidden, cell
