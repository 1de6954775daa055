"""What a person sees of a run: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar


class Progress:
    """Shows the events of a run; use it as a context."""

    def __init__(self, console: Console | None = None):
        self.console = console or Console(highlight=False)
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
            transient=True,
            speed_estimate_period=120,
        )
        self._task: Any = None
        self._first: tuple[int, float] | None = None

    def __enter__(self) -> Progress:
        """Starts the bar."""
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Stops the bar."""
        self._bar.stop()

    def event(self, kind: str, event: Mapping[str, Any]) -> None:
        """Shows one event: ``note``, ``step`` or ``valid`` (see `attn_jax.run.run_training`)."""
        {"note": self._note, "step": self._step, "valid": self._valid}[kind](event)

    def _note(self, event: Mapping[str, Any]) -> None:
        self._line(event["text"])

    def _step(self, event: Mapping[str, Any]) -> None:
        numbers = (
            f"loss {event['loss']:.3f}  ppl {event['perplexity']:.2f}  "
            f"{event['src_tokens_per_s']:,.0f} src/s  {event['tgt_tokens_per_s']:,.0f} tgt/s"
        )
        if self.console.is_terminal:
            if self._task is None:
                self._task = self._bar.add_task("training", total=event["total"], numbers=numbers)
            self._bar.update(self._task, completed=event["step"], numbers=numbers)
        else:
            done, total = event["step"], event["total"]
            self._first = self._first or (done, time.monotonic())
            steps, seconds = done - self._first[0], time.monotonic() - self._first[1]
            eta = f"  eta {seconds / steps * (total - done) / 60:.1f} min" if steps else ""
            self._line(f"step {done}/{total}  epoch {event['epoch']:.2f}  {numbers}{eta}")

    def _valid(self, event: Mapping[str, Any]) -> None:
        known = ", ".join(f"{name} {event[name]:.4g}" for name in ("bleu", "perplexity", "accuracy") if name in event)
        self._line(f"step {event['step']}/{event['total']}  validation: {known}{'  (best)' if event['best'] else ''}")

    def _line(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)
