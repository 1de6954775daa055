"""Holds a PyTorch module and ours equal in outputs and gradients, in both directions of a conversion."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from attn_jax.convert.torch import from_torch, to_torch


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(jax.dtypes.canonicalize_dtype(float))


def shapes_of(module, *args, **options):
    """The shapes of a module's parameters, in the precision of the test."""
    created = jax.eval_shape(lambda: module.init(jax.random.key(0), *args, **options)).get("params", {})
    return jax.tree.map(lambda one: jax.ShapeDtypeStruct(one.shape, jax.dtypes.canonicalize_dtype(float)), created)


def random_params(like):
    leaves, treedef = jax.tree.flatten(like)
    return jax.tree.unflatten(treedef, [0.5 * normal(50 + i, *leaf.shape) for i, leaf in enumerate(leaves)])


def state_of(theirs):
    return {name: tensor.detach().numpy() for name, tensor in theirs.state_dict().items()}


def load(torch, theirs, params, layout):
    """Gives a module of PyTorch our parameters."""
    theirs.load_state_dict({name: torch.tensor(array) for name, array in to_torch(params, layout).items()})


def count(theirs):
    return sum(parameter.numel() for parameter in theirs.parameters())


def loss_of(outputs, sin):
    """A number that every output matters to."""
    return sum((sin(output) * (1 + index)).sum() for index, output in enumerate(outputs))


def run_torch(torch, theirs, run_theirs, inputs):
    """Outputs, and gradients by name and of each float input."""
    tensors = [torch.tensor(one, requires_grad=one.dtype.kind == "f") for one in inputs]
    theirs.zero_grad()
    outputs = run_theirs(theirs, *tensors)
    loss_of(outputs, torch.sin).backward()
    gradients = {
        name: (torch.zeros_like(one) if one.grad is None else one.grad).numpy()
        for name, one in theirs.named_parameters()
    }
    return [one.detach().numpy() for one in outputs], gradients, [one.grad for one in tensors if one.requires_grad]


def assert_equal_both_ways(torch, theirs, run_theirs, layout, params, run_ours, inputs, *, atol=1e-9, folds=False):
    """From PyTorch: outputs and gradients of parameters and inputs are equal. And back: the same for ``params``.

    Args:
      torch: the package.
      theirs: a module of PyTorch; its parameters are changed.
      run_theirs: ``(module, *tensors) -> outputs``.
      layout: between them.
      params: ours.
      run_ours: ``(params, *arrays) -> outputs``.
      inputs: arrays.
      atol: the largest difference.
      folds: whether the way back merges parameters, which are then others after another way there.
    """
    floats = [index for index, one in enumerate(inputs) if one.dtype.kind == "f"]

    def loss(params, given):
        outputs = run_ours(params, *(given.get(index, one) for index, one in enumerate(inputs)))
        return loss_of(outputs, jnp.sin), outputs

    ours = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
    given = {index: inputs[index] for index in floats}
    start = [{name: array.copy() for name, array in state_of(theirs).items()}, to_torch(params, layout)]
    worst = [0.0, 0.0]

    def compare(found, expected, kind):
        np.testing.assert_allclose(found, expected, atol=atol, rtol=0)
        worst[kind] = max(worst[kind], float(np.abs(found - expected).max(initial=0)))

    for state in start:
        theirs.load_state_dict({name: torch.tensor(array) for name, array in state.items()})
        expected, gradients, of_inputs = run_torch(torch, theirs, run_theirs, inputs)
        converted, backward = jax.vjp(lambda state: from_torch(state, layout, params), state)
        chex.assert_trees_all_equal_shapes_and_dtypes(converted, params)
        (d_params, d_inputs), outputs = ours(converted, given)
        for output, other in zip(outputs, expected, strict=True):
            compare(output, other, 0)
        (d_state,) = backward(d_params)
        assert d_state.keys() == gradients.keys()
        for name, gradient in gradients.items():
            compare(d_state[name], gradient, 1)
        for index, gradient in zip(floats, of_inputs, strict=True):
            compare(d_inputs[index], gradient.numpy(), 1)
    if folds:  # the state dict of ``params`` came last
        for output, other in zip(ours(params, given)[1], expected, strict=True):
            compare(output, other, 0)
    else:
        chex.assert_trees_all_equal(converted, params)
    print(f"largest difference: outputs {worst[0]:.1e}, gradients {worst[1]:.1e}")
