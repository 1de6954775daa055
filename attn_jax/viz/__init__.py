"""Pictures of what attends to what: matplotlib figures and one self-contained HTML page."""

from attn_jax.viz.examples import AttentionExample, AttentionHypothesis, SearchTree
from attn_jax.viz.figures import plot_attention, save_figure
from attn_jax.viz.viewer import attention_frame, attention_page, write_attention_page

__all__ = [
    "AttentionExample",
    "AttentionHypothesis",
    "SearchTree",
    "attention_frame",
    "attention_page",
    "plot_attention",
    "save_figure",
    "write_attention_page",
]
