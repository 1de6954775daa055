"""Sums over training steps, read now and then: loss, perplexity, accuracy, tokens a second."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from attn_jax.models.protocol import Batch
from attn_jax.training.step import StepMetrics


class Meter:
    """Sums over the steps since it was last read. The numbers stay on the device until then, so no step waits."""

    def __init__(self):
        self._pending: list[tuple[int, StepMetrics]] = []
        self._sums = np.zeros(5)  # of StepMetrics
        self._steps = self._src_tokens = 0
        self._start = time.perf_counter()

    def add(self, step: int, metrics: StepMetrics, batch: Batch) -> None:
        """Notes what an update gave; ``step`` counts it."""
        self._pending.append((step, metrics))
        self._src_tokens += int(np.sum(batch.src_mask))

    def check(self) -> None:
        """Waits for the steps noted so far.

        Raises:
          FloatingPointError: if a loss or the norm of a gradient is not a number, naming the step.
        """
        for step, metrics in self._pending:
            values = np.array([float(value) for value in metrics])
            if not np.isfinite(values).all():
                name = "loss" if not np.isfinite(values[0]) else "gradient"
                raise FloatingPointError(
                    f"the {name} is no longer a number at step {step}; nothing was saved since. Go on from the newest "
                    "checkpoint with --resume and a lower learning rate"
                )
            self._sums += values
        self._steps += len(self._pending)
        self._pending = []

    def read(self) -> dict[str, float]:
        """Means since it was last read: loss and perplexity a token (nats), accuracy, gradient norm, real tokens/s."""
        self.check()
        loss, nll, correct, tokens, norms = self._sums
        seconds = time.perf_counter() - self._start
        found = {
            "loss": loss / tokens,
            "perplexity": math.exp(min(nll / tokens, 700)),
            "accuracy": correct / tokens,
            "grad_norm": norms / self._steps,
            "src_tokens_per_s": self._src_tokens / seconds,
            "tgt_tokens_per_s": tokens / seconds,
        }
        self.__init__()
        return {name: float(value) for name, value in found.items()}

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stops the clock, for a validation."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._start += time.perf_counter() - began
