"""The shapes in the signatures hold: beartype checks them, through jaxtyping, in processes of their own."""

import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jaxtyping import TypeCheckError, install_import_hook

ROOT = Path(__file__).resolve().parents[1]
PACKAGES, CHECKER = ("attn_jax.functional", "attn_jax.nn"), "beartype.beartype"


def test_doctests_pass_with_checked_annotations():
    hook = f"--jaxtyping-packages={','.join((*PACKAGES, CHECKER))}"
    folders = [package.replace(".", "/") for package in PACKAGES]
    options = ["-q", "-n", "0", "-p", "no:cacheprovider", "-p", "tests.conftest", hook]  # conftest: short compilations
    found = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *folders],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr


def test_a_wrong_shape_is_refused():
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        process.submit(call_with_right_and_wrong_shapes).result()


def call_with_right_and_wrong_shapes():
    """Traces each call with arguments that fit, then with another last argument that does not."""
    with install_import_hook(PACKAGES, CHECKER):
        from attn_jax import functional
        from attn_jax.nn import attention, decoder, recurrent, transformer

    def real(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    def mask(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.bool)

    def ids(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.int32)

    def module(layer, **options):
        return partial(layer.init_with_output, jax.random.key(0), **options)

    query, keys, inputs, features = real(2, 3, 4), real(2, 5, 4), real(2, 5, 6), real(2, 3, 8)
    block = {"features": 8, "num_heads": 2, "ffn_dim": 4}
    decode = module(
        decoder.AttentionDecoder(6, 7, attention.GeneralAttention(), cell="gru"), carry=(jnp.zeros((2, 6)),)
    )
    calls = [
        (functional.expand_mask, [], mask(2, 5), mask(5)),
        (functional.softmax, [keys], mask(5, 1), mask(3, 1)),
        (functional.additive_scores, [query, keys], real(4), real(1)),
        (functional.concat_scores, [query, keys, real(8, 6)], real(6), real(4)),
        (functional.dot_scores, [query], keys, real(2, 5, 1)),
        (functional.attend, [real(2, 3, 5)], keys, query),
        (functional.attend, [real(2, 7, 3, 5)], real(2, 5, 7, 4), real(2, 5, 1, 4)),
        (functional.dot_product_attention_chunked, 2 * [real(2, 5, 1, 4)], real(2, 5, 1, 6), real(2, 3, 1, 6)),
        (functional.cross_entropy, [query], ids(2, 3), ids(2, 1)),
        (functional.masked_mse, [query, query], mask(2, 3), mask(2, 1)),
        (functional.guided_alignment_loss, [query], query, keys),
        *((module(kind()), [query, keys, keys], mask(2, 5), mask(2, 3)) for kind in attention.ATTENTIONS.values()),
        *(
            (module(recurrent.RecurrentLayer(6, cell)), [keys], mask(2, 5), mask(2, 3))
            for cell in ("rnn", "gru", "lstm")
        ),
        (module(recurrent.Bidirectional(6)), [keys], mask(2, 5), real(2, 5)),
        (module(recurrent.RecurrentStack(6, 2, residual=True)), [keys], mask(2, 5), mask(1, 5)),
        (decode, [query, keys], mask(2, 5), mask(2, 3)),
        (module(transformer.FeedForward(8)), [], inputs, real(5, 6)),
        (module(transformer.TransformerEncoder(2, block)), [features], mask(2, 3), mask(2, 5)),
        (module(transformer.DecoderBlock(**block)), [features, keys, mask(2, 3)], mask(2, 5), mask(2, 3)),
    ]
    for function, arguments, right, wrong in calls:
        jax.eval_shape(function, *arguments, right)
        with pytest.raises(TypeCheckError):
            jax.eval_shape(function, *arguments, wrong)
