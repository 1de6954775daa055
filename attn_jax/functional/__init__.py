"""The ground floor: pure functions on arrays, each of which reads as its equation.

Scores, normalisers, masks and contexts of attention; local, monotonic and memory-efficient attention; position
encodings; losses; schedules. The rooms hold the rest: `products` (precision) and `recurrence` (scans and cells).
"""

from attn_jax.functional.attention import (
    attend,
    gaussian_factor,
    local_window_mask,
    monotonic_attention,
    monotonic_step,
    predicted_centers,
)
from attn_jax.functional.chunked import dot_product_attention_chunked
from attn_jax.functional.losses import (
    LossSum,
    TokenLoss,
    cross_entropy,
    guided_alignment_loss,
    masked_bce,
    masked_mse,
    projected_cross_entropy,
)
from attn_jax.functional.masks import causal_mask, combine_masks, expand_mask, padding_mask
from attn_jax.functional.normalizers import NORMALIZERS, Normalizer, entmax15, softmax, sparsemax
from attn_jax.functional.positions import sinusoidal_positions
from attn_jax.functional.schedules import (
    SCHEDULES,
    Schedule,
    constant_schedule,
    cosine_schedule,
    exponential_schedule,
    inverse_sigmoid_schedule,
    linear_schedule,
)
from attn_jax.functional.scores import (
    additive_scores,
    concat_scores,
    dot_scores,
    general_scores,
    location_scores,
    scaled_dot_scores,
)

__all__ = [
    "NORMALIZERS",
    "SCHEDULES",
    "LossSum",
    "Normalizer",
    "Schedule",
    "TokenLoss",
    "additive_scores",
    "attend",
    "causal_mask",
    "combine_masks",
    "concat_scores",
    "constant_schedule",
    "cosine_schedule",
    "cross_entropy",
    "dot_product_attention_chunked",
    "dot_scores",
    "entmax15",
    "expand_mask",
    "exponential_schedule",
    "gaussian_factor",
    "general_scores",
    "guided_alignment_loss",
    "inverse_sigmoid_schedule",
    "linear_schedule",
    "local_window_mask",
    "location_scores",
    "masked_bce",
    "masked_mse",
    "monotonic_attention",
    "monotonic_step",
    "padding_mask",
    "predicted_centers",
    "projected_cross_entropy",
    "scaled_dot_scores",
    "sinusoidal_positions",
    "softmax",
    "sparsemax",
]
