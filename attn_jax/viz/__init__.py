"""Pictures of what attends to what: matplotlib figures and one self-contained HTML page.

Figures are imported when the first is drawn: matplotlib would be a quarter of every start.
"""

from typing import Any

from attn_jax.viz.examples import AttentionExample, AttentionHypothesis, SearchTree
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


def __getattr__(name: str) -> Any:
    """A function of `attn_jax.viz.figures`."""
    if name not in ("plot_attention", "save_figure"):
        raise AttributeError(f"module 'attn_jax.viz' has no attribute {name!r}")
    from attn_jax.viz import figures

    return getattr(figures, name)


def __dir__() -> list[str]:
    """The public names."""
    return __all__
