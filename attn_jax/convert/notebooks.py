"""Layouts of the teaching notebooks' own PyTorch modules, for `attn_jax.convert.torch`, and what makes ours equal them.

The names are those of the modules in ``tests/test_convert_notebooks.py``; entries with other names are renamed first,
``{name.replace("linear.", "fc."): array for name, array in ...}``. An encoder and a decoder become one state dict by
``torch.nn.ModuleDict({"encoder": encoder, "decoder": decoder}).state_dict()``.

Outputs, attention weights and gradients are equal. Dropout acts where this library has it: before the sum that a block
normalises, not after the norm. A search here never emits the begin of sentence, which a PyTorch model may.
"""

from __future__ import annotations

from collections.abc import Sequence

from attn_jax.convert.torch import (
    COLUMNS,
    DENSE_FIRST,
    ENTRIES,
    ONE_HOT,
    VECTOR,
    Layout,
    Rule,
    numbered,
    override,
    under,
)
from attn_jax.convert.torch_layouts import LAYER_NORM, decoder_layers, linear, recurrent_layer, recurrent_stack
from attn_jax.models.protocol import IMPOSSIBLE

# ------------------------------------------------------------------------------------------------------------ attention

_SCORE: Layout = (Rule(("v.weight",), ("v",), VECTOR), Rule(("v.bias",), ("v_bias",), ENTRIES))

ADDITIVE: Layout = linear("W", "key_kernel", "key_bias") + linear("U", "query_kernel", "query_bias") + _SCORE
"""``v(tanh(W(encoder) + U(decoder)))``, three ``nn.Linear``, as `AdditiveAttention`."""

CONCAT: Layout = (
    Rule(("W.weight",), ("key_kernel", "query_kernel"), COLUMNS),
    Rule(("W.bias",), ("bias",), ENTRIES),
    *_SCORE,
)
"""``v(tanh(W([encoder; decoder])))`` as `ConcatAttention`; for ``[decoder; encoder]`` exchange the two kernels."""

GENERAL: Layout = linear("W", "kernel", None)
"""``decoder . W(encoder)`` without a bias, as `GeneralAttention`."""

GENERAL_OF_QUERY: Layout = (Rule(("W.weight",), ("kernel",), ENTRIES),)
"""``W(decoder) . encoder``, the same the other way round."""

SELF_ATTENTION: Layout = sum(
    (linear(part, f"{part}_kernel", f"{part}_bias") for part in ("query", "key", "value", "out")), ()
)
"""Self-attention with four ``nn.Linear``, each for all heads, as `MultiHeadAttention`."""

POST_NORM_BLOCK: Layout = (
    *under("attention", "attention", SELF_ATTENTION),
    *under("norm1", "attention_norm", LAYER_NORM),
    *linear("feed_forward.0", "ffn/in_kernel", "ffn/in_bias"),
    *linear("feed_forward.2", "ffn/out_kernel", "ffn/out_bias"),
    *under("norm2", "ffn_norm", LAYER_NORM),
)
"""``norm(x + attention(x))``, ``norm(x + feed_forward(x))`` as ``EncoderBlock(norm_epsilon=1e-5)``."""


# --------------------------------------------------------------------------------------------------------------- models

BIRNN: Layout = (
    *under("forward_rnn", "encoder/layer_0/forward", recurrent_layer("rnn")),
    *under("backward_rnn", "encoder/layer_0/backward", recurrent_layer("rnn")),
    *linear("fc", "head/kernel", "head/bias"),
)
"""Two RNNs, one on the flipped sequence, and a linear layer, as `RecurrentClassifier`.

Theirs speaks at every step: ``pooling="steps"``, or ``"last"`` for the last position alone.
"""

_LSTMS = {"encoder_cell": "lstm", "decoder_cell": "lstm", "input_feeding": False, "bridge": "copy"}
_OUTPUT = linear("decoder.fc", "output_kernel", "output_bias")


def _after_dense(lstm: str, embed: str, kernel: str, bias: str) -> Rule:
    theirs = tuple(f"{lstm}.{name}_l0" for name in ("weight_ih", "bias_ih", "bias_hh"))
    return Rule(theirs, (f"{embed}/kernel", f"{embed}/bias", kernel, bias), DENSE_FIRST)


CONTINUOUS: Layout = override(
    (
        *under("encoder.lstm", "encoder", recurrent_stack("lstm")),
        *under("decoder.lstm", "decoder", decoder_layers("lstm")),
        *_OUTPUT,
    ),
    _after_dense("encoder.lstm", "src_embed", "encoder/layer_0/input", "encoder/layer_0/bias"),
    _after_dense("decoder.lstm", "tgt_embed", "decoder/input", "decoder/bias_0"),
)
"""An LSTM that reads vectors and an LSTM that writes them, no attention; ``embed_dim`` is the width of the vectors."""
CONTINUOUS_SETTINGS = _LSTMS | {"bidirectional": False, "attention": None, "readout": "state"}
"""What `Seq2SeqConfig` needs besides the sizes."""


def _words(theirs: str, ours: str, ids: Sequence[int] | None) -> Layout:
    return (Rule((f"{theirs}.weight",), (f"{ours}/embedding",), numbered(ENTRIES, ids)),)


def _word_logits(theirs: str, ids: Sequence[int] | None) -> Layout:
    return (
        Rule((f"{theirs}.weight",), ("output_kernel",), numbered(COLUMNS, ids)),
        Rule((f"{theirs}.bias",), ("output_bias",), numbered(ENTRIES, ids, IMPOSSIBLE)),
    )


ATTENTION_LSTM_SETTINGS = _LSTMS | {
    "bidirectional": False, "attention": "additive", "attend_first": True, "readout": "concat"
}  # fmt: skip
"""What `Seq2SeqConfig` needs besides the sizes."""


def attention_lstm(src_ids: Sequence[int] | None = None, tgt_ids: Sequence[int] | None = None) -> Layout:
    """An LSTM, and one with additive attention of its previous state: ``LSTM([embedding; context])``.

    The output is ``Linear([output; context])``. A model that reads and attends to padding as if it were words is one
    whose source mask is True everywhere.

    Args:
      src_ids: our id of each of their source words, if the vocabularies number them differently.
      tgt_ids: our id of each of their target words.

    >>> {rule.theirs[0]: rule.ours for rule in attention_lstm()}["decoder.lstm.weight_ih_l0"]
    ('decoder/input', 'decoder/context')
    """
    return (
        *_words("encoder.embedding", "src_embed", src_ids),
        *under("encoder.lstm", "encoder", recurrent_stack("lstm")),
        *_words("decoder.embedding", "tgt_embed", tgt_ids),
        *under("decoder.attention", "decoder/attention", ADDITIVE),
        *under("decoder.lstm", "decoder", decoder_layers("lstm", inputs=("input", "context"))),
        *_word_logits("decoder.fc", tgt_ids),
    )


ONE_HOT_TRANSLATOR_SETTINGS = _LSTMS | {"attention": "additive", "readout": "concat"}
"""What `Seq2SeqConfig` needs besides the sizes, ``embed_dim`` among them: the number of words."""


def one_hot_translator(num_layers: int = 2) -> Layout:
    """One-hot words, a bidirectional LSTM, an LSTM, and additive attention after it.

    The notebook's encoder has a state that cannot enter its decoder; here the two directions of a layer, side by side,
    are the first state of the decoder's layer (``bridge="copy"``), which needs no weights.

    Args:
      num_layers: of the encoder and of the decoder.

    >>> {rule.theirs[0]: rule.ours for rule in one_hot_translator()}["decoder.lstm.weight_ih_l0"]
    ('tgt_embed/embedding', 'decoder/input')
    """
    first = "encoder/layer_0"
    return override(
        (
            *under("encoder.lstm", "encoder", recurrent_stack("lstm", num_layers, both_ways=True)),
            *under("decoder.attention", "decoder/attention", ADDITIVE),
            *under("decoder.lstm", "decoder", decoder_layers("lstm", num_layers)),
            *_OUTPUT,
        ),
        Rule(
            ("encoder.lstm.weight_ih_l0", "encoder.lstm.weight_ih_l0_reverse"),
            ("src_embed/embedding", f"{first}/forward/input", f"{first}/backward/input"),
            ONE_HOT,
        ),
        Rule(("decoder.lstm.weight_ih_l0",), ("tgt_embed/embedding", "decoder/input"), ONE_HOT),
    )


GRU_TUTORIAL_SETTINGS = {
    "encoder_cell": "gru", "decoder_cell": "gru", "bidirectional": False, "bridge": "copy", "input_feeding": False,
    "attention": "location", "attention_options": {"max_len": 10, "over_padding": True}, "query_with_input": True,
    "attend_first": True, "readout": "state",
}  # fmt: skip
"""What `Seq2SeqConfig` needs besides the sizes, ``squeeze`` among them. Its softmax goes over zero-padded slots too."""


def gru_tutorial(src_ids: Sequence[int] | None = None, tgt_ids: Sequence[int] | None = None) -> Layout:
    """The classic tutorial's pair, ``EncoderRNN`` and ``AttnDecoderRNN``.

    Args:
      src_ids: our id of each of their source words, if the vocabularies number them differently: for SOS, EOS and words
        ``[BOS_ID, EOS_ID, 4, 5, ...]``, which are the ids of a `WordVocabulary` with their words in their order.
      tgt_ids: our id of each of their target words.

    >>> {rule.theirs[0]: rule.ours for rule in gru_tutorial()}["decoder.attn_combine.weight"]
    ('decoder/input', 'decoder/context')
    """
    return (
        *_words("encoder.embedding", "src_embed", src_ids),
        *under("encoder.gru", "encoder", recurrent_stack("gru")),
        *_words("decoder.embedding", "tgt_embed", tgt_ids),
        *linear("decoder.attn", "decoder/attention/kernel", "decoder/attention/bias"),
        Rule(("decoder.attn_combine.weight",), ("decoder/input", "decoder/context"), COLUMNS),
        Rule(("decoder.attn_combine.bias",), ("decoder/squeeze_bias",), ENTRIES),
        *under("decoder.gru", "decoder", decoder_layers("gru", inputs=("squeezed",))),
        *_word_logits("decoder.out", tgt_ids),
    )
