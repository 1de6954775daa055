"""Pictures of what attends to what: matplotlib figures and one self-contained HTML page.

`attn_jax.viz.figures` is imported when it is first asked for: matplotlib was a quarter of what a command imports.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from attn_jax.viz.examples import AttentionExample, AttentionHypothesis, SearchTree
from attn_jax.viz.viewer import attention_frame, attention_page, write_attention_page

if TYPE_CHECKING:
    from attn_jax.viz import figures
    from attn_jax.viz.figures import plot_attention, save_figure

__all__ = [
    "AttentionExample",
    "AttentionHypothesis",
    "SearchTree",
    "attention_frame",
    "attention_page",
    "figures",
    "plot_attention",
    "save_figure",
    "write_attention_page",
]


def __getattr__(name: str) -> Any:
    """The room of figures, and its functions."""
    if name not in __all__:
        raise AttributeError(f"module 'attn_jax.viz' has no attribute {name!r}")
    figures = import_module("attn_jax.viz.figures")
    return figures if name == "figures" else getattr(figures, name)


def __dir__() -> list[str]:
    """The public names."""
    return __all__
