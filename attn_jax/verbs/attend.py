"""``attend``: the attention of a translation, as a page or a picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass(frozen=True, kw_only=True)
class Attend:
    """Translate a sentence and draw its attention."""

    folder: tyro.conf.Positional[Path]
    """Run or model folder."""
    sentence: tyro.conf.Positional[str]
    """The sentence."""
    out: Path = Path("attention.html")
    """An interactive .html page, or a .png, .svg or .pdf picture."""
    beam: int = 5
    """Hypotheses that the search keeps, and that the page holds."""

    def run(self) -> None:
        """Writes the page or the picture."""
        from attn_jax.hub import Translator, attention_example
        from attn_jax.viz.figures import SUFFIXES, plot_attention, save_figure
        from attn_jax.viz.viewer import write_attention_page

        if self.out.suffix not in (".html", *SUFFIXES):
            raise ValueError(f"{self.out}: expected a name that ends in .html, {', '.join(SUFFIXES)}; rename --out")
        if not self.sentence.strip():
            raise ValueError("expected a sentence to translate, found nothing; put it in quotes after the folder")
        found = Translator.load(self.folder)(self.sentence, beam=self.beam, n_best=self.beam)
        best = found[0]
        if not best.src_tokens:
            raise ValueError("this sentence is too long to be translated; give a shorter one")
        if best.attention is None:
            raise ValueError(f"{self.folder}: this model was trained without attention, so there is nothing to draw")
        if self.out.suffix == ".html":
            write_attention_page(self.out, [attention_example(found)], title="Attention")
        else:
            save_figure(plot_attention(best.attention, best.src_tokens, best.tokens, title=best.text), self.out)
        print(f"{best.text}\n{self.out}")
