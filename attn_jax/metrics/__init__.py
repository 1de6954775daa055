"""How good a model is: BLEU and chrF, alignment error rate, perplexity, accuracy."""

from attn_jax.metrics.alignment import (
    AlignmentScore,
    GoldAlignment,
    alignment_error_rate,
    format_pharaoh,
    merge_tokens,
    parse_pharaoh,
    weights_to_links,
)
from attn_jax.metrics.classification import accuracy, perplexity, sequence_accuracy
from attn_jax.metrics.symmetrisation import SYMMETRISATIONS, symmetrise
from attn_jax.metrics.translation import Score, bleu, chrf

__all__ = [
    "SYMMETRISATIONS",
    "AlignmentScore",
    "GoldAlignment",
    "Score",
    "accuracy",
    "alignment_error_rate",
    "bleu",
    "chrf",
    "format_pharaoh",
    "merge_tokens",
    "parse_pharaoh",
    "perplexity",
    "sequence_accuracy",
    "symmetrise",
    "weights_to_links",
]
