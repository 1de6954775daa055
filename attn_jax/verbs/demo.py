"""``demo`` and ``doctor``: does it work here, and how well?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from attn_jax.progress import Progress


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Train on the bundled English-French grammar, measure, and show the attention: two to four minutes on 2 cores."""

    out: Path = Path("runs/demo")
    """Run folder."""
    steps: int = 2600
    """Updates."""
    seed: int = 1
    """Of the corpus and the training."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the products; auto takes the faster one here."""
    guided: bool = False
    """Guide the attention by the gold alignments of the training pairs."""
    resume: bool = False
    """Go on with the run in --out, from its newest checkpoint."""
    overwrite: bool = False
    """Replace the run that is there."""

    def run(self) -> None:
        """Runs the demo and prints what it measured."""
        from attn_jax.demo import DemoConfig, run_demo

        config = DemoConfig(steps=self.steps, seed=self.seed, precision=self.precision, guided_weight=0.5 * self.guided)
        with Progress() as progress:
            result = run_demo(config, self.out, overwrite=self.overwrite, resume=self.resume, on_event=progress.event)
        print(f"\nBLEU {result.bleu:.2f} on held-out sentences (word-for-word dictionary: {result.baseline_bleu:.2f})")
        print(f"     {result.signature}")
        print(f"AER  {result.aer:.2f} % (attention of forced decoding against the gold alignment)\n")
        for found, *_ in result.translations:
            print(f"  {' '.join(found.src_tokens[:-1])}\n  -> {found.text}   ({found.log_prob:.2f} nats)\n")
        print(
            f"Model: {self.out / 'model'}\nPicture: {self.out / 'attention.png'}\nPage: {self.out / 'attention.html'}"
        )


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Versions, devices, cores, memory, and a self-test of a few seconds."""

    def run(self) -> None:
        """Prints the report; exit code 1 if the self-test fails."""
        from attn_jax import doctor

        if not doctor.report():
            raise SystemExit(1)
