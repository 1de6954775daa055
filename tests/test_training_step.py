"""The step: learning rates and updates by hand, what its random numbers depend on, and a tiny model to train."""

from dataclasses import dataclass

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from attn_jax.models.protocol import Batch
from attn_jax.models.seq2seq import shift_right
from attn_jax.training import step as step_room
from attn_jax.training.step import (
    DECAYS,
    OptimizerConfig,
    TrainState,
    batch_loss,
    clip_by_norm,
    init_state,
    learning_rate,
    make_optimizer,
    make_train_step,
)


@dataclass(frozen=True)
class EchoConfig:
    """What the training room reads of a model's config, and the dropout of `Echo`."""

    src_vocab_size: int = 7
    tgt_vocab_size: int = 7
    precision: str = "float32"
    dropout: float = 0.0


class Echo(nn.Module):
    """The smallest model that trains: the previous word and the mean of the source say the next word."""

    config: EchoConfig = EchoConfig()

    def setup(self):
        self.embed = nn.Embed(self.config.src_vocab_size, 4)
        self.drop = nn.Dropout(self.config.dropout)
        self.kernel = self.param("kernel", nn.initializers.lecun_normal(), (4, self.config.tgt_vocab_size))
        self.bias = self.param("bias", nn.initializers.zeros, (self.config.tgt_vocab_size,))

    def __call__(self, batch):
        return self.features(batch)[0] @ self.kernel + self.bias

    def features(self, batch, *, deterministic=True, teacher_forcing=None):
        del teacher_forcing
        mask = batch.src_mask[..., None]
        source = (self.embed(batch.src) * mask).sum(1, keepdims=True) / jnp.maximum(mask.sum(1, keepdims=True), 1)
        return self.drop(self.embed(shift_right(batch.tgt)) + source, deterministic=deterministic), None

    def output_weights(self):
        return self.kernel, self.bias, False


def make_batch(seed=0, rows=4, src_len=5, tgt_len=3, indexed=True):
    """Random words, the last row's last one padding."""
    rng = np.random.default_rng(seed)
    src, tgt = (rng.integers(3, 7, (rows, length)).astype(np.int32) for length in (src_len, tgt_len))
    mask = np.ones((rows, tgt_len), bool)
    mask[-1, -1], tgt[-1, -1] = False, 0
    index = np.full(mask.size, mask.size, np.int32)
    index[: mask.sum()] = np.flatnonzero(mask)
    return Batch(src, np.ones((rows, src_len), bool), tgt, mask, index if indexed else None)


def make_state(model, optimizer, seed=0):
    return init_state(model, optimizer, make_batch(), jax.random.key(seed))


# ------------------------------------------------------------------------------------------------------ learning rates


@pytest.mark.parametrize(
    ("schedule", "warmup", "total", "values"),
    [
        ("cosine", 4, 20, {0: 0.2, 1: 0.4, 3: 0.8, 4: 1, 8: (1 + 0.5**0.5) / 2, 12: 0.5, 20: 0}),
        ("cosine", 0, 20, {0: 1, 10: 0.5, 20: 0}),
        ("cosine", 400, 20, {0: 1 / 11, 9: 10 / 11, 10: 1, 15: 0.5, 20: 0}),  # the warm-up ends half way
        ("cosine", 400, 2, {0: 0.5, 1: 1}),
        ("cosine", 400, 1, {0: 1}),
        ("inverse_sqrt", 4, 100, {0: 0.2, 3: 0.8, 4: 1, 16: 0.5, 36: 1 / 3}),
        ("inverse_sqrt", 0, 100, {0: 1, 3: 0.5, 99: 0.1}),
        ("inverse_sqrt", 400, 20, {0: 1 / 11, 10: 1, 40: 0.5}),
        ("constant", 4, 20, {0: 0.2, 3: 0.8, 4: 1, 19: 1}),
        ("constant", 0, 20, {0: 1, 19: 1}),
        ("constant", 400, 20, {0: 1 / 11, 10: 1, 19: 1}),
    ],
)
def test_learning_rate_by_hand(schedule, warmup, total, values):
    rate = learning_rate(OptimizerConfig(learning_rate=0.01, schedule=schedule, warmup=warmup), total)
    found = {step: float(rate(step)) for step in values}
    assert found == pytest.approx({step: 0.01 * value for step, value in values.items()}, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("schedule", DECAYS)
@pytest.mark.parametrize("warmup", [0, 3, 1000])
@pytest.mark.parametrize("total", [1, 2, 3, 50])
def test_every_update_of_a_run_moves(schedule, warmup, total):
    rate = learning_rate(OptimizerConfig(schedule=schedule, warmup=warmup), total)
    values = np.array([float(rate(step)) for step in range(total)])
    assert (values > 0).all() and values.max() == pytest.approx(1e-3, rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule": "step"}, "schedule must be one of cosine, inverse_sqrt, constant; found 'step'"),
        ({"learning_rate": 0.0}, "learning_rate must be positive, found 0.0"),
        ({"learning_rate": float("nan")}, "learning_rate must be positive, found nan"),
        ({"learning_rate": float("inf")}, "learning_rate must be positive, found inf"),
        ({"warmup": -1}, "warmup must not be negative, found -1"),
        ({"weight_decay": -0.1}, "weight_decay must not be negative, found -0.1"),
        ({"weight_decay": float("nan")}, "weight_decay must not be negative, found nan"),
        ({"clip": -1.0}, "clip must not be negative, found -1.0"),
        ({"clip": float("nan")}, "clip must not be negative, found nan"),
        ({"beta1": 1.0}, r"beta1 must be in \[0, 1\), found 1.0"),
        ({"beta2": -0.1}, r"beta2 must be in \[0, 1\), found -0.1"),
    ],
)
def test_optimizer_config_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**settings)


# ------------------------------------------------------------------------------------------------------- the optimizer


def first_update(config, params, grads):
    optimizer = make_optimizer(config, 10)
    updates, state = optimizer.update(grads, optimizer.init(params), params)
    return optax.apply_updates(params, updates), state


@pytest.mark.parametrize(
    ("clip", "scale"), [(1.0, 0.2), (2.5, 0.5), (6.0, 1.0), (0.0, 1.0)], ids=["1", "2.5", "above the norm", "off"]
)
def test_the_gradient_is_clipped_by_its_global_norm(clip, scale):
    grads = {"a": jnp.array([3.0]), "b": jnp.array([[4.0]])}  # of norm 5, over both
    _, state = first_update(OptimizerConfig(clip=clip, beta1=0.9), jax.tree.map(jnp.zeros_like, grads), grads)
    moments = optax.tree_utils.tree_get(state, "mu")
    found = {name: float(moment.sum()) for name, moment in moments.items()}
    assert found == pytest.approx({"a": 0.1 * 3 * scale, "b": 0.1 * 4 * scale}, rel=1e-5)


@pytest.mark.parametrize(
    "gradient", [[0.3, 0.4], [3.0, 4.0], [0.6, 0.8], [0.0, 0.0], [jnp.nan, 1], [jnp.inf, 1], [1e30, 1]]
)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_clipping_is_that_of_optax(gradient, dtype):
    grads = {"a": jnp.array(gradient, dtype), "b": jnp.zeros((2, 2), dtype)}
    ours, theirs = (
        clip.update(grads, clip.init(grads))[0] for clip in (clip_by_norm(1.0), optax.clip_by_global_norm(1.0))
    )
    chex.assert_trees_all_close(ours, theirs, rtol=1e-6 if dtype == jnp.float32 else 1e-2)
    chex.assert_trees_all_equal_dtypes(ours, theirs)


def test_weight_decay_touches_matrices_only():
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2), "scale": jnp.ones(()), "table": jnp.ones((2, 1, 2))}
    config = OptimizerConfig(learning_rate=0.1, warmup=0, schedule="constant", weight_decay=0.5)
    after, _ = first_update(config, params, jax.tree.map(jnp.zeros_like, params))
    assert {name: float(value.mean()) for name, value in after.items()} == pytest.approx(
        {"kernel": 0.95, "bias": 1, "scale": 1, "table": 0.95}  # 1 - learning rate * decay
    )


def test_the_first_update_of_adam_is_the_learning_rate():
    params = {"w": jnp.array([1.0, 1.0, 1.0])}
    config = OptimizerConfig(learning_rate=0.1, warmup=1)  # 0.05 at first
    after, _ = first_update(config, params, {"w": jnp.array([0.2, -0.3, 0.0])})
    np.testing.assert_allclose(after["w"], [0.95, 1.05, 1.0], rtol=1e-5)


# ------------------------------------------------------------------------------------------------------------ the step


def test_the_norm_is_that_of_the_mean_gradient_before_clipping():
    model, batch = Echo(), make_batch()
    optimizer = make_optimizer(OptimizerConfig(clip=1e-3), 10)
    state = make_state(model, optimizer)
    total, grads = jax.value_and_grad(lambda p: batch_loss(model, p, batch, smoothing=0.1).loss)(state.params)
    expected = float(optax.tree.norm(grads)) / 11  # real target words: 4 rows of 3, less 1
    after, metrics = make_train_step(model, optimizer, smoothing=0.1)(state, batch, jax.random.key(1))
    assert float(metrics.grad_norm) == pytest.approx(expected, rel=1e-5) and expected > 1e-3
    assert float(metrics.loss) == pytest.approx(float(total), rel=1e-5)
    assert float(metrics.tokens) == 11 and int(after.step) == 1


def test_packed_targets_give_the_same_loss():
    model = Echo()
    params = make_state(model, optax.sgd(1.0)).params
    packed, plain = (batch_loss(model, params, make_batch(indexed=indexed)) for indexed in (True, False))
    np.testing.assert_allclose(packed, plain, rtol=1e-6)


def test_random_numbers_depend_on_the_step_alone():
    model, batch, rng = Echo(EchoConfig(dropout=0.5)), make_batch(), jax.random.key(3)
    optimizer = make_optimizer(OptimizerConfig(warmup=0), 100)
    step = make_train_step(model, optimizer)

    def loss_at(number, history):
        """The loss of the same parameters at a step, after a past of ``history`` updates on other batches."""
        state = make_state(model, optimizer)
        for seed in range(history):
            state, _ = step(state, make_batch(seed), jax.random.key(seed))
        fresh = make_state(model, optimizer).params
        number = jnp.asarray(number, jnp.int32)
        return float(step(TrainState(number, fresh, state.opt_state), batch, rng)[1].loss)

    assert loss_at(5, history=0) == loss_at(5, history=2)
    assert len({loss_at(number, history=0) for number in (0, 1, 5, 6)}) == 4  # other units are dropped
    plain = float(batch_loss(model, make_state(model, optimizer).params, batch).loss)
    assert loss_at(5, history=0) != pytest.approx(plain, rel=1e-3)


@pytest.mark.parametrize("options", [(), (np.float32(0.5),)], ids=["plain", "teacher forcing"])
def test_a_step_that_was_traced_while_the_state_was_drawn_is_not_traced_again(options, monkeypatch):
    model, batch, rng, traced, told = Echo(), make_batch(), jax.random.key(3), [], []
    loss = step_room.batch_loss

    def counted(*args, teacher_forcing, **settings):
        traced.append(teacher_forcing)
        return loss(*args, **settings)

    monkeypatch.setattr(step_room, "batch_loss", counted)
    optimizer = make_optimizer(OptimizerConfig(), 10)
    step = make_train_step(model, optimizer)
    gradient, _ = step.jitted

    def meanwhile(shapes):
        told.append(shapes)
        gradient.trace(shapes.params, shapes.step, batch, rng, *(options or [None]), None)
        assert len(traced) == 1

    state = init_state(model, optimizer, batch, jax.random.key(0), meanwhile=meanwhile)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, *told)
    chex.assert_trees_all_equal(state, make_state(model, optimizer))
    step(state, batch, rng, *options)
    assert len(traced) == 1


def test_what_fails_while_the_state_is_drawn_is_heard():
    with pytest.raises(ValueError, match="no model for this"):
        init_state(Echo(), optax.sgd(0.1), make_batch(), jax.random.key(0), meanwhile=raise_value_error)


def test_a_state_can_be_transformed():
    optimizer = make_optimizer(OptimizerConfig(), 10)
    state, make = make_state(Echo(), optimizer), lambda rng: init_state(Echo(), optimizer, make_batch(), rng)
    chex.assert_trees_all_equal_shapes_and_dtypes(jax.eval_shape(make, jax.random.key(0)), state)
    several = jax.vmap(make)(jax.random.split(jax.random.key(0), 3))
    assert several.params["kernel"].shape == (3, *state.params["kernel"].shape)


def test_a_state_is_drawn_without_jit_too():
    optimizer = make_optimizer(OptimizerConfig(), 10)
    with jax.disable_jit():
        drawn = make_state(Echo(), optimizer)
    chex.assert_trees_all_close(drawn, make_state(Echo(), optimizer), rtol=1e-6)


def raise_value_error(shapes):
    raise ValueError("no model for this")
