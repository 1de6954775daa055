"""Scheduled sampling: a coin for every token, and the gradients of the plain loop."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from attn_jax.models.protocol import BOS_ID, Batch, shift_right
from attn_jax.models.seq2seq import Seq2Seq, Seq2SeqConfig
from attn_jax.training.step import batch_loss, init_state, make_train_step
from tests.jaxprs import equations
from tests.random_params import random_params

VOCAB, ROWS, TIME = 12, 40, 41
SMALL = {"src_vocab_size": VOCAB, "tgt_vocab_size": VOCAB, "embed_dim": 4, "encoder_hidden": 4, "decoder_hidden": 6}


def make(**settings):
    return Seq2Seq(Seq2SeqConfig(**(SMALL | settings)))


def make_batch(rows=3, src_len=4, tgt_len=5):
    rng = np.random.default_rng(0)
    tokens = lambda n: rng.integers(4, VOCAB, (rows, n)).astype(np.int32)  # noqa: E731
    real = lambda n: np.arange(n) < np.minimum(n, 2 + np.arange(rows))[:, None]  # noqa: E731
    return Batch(src=tokens(src_len), src_mask=real(src_len), tgt=tokens(tgt_len), tgt_mask=real(tgt_len))


def mixed_inputs(module, batch, probability):
    """What the decoder is fed, without dropout."""
    keys, carry = module.encode(batch)
    return module._mixed_inputs(shift_right(batch.tgt), probability, keys, batch.src_mask, carry, None, None)


@pytest.fixture(scope="module")
def inputs_of_a_stubborn_model():
    """Mixed inputs of a model that only ever says UNK, which no target holds: where it stands, the coin was the own."""
    model = make(encoder_cell="rnn", decoder_cell="rnn", attention="dot", encoder_hidden=3)
    batch = make_batch(ROWS, 3, TIME)
    variables = {"params": random_params(model, batch)}
    variables["params"]["output_bias"] = 1e3 * jax.nn.one_hot(3, VOCAB)

    @jax.jit
    def run(probability, rng):
        return model.apply(variables, batch, probability, method=mixed_inputs, rngs={"sampling": rng})

    return batch, lambda probability, seed=1: np.asarray(run(probability, jax.random.key(seed)))


def test_a_coin_for_every_token(inputs_of_a_stubborn_model):
    batch, run = inputs_of_a_stubborn_model
    fed = run(0.5)
    assert (fed[:, 0] == BOS_ID).all()
    true = fed[:, 1:] == batch.tgt[:, :-1]
    assert (fed[:, 1:][~true] == 3).all()
    np.testing.assert_allclose(true.mean(), 0.5, atol=0.05)
    # Each step sees both outcomes over the rows, and each row over the steps: about half of 40 coins, each time.
    for shares in (true.mean(0), true.mean(1)):
        assert shares.min() > 0.15 and shares.max() < 0.85
    assert len(np.unique(true, axis=0)) == ROWS and len(np.unique(true, axis=1).T) == TIME - 1


def test_the_probability_is_that_of_the_true_token(inputs_of_a_stubborn_model):
    batch, run = inputs_of_a_stubborn_model
    for probability in (0.0, 0.2, 0.9, 1.0):
        true = run(probability)[:, 1:] == batch.tgt[:, :-1]
        np.testing.assert_allclose(true.mean(), probability, atol=0.04)
    assert not np.array_equal(run(0.5, seed=1), run(0.5, seed=2))


def plain_loss(module, batch, probability):
    """The loss of a loop without a scan, which feeds each step the true token or its own, and keeps all gradients."""
    keys, carry = module.encode(batch, deterministic=False)
    (rows, time), config, decoder = batch.tgt.shape, module.config, module.decoder
    masks = decoder.draw_masks(module.make_rng("dropout"), rows, time, keys.shape[-1])
    kept = module.drop(jnp.ones((rows, time, config.embed_dim), keys.dtype), deterministic=False)
    true_coin = jax.random.bernoulli(module.make_rng("sampling"), probability, (rows, time))
    pure, params = decoder.clone(parent=None), decoder.raw_params()
    memory, state = decoder.start(keys, batch.src_mask, carry)
    true, own, losses = shift_right(batch.tgt), shift_right(batch.tgt)[:, 0], []
    for t in range(time):
        token = jnp.where(true_coin[:, t], true[:, t], own)
        embedded = (module.tgt_embed(token) * kept[:, t])[:, None]
        dropped = jax.tree.map(lambda m, t=t: m[t], masks)
        x = pure.project_input(jnp.einsum, params, embedded)._replace(masks=dropped)
        state, output = pure.step_fn(jnp.einsum, params, memory, state, x)
        output = pure.complete(jnp.einsum, params, memory, output, embedded, dropped.features)
        logits = module.project(output.features[:, 0])
        own = jnp.argmax(logits, -1).astype(token.dtype)
        losses.append(optax.softmax_cross_entropy_with_integer_labels(logits, batch.tgt[:, t]))
    return jnp.sum(jnp.stack(losses, 1), where=batch.tgt_mask)


@pytest.mark.parametrize("settings", [{"decoder_layers": 2}, {"input_feeding": False, "attend_first": True}])
def test_gradients_are_those_of_a_plain_loop_with_the_same_draws(x64, settings):
    model, batch, rng = make(dropout=0.3, **settings), make_batch(rows=6), jax.random.key(7)
    params = random_params(model, batch)
    params = jax.tree.map(lambda p: 3 * p.astype(jnp.float64), params)  # large, so that dropout changes what it says
    dropout, sampling = jax.random.split(rng)

    def reference(params):
        rngs = {"dropout": dropout, "sampling": sampling}
        return model.apply({"params": params}, batch, 0.5, method=plain_loss, rngs=rngs)

    def two_passes(params):
        return batch_loss(model, params, batch, rng, teacher_forcing=0.5).loss

    expected, found = (jax.jit(jax.value_and_grad(f))(params) for f in (reference, two_passes))
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-12)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-10), found[1], expected[1])


def test_the_first_scan_keeps_nothing_for_a_gradient():
    model, batch = make(), make_batch()
    params = jax.eval_shape(model.init, jax.random.key(0), batch)["params"]
    loss = lambda p: batch_loss(model, p, batch, jax.random.key(0), teacher_forcing=0.5).loss  # noqa: E731
    scans = [e for e in equations(jax.make_jaxpr(jax.grad(loss))(params)) if e.primitive.name == "scan"]
    outs_of = lambda scan: zip(scan.outvars, scan.params["jaxpr"].jaxpr.outvars, strict=True)  # noqa: E731
    over_time = [[v.aval for v, of_step in outs_of(scan) if v.aval.ndim > of_step.aval.ndim] for scan in scans]
    (mixing,) = [outs for outs in over_time if any(out.dtype == jnp.int32 and out.shape == (5, 3) for out in outs)]
    assert len(mixing) == 1, f"beside the tokens it stacks {mixing}"


def test_another_probability_is_not_another_program(rng):
    traces = []

    class Counted(Seq2Seq):
        def features(self, *args, **options):
            traces.append(options["teacher_forcing"])
            return super().features(*args, **options)

    model, batch, optimizer = Counted(make().config), make_batch(), optax.sgd(0.1)
    state = init_state(make(), optimizer, batch, rng)
    step = make_train_step(model, optimizer)
    for probability in (0.3, 0.7, 0.3):
        state, metrics = step(state, batch, rng, probability)
        assert np.isfinite(metrics.loss)
    assert len(traces) == 1
    assert [f._cache_size() for f in step.jitted] == [1, 1]


def test_continuous_inputs_that_the_model_made_carry_no_gradient(rng):
    model = make(src_vocab_size=0, tgt_vocab_size=0, src_features=2, tgt_features=2)
    src, tgt = jax.random.normal(rng, (2, 3, 4, 2))
    real = jnp.ones((3, 4), bool)
    batch = Batch(src=src, src_mask=real, tgt=tgt, tgt_mask=real)
    params = random_params(model, batch)

    def fed(params, tgt):
        rngs = {"sampling": rng}
        return model.apply({"params": params}, batch.replace(tgt=tgt), 0.5, method=mixed_inputs, rngs=rngs)

    grads = jax.jit(jax.grad(lambda *args: jnp.sum(fed(*args) ** 2), argnums=(0, 1)))(params, tgt)
    assert not any(leaf.any() for leaf in jax.tree.leaves(grads))
