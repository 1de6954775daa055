"""Nothing is made for CPU alone: the training step and the search lower for every platform, without host callbacks."""

from functools import partial

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from attn_jax import Batch, Seq2Seq, Seq2SeqConfig, Transformer, TransformerConfig, beam_search, greedy, sample
from attn_jax.functional import dot_product_attention_chunked
from attn_jax.training.step import OptimizerConfig, TrainState, make_optimizer, make_train_step
from tests.jaxprs import assert_products_accumulate_in_float32, equations, products_of_compiled_loops

PLATFORMS = ("cpu", "cuda", "tpu")


def recurrent(**options):
    sizes = {"embed_dim": 4, "encoder_hidden": 4, "decoder_hidden": 8, "dropout": 0.1}
    return Seq2Seq(Seq2SeqConfig(src_vocab_size=9, tgt_vocab_size=9, **sizes, **options))


def transformer(**options):
    sizes = {"d_model": 8, "num_heads": 2, "ffn_dim": 8, "encoder_layers": 1}
    return Transformer(TransformerConfig(src_vocab_size=9, tgt_vocab_size=9, **sizes, **options))


MODELS = {
    "recurrent": recurrent(),
    "recurrent, bfloat16": recurrent(precision="bfloat16"),
    "transformer": transformer(),
}
NARROW_BLOCKS = transformer(precision="bfloat16", remat=True)


def batch_of_two(length=5):
    words, index = np.full((2, length), 4, np.int32), np.arange(2 * length, dtype=np.int32)
    return Batch(words, words > 0, words, words > 0, index)


def shapes_of(model, batch):
    return jax.eval_shape(model.init, jax.random.key(0), batch)["params"]


def check(function, *args):
    exported = jax.export.export(jax.jit(function), platforms=PLATFORMS)(*args)
    assert exported.platforms == PLATFORMS
    assert "callback" not in exported.mlir_module()


@pytest.mark.parametrize("model", [*MODELS.values(), NARROW_BLOCKS], ids=[*MODELS, "narrow blocks"])
def test_the_training_step_lowers_for_every_platform(model):
    batch = batch_of_two()
    params = shapes_of(model, batch)
    optimizer = make_optimizer(OptimizerConfig(), 100)
    gradient, update = make_train_step(model, optimizer, smoothing=0.1).jitted
    count = jax.ShapeDtypeStruct((), jnp.int32)
    state = TrainState(step=count, params=params, opt_state=jax.eval_shape(optimizer.init, params))
    check(lambda *args: gradient(*args, None, None), params, count, batch, jax.random.key(1))
    check(update, state, params)


@pytest.mark.parametrize("search", [greedy, partial(beam_search, beam=3), partial(sample, rng=jax.random.key(2))])
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_the_search_lowers_for_every_platform(model, search):
    batch = batch_of_two()

    def run(params, batch):
        variables = {"params": params}
        state = model.apply(variables, batch, 6, method="start")
        step = lambda tokens, state: model.apply(variables, tokens, state, method="step")  # noqa: E731
        return search(step, state, max_len=6)

    check(run, shapes_of(model, batch), batch)


@pytest.mark.parametrize(("dtype", "causal"), [(jnp.float32, True), (jnp.bfloat16, False)])
def test_attention_over_long_sentences_lowers_for_every_platform(dtype, causal):
    arrays = [jax.ShapeDtypeStruct((1, 8, 2, 4), dtype)] * 3
    attend = partial(dot_product_attention_chunked, causal=causal, block_q=4, block_k=4)
    check(jax.value_and_grad(lambda *qkv: jnp.sum(attend(*qkv)), argnums=(0, 1, 2)), *arrays)


def gradient_of(model, batch):
    """The gradient of a training step, and shapes to trace it with."""
    gradient, _ = make_train_step(model, make_optimizer(OptimizerConfig(), 100)).jitted
    return gradient, (
        shapes_of(model, batch),
        jax.ShapeDtypeStruct((), jnp.int32),
        batch,
        jax.random.key(1),
        None,
        None,
    )


@pytest.mark.parametrize(
    ("attention", "decoder", "compiled"), [("general", [5, 5], [5, 5]), ("additive", [6, 7], [6, 6])]
)
def test_the_loops_of_a_training_step_hold_one_product_for_each_that_feeds_back(attention, decoder, compiled):
    """Both ways: two encoder directions; the decoder's state, fed features, scores or query, context and readout.

    Additive scores have a vector beside the query, and XLA makes a sum of one of their products. The gradient of that
    vector is summed in the loop, as those of biases are: to sum it afterwards the squashed sums of queries and keys of
    all steps would have to be kept, or computed once more. No gradient of a matrix is.
    """
    gradient, args = gradient_of(recurrent(attention=attention), batch_of_two())
    loops = [eqn for eqn in equations(jax.make_jaxpr(gradient)(*args)) if eqn.primitive.name == "scan"]
    products = [sum(eqn.primitive.name == "dot_general" for eqn in equations(loop.params["jaxpr"])) for loop in loops]
    assert sorted(products) == [2, 2, *decoder]
    shapes = products_of_compiled_loops(gradient.lower(*args).compile().as_text())
    assert sorted(map(len, filter(None, shapes))) == [2, 2, *compiled]
    matrices = {leaf.shape for leaf in jax.tree.leaves(args[0]) if leaf.ndim == 2}
    assert matrices.isdisjoint(given for loop in shapes for shape in loop for given in (shape, shape[::-1]))


def test_no_product_of_a_training_step_sums_in_bfloat16():
    gradient, args = gradient_of(recurrent(precision="bfloat16"), batch_of_two())
    assert assert_products_accumulate_in_float32(gradient, *args) > 12


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_longer_sentences_are_no_larger_program(model):
    sizes = set()
    for length in (5, 50):
        gradient, args = gradient_of(model, batch_of_two(length))
        sizes.add(len(list(equations(jax.make_jaxpr(gradient)(*args)))))
    assert len(sizes) == 1
