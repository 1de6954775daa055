"""A look at this machine: versions, devices, memory, and whether attention trains here."""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp
import numpy as np

from attn_jax.data.batching import Sequences
from attn_jax.data.tasks import reverse_task
from attn_jax.functional.products import PRECISIONS
from attn_jax.models.protocol import Batch
from attn_jax.models.seq2seq import Seq2Seq, Seq2SeqConfig
from attn_jax.training.environment import environment
from attn_jax.training.step import OptimizerConfig, init_state, make_optimizer, make_train_step

SELF_TEST_SECONDS = 5.0


def report() -> bool:
    """Prints versions, devices and measured speeds, and runs the self-test.

    Returns:
      Whether the self-test passed.
    """
    for name, value in environment().items():
        print(f"{name:12} {_flat(value)}")
    for name in PRECISIONS:
        print(f"{name:12} {matrix_rate(name):,.0f} GF/s in a product of 1024 x 1024 matrices")
    first, last, steps, seconds = self_test()
    passed = last < 0.8 * first
    verdict = "passed" if passed else "FAILED: the loss did not fall"
    print(f"self-test    {verdict}: loss {first:.2f} -> {last:.2f} in {steps} steps, {seconds:.1f} s with compilation")
    return passed


def matrix_rate(precision: str) -> float:
    """The rate of this machine's matrix product at a precision, in 10^9 operations a second: the best of ten."""
    product = jax.jit(lambda a, b: PRECISIONS[precision]("ij,jk->ik", a, b))
    a, b = jnp.ones((1024, 1024)), jnp.ones((1024, 1024))
    jax.block_until_ready(product(a, b))
    times = []
    for _ in range(10):
        start = time.perf_counter()
        jax.block_until_ready(product(a, b))
        times.append(time.perf_counter() - start)
    return 2 * 1024**3 / min(times) / 1e9


def self_test(seconds: float = SELF_TEST_SECONDS) -> tuple[float, float, int, float]:
    """Trains a small attention model to reverse sequences for a few seconds.

    Returns:
      The first and the last loss (nats a token), the number of steps, and the seconds it took.
    """
    started = time.perf_counter()
    task = reverse_task(256, 8, num_symbols=12, seed=0)
    sides = [Sequences.from_ids([ids.tolist() for ids in side]).padded(np.arange(256), 9) for side in task]
    (src, src_mask), (tgt, tgt_mask) = sides
    batch = Batch(src=src, src_mask=src_mask, tgt=tgt, tgt_mask=tgt_mask)
    size = int(src.max()) + 1
    model = Seq2Seq(
        Seq2SeqConfig(src_vocab_size=size, tgt_vocab_size=size, embed_dim=32, encoder_hidden=32, decoder_hidden=64)
    )
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-2, warmup=5, schedule="constant"), 1000)
    rng = jax.random.key(0)
    state, train_step, losses = init_state(model, optimizer, batch, rng), make_train_step(model, optimizer), []
    while len(losses) < 25 or (time.perf_counter() - started < seconds and len(losses) < 200):
        state, metrics = train_step(state, batch, rng)
        losses.append(float(metrics.loss / metrics.tokens))
    return losses[0], losses[-1], len(losses), time.perf_counter() - started


def _flat(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_flat(item)}" for name, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
