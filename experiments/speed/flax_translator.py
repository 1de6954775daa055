"""The translator of `experiments.speed.work` as it is usually written in Flax, the cell's products inside the loop.

Additive attention projects its keys once, before the loop, and general attention projects the query, so that no step
projects all values. The loop is ``nn.scan``, or unrolled in Python as in Dive into Deep Learning; the encoder is
``nn.RNN`` both ways.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from experiments.speed.measure import Work, compile_for
from experiments.speed.memory import executable_mb
from experiments.speed.work import CLIP, LEARNING_RATE, SMOOTHING, Data, Sizes


class Step(nn.Module):
    """One step of the decoder, from the embedded word before to logits."""

    sizes: Sizes

    @nn.compact
    def __call__(self, carry, embedded, keys, values, mask):
        """``embedded [batch, embed]`` to logits ``[batch, vocab]``; ``keys`` are projected for additive attention."""
        sizes, (state, fed) = self.sizes, carry
        state, hidden = nn.OptimizedLSTMCell(sizes.decoder)(state, jnp.concatenate([embedded, fed], -1))
        if sizes.attention == "additive":
            query = nn.Dense(sizes.decoder, name="query")(hidden)
            scores = nn.Dense(1, name="v")(jnp.tanh(query[:, None] + keys))[..., 0]
        else:
            query = nn.Dense(2 * sizes.encoder, use_bias=False, name="query")(hidden)
            scores = jnp.einsum("be,bke->bk", query, keys)
        weights = jax.nn.softmax(jnp.where(mask, scores, -1e9))
        context = jnp.einsum("bk,bkd->bd", weights, values)
        fed = jnp.tanh(nn.Dense(sizes.decoder, name="readout")(jnp.concatenate([hidden, context], -1)))
        return (state, fed), nn.Dense(sizes.vocab, name="output")(fed)


class Translator(nn.Module):
    """Encoder and decoder; ``unrolled`` repeats the step in Python instead of scanning it."""

    sizes: Sizes
    unrolled: bool

    @nn.compact
    def __call__(self, src, src_lengths, mask, tgt):
        """Logits ``[batch, tgt_len, vocab]``, fed the true words."""
        sizes = self.sizes
        embedded = nn.Embed(sizes.vocab, sizes.embed)(src)
        layers = [nn.RNN(nn.GRUCell(sizes.encoder), return_carry=True) for _ in range(2)]
        both = nn.Bidirectional(*layers, return_carry=True)
        carries, values = both(embedded, seq_lengths=src_lengths)
        keys = nn.Dense(sizes.decoder)(values) if sizes.attention == "additive" else values
        last = jnp.concatenate(carries, -1)
        hidden, cell = jnp.tanh(nn.Dense(sizes.decoder)(last)), nn.Dense(sizes.decoder)(last)
        inputs = nn.Embed(sizes.vocab, sizes.embed)(jnp.pad(tgt[:, :-1], ((0, 0), (1, 0)), constant_values=1))
        carry = ((cell, hidden), jnp.zeros_like(hidden))
        if self.unrolled:
            step, logits = Step(sizes), []
            for t in range(tgt.shape[1]):
                carry, now = step(carry, inputs[:, t], keys, values, mask)
                logits.append(now)
            return jnp.stack(logits, axis=1)
        axes = {"in_axes": (1, nn.broadcast, nn.broadcast, nn.broadcast), "out_axes": 1}
        scan = nn.scan(Step, variable_broadcast="params", split_rngs={"params": False}, **axes)
        return scan(sizes)(carry, inputs, keys, values, mask)[1]


def training(sizes: Sizes, data: Data, *, unrolled: bool = False) -> Work:
    """One update in one jitted function that is given the state's memory."""
    model = Translator(sizes, unrolled)
    arrays = jax.device_put((data.src, data.src_lengths, data.src_mask, data.tgt))
    optimizer = optax.chain(optax.clip_by_global_norm(CLIP), optax.adam(LEARNING_RATE, b2=0.98))
    real = jax.device_put(data.tgt_mask)
    params = jax.jit(model.init)(jax.random.key(0), *arrays)
    state = params, optimizer.init(params)

    def mean_loss(params):
        targets = optax.smooth_labels(jax.nn.one_hot(arrays[-1], sizes.vocab), SMOOTHING)
        losses = optax.softmax_cross_entropy(model.apply(params, *arrays), targets)
        return jnp.sum(losses * real) / jnp.sum(real)

    def update(state):
        params, opt_state = state
        loss, grads = jax.value_and_grad(mean_loss)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    compiled, seconds = compile_for(jax.jit(update, donate_argnums=0), state)

    def call() -> None:
        nonlocal state
        state, _ = jax.block_until_ready(compiled(state))

    return Work(call, executable_mb(compiled), seconds)
