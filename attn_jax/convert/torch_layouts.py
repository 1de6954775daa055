"""Layouts of the modules of ``torch.nn``, for `attn_jax.convert.torch`: which of their arrays is which parameter here.

What no layout can carry over: ``nn.LayerNorm`` adds 1e-5 to the variance, so set ``norm_epsilon=1e-5``; ``nn.RNN`` may
be made with ReLU, and here it is tanh; an ``activation`` is a setting.
"""

from __future__ import annotations

from collections.abc import Sequence

from attn_jax.convert.torch import (
    BIASES,
    COLUMNS,
    ENTRIES,
    GRU_BIASES,
    ROWS,
    ZEROS,
    Layout,
    Rule,
    under,
)


def linear(theirs: str = "", kernel: str = "kernel", bias: str | None = "bias") -> Layout:
    """``nn.Linear`` called ``theirs``, as a kernel and, unless it is None, a bias.

    >>> [(rule.theirs, rule.ours) for rule in linear("fc", "output_kernel", "output_bias")]
    [(('fc.weight',), ('output_kernel',)), (('fc.bias',), ('output_bias',))]
    """
    weight = Rule(("weight",), (kernel,), COLUMNS)
    return under(theirs, "", (weight, *(() if bias is None else (Rule(("bias",), (bias,), ENTRIES),))))


EMBEDDING: Layout = (Rule(("weight",), ("embedding",), ENTRIES),)
"""``nn.Embedding`` as ``flax.linen.Embed``."""

LAYER_NORM: Layout = (Rule(("weight",), ("scale",), ENTRIES), Rule(("bias",), ("bias",), ENTRIES))
"""``nn.LayerNorm`` as ``flax.linen.LayerNorm(1e-5)``."""


def recurrent_layer(
    cell: str, theirs: str = "_l0", inputs: Sequence[str] = ("input",), ours: str = "", *, bias: bool = True
) -> Layout:
    """One direction of one layer of ``nn.RNN`` (tanh), ``nn.GRU`` or ``nn.LSTM``, as a `RecurrentLayer`.

    Args:
      cell: ``rnn``, ``gru`` or ``lstm``.
      theirs: what their names end with: ``_l0``, ``_l1_reverse``; nothing for ``nn.LSTMCell`` and its like.
      inputs: our kernels of the input; several if it is several vectors side by side.
      ours: what our other names end with.
      bias: whether PyTorch's layer has biases.

    >>> for rule in recurrent_layer("gru"):
    ...     print(*rule.theirs, "|", *rule.ours)
    weight_ih_l0 | input
    weight_hh_l0 | recurrent
    bias_ih_l0 bias_hh_l0 | bias candidate_bias
    """
    biases = ("bias", "candidate_bias") if cell == "gru" else ("bias",)
    transform = (GRU_BIASES if cell == "gru" else BIASES) if bias else ZEROS
    return (
        Rule((f"weight_ih{theirs}",), tuple(inputs), COLUMNS),
        Rule((f"weight_hh{theirs}",), (f"recurrent{ours}",), COLUMNS),
        Rule(
            (f"bias_ih{theirs}", f"bias_hh{theirs}") if bias else (),
            tuple(f"{name}{ours}" for name in biases),
            transform,
        ),
    )


def bidirectional(cell: str, theirs: str = "_l0", *, bias: bool = True) -> Layout:
    """One layer in both directions, as a `Bidirectional`; arguments as in `recurrent_layer`.

    >>> {rule.theirs[0]: rule.ours[0] for rule in bidirectional("rnn")}["weight_ih_l0_reverse"]
    'backward/input'
    """
    forward, backward = (recurrent_layer(cell, f"{theirs}{way}", bias=bias) for way in ("", "_reverse"))
    return under("", "forward", forward) + under("", "backward", backward)


def recurrent_stack(cell: str, num_layers: int = 1, *, both_ways: bool = False, bias: bool = True) -> Layout:
    """``nn.RNN``, ``nn.GRU`` or ``nn.LSTM`` with all its layers, as a `RecurrentStack`.

    >>> [rule.ours[0] for rule in recurrent_stack("lstm", 2)]
    ['layer_0/input', 'layer_0/recurrent', 'layer_0/bias', 'layer_1/input', 'layer_1/recurrent', 'layer_1/bias']
    """
    layer = bidirectional if both_ways else recurrent_layer
    layers = [under("", f"layer_{index}", layer(cell, f"_l{index}", bias=bias)) for index in range(num_layers)]
    return sum(layers, ())


def decoder_layers(cell: str, num_layers: int = 1, inputs: Sequence[str] = ("input",)) -> Layout:
    """The same layers inside an `AttentionDecoder`; ``inputs`` are the kernels of the lowest.

    >>> [rule.ours for rule in decoder_layers("lstm", inputs=("input", "context"))]
    [('input', 'context'), ('recurrent_0',), ('bias_0',)]
    """
    below = [inputs, *((f"below_{index}",) for index in range(1, num_layers))]
    return sum((recurrent_layer(cell, f"_l{i}", names, f"_{i}") for i, names in enumerate(below)), ())


def multihead(*, bias: bool = True, separate: bool = False) -> Layout:
    """``nn.MultiheadAttention`` as `MultiHeadAttention`; ``separate`` if its ``kdim`` (and ``vdim``) is not its width.

    Keys and values must be of one width here.

    >>> [rule.theirs for rule in multihead(bias=False)]
    [('in_proj_weight',), ('out_proj.weight',)]
    """
    parts = ("query", "key", "value")
    kernels, biases = (tuple(f"{part}_{what}" for part in parts) for what in ("kernel", "bias"))
    weights = [Rule((f"{part[0]}_proj_weight",), (f"{part}_kernel",), COLUMNS) for part in parts]
    return (
        *(weights if separate else [Rule(("in_proj_weight",), kernels, ROWS)]),
        *([Rule(("in_proj_bias",), biases, ENTRIES)] if bias else []),
        *linear("out_proj", "out_kernel", "out_bias" if bias else None),
    )


_FEED_FORWARD = linear("linear1", "ffn/in_kernel", "ffn/in_bias") + linear("linear2", "ffn/out_kernel", "ffn/out_bias")

ENCODER_BLOCK: Layout = (
    *under("self_attn", "attention", multihead()),
    *under("norm1", "attention_norm", LAYER_NORM),
    *_FEED_FORWARD,
    *under("norm2", "ffn_norm", LAYER_NORM),
)
"""``nn.TransformerEncoderLayer`` as ``EncoderBlock(norm_epsilon=1e-5)``."""

DECODER_BLOCK: Layout = (
    *under("self_attn", "attention", multihead()),
    *under("norm1", "attention_norm", LAYER_NORM),
    *under("multihead_attn", "cross_attention", multihead()),
    *under("norm2", "cross_norm", LAYER_NORM),
    *_FEED_FORWARD,
    *under("norm3", "ffn_norm", LAYER_NORM),
)
"""``nn.TransformerDecoderLayer`` as ``DecoderBlock(norm_epsilon=1e-5)``."""
