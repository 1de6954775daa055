"""Names and ranges of the modules' settings."""

import jax
import pytest

from attn_jax.models.classifier import ClassifierHead
from attn_jax.nn.decoder import AttentionDecoder
from attn_jax.nn.dropout import Dropout, dropout_mask
from attn_jax.nn.recurrent import LSTM, Bidirectional, RecurrentLayer, RecurrentStack
from attn_jax.nn.settings import check_types
from attn_jax.nn.transformer import DecoderBlock, EncoderBlock, FeedForward


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: RecurrentLayer(4, "sru"), "cell must be one of gru, lstm, rnn; found 'sru'"),
        (lambda: Bidirectional(4, "sru"), "cell must be one of gru, lstm, rnn; found 'sru'"),
        (lambda: RecurrentStack(4, cell="sru"), "cell must be one of gru, lstm, rnn; found 'sru'"),
        (lambda: LSTM(4, precision="fp8"), "precision must be one of bfloat16, float32; found 'fp8'"),
        (lambda: LSTM(4, recurrent_dropout=1.0), r"recurrent_dropout is the share dropped, in \[0, 1\); found 1.0"),
        (lambda: AttentionDecoder(4, 4, None, cell="sru"), "cell must be one of gru, lstm, rnn; found 'sru'"),
        (lambda: AttentionDecoder(4, 4, None, readout="x"), "readout must be one of attentional, concat, state"),
        (lambda: AttentionDecoder(4, 4, None, num_layers=0), "num_layers must be at least 1, found 0"),
        (lambda: FeedForward(4, "tanh"), "activation must be one of gelu, gelu_exact, relu, swish; found 'tanh'"),
        (lambda: EncoderBlock(4, 2, 4, precision="fp8"), "precision must be one of bfloat16, float32; found 'fp8'"),
        (lambda: DecoderBlock(4, 2, 4, attention_dropout=2), r"attention_dropout is the share.*found 2"),
        (lambda: ClassifierHead(2, pooling="first"), "pooling must be one of attention, last, max, mean, steps"),
        (lambda: Dropout(-0.1), r"rate is the share dropped, in \[0, 1\); found -0.1"),
        (lambda: Dropout(1.0), r"rate is the share dropped, in \[0, 1\); found 1.0"),
        (lambda: dropout_mask(jax.random.key(0), 1.5, (3,)), r"rate is the share.*found 1.5"),
    ],
)
def test_what_a_wrong_setting_says(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ("declared", "value"),
    [
        ("bool", True),
        ("int", -3),
        ("float", 2),
        ("float", 0.5),
        ("str", "x"),
        ("dict[str, int | None]", {}),
        (int, 1),
        ("str | None", None),
        ("str | None", "x"),
        (str | None, None),
        (dict[str, int], {}),
        ("Callable", 3),
    ],
)
def test_values_of_the_declared_type_pass(declared, value):
    check_types({"setting": declared}, {"setting": value})


@pytest.mark.parametrize(
    ("declared", "value"),
    [
        ("bool", 1),
        ("bool", None),
        ("int", 1.0),
        ("int", False),
        ("float", "1"),
        ("float", True),
        ("str", 1),
        ("dict[str, int]", []),
        (str | None, 3),
        (int, "1"),
        (dict[str, int], [1]),
    ],
)
def test_others_do_not(declared, value):
    with pytest.raises(ValueError, match=f"setting must be of type .* found .* of type {type(value).__name__}"):
        check_types({"setting": declared}, {"setting": value})
