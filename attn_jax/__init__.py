"""Sequence-to-sequence learning with attention in JAX.

The public names are listed in ``__all__``; each is imported when it is first used, so ``import attn_jax`` is quick.
The rooms below (`attn_jax.functional`, `attn_jax.nn`, `attn_jax.models`, `attn_jax.data`, `attn_jax.training`,
`attn_jax.decoding`, `attn_jax.metrics`, `attn_jax.viz`) hold everything else.
"""

from __future__ import annotations

from importlib import import_module

__version__ = "0.1.0"

_HOME = {
    "aligner": ("align_words",),
    "hub": ("Scored", "Translation", "Translator"),
    "pictures": ("attention_of",),
    "run": ("run_training",),
    "run_config": ("DataConfig", "RunConfig"),
    "models.posterior": ("posterior_attention",),
    "models.protocol": ("Batch", "DecodeState", "StepOutput", "search_variables"),
    "models.seq2seq": ("Seq2Seq", "Seq2SeqConfig"),
    "models.transformer": ("Transformer", "TransformerConfig"),
    "nn.attention": (
        "ATTENTIONS",
        "AdditiveAttention",
        "Attention",
        "ConcatAttention",
        "DotAttention",
        "GeneralAttention",
        "LocalAttention",
        "LocationAttention",
        "Memory",
        "MultiHeadAttention",
        "ScaledDotProductAttention",
    ),
    "nn.recurrent": ("GRU", "LSTM", "RNN", "Bidirectional", "RecurrentLayer", "RecurrentStack"),
    "nn.decoder": ("AttentionDecoder",),
    "functional.recurrence": ("recurrent_scan",),
    "search_config": ("SearchConfig",),
    "decoding": ("Ensemble", "beam_search", "forced_decode", "greedy", "sample"),
    "training.loop": ("TrainConfig", "train"),
    "training.step": ("OptimizerConfig",),
    "viz.figures": ("plot_attention", "save_figure"),
    "viz.examples": ("AttentionExample", "AttentionHypothesis"),
    "viz.viewer": ("attention_page", "write_attention_page"),
}
_ROOM_OF = {name: room for room, names in _HOME.items() for name in names}

__all__ = ["__version__", *_ROOM_OF]  # noqa: PLE0604 (strings, all of them)


def __getattr__(name: str):
    """Imports a public name from its room."""
    if name not in _ROOM_OF:
        raise AttributeError(f"module 'attn_jax' has no attribute {name!r}")
    return getattr(import_module(f"attn_jax.{_ROOM_OF[name]}"), name)


def __dir__() -> list[str]:
    """The public names."""
    return __all__
