"""What the progress bar and the records of a run say about speed."""

import numpy as np

from attn_jax.training import meter
from attn_jax.training.step import StepMetrics
from tests.test_training_step import make_batch


def test_real_tokens_a_second(monkeypatch):
    """Padding is not counted, and neither are the seconds of a validation."""
    clock = [100.0]
    monkeypatch.setattr(meter.time, "perf_counter", lambda: clock[0])
    batch = make_batch(0)
    src_mask, tgt_mask = (np.zeros(mask.shape, bool) for mask in (batch.src_mask, batch.tgt_mask))
    src_mask[0, :2], tgt_mask[0, :3] = True, True
    batch = batch.replace(src_mask=src_mask, tgt_mask=tgt_mask)
    watch = meter.Meter()
    for step in (1, 2):
        watch.add(step, StepMetrics(6.0, 6.0, 1.0, tgt_mask.sum(), 0.5), batch)
    clock[0] += 2
    with watch.paused():
        clock[0] += 50
    found = watch.read()
    assert (found["src_tokens_per_s"], found["tgt_tokens_per_s"], found["loss"]) == (2.0, 3.0, 2.0)
    clock[0] += 1
    watch.add(3, StepMetrics(3.0, 3.0, 1.0, 3, 0.5), batch)
    assert watch.read()["tgt_tokens_per_s"] == 3.0
