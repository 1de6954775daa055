import sys

import numpy as np
import pytest

from experiments.speed import memory

MB = memory.MB


@pytest.mark.skipif(sys.platform != "linux", reason="the growth of a process is read from Linux's /proc")
def test_a_call_grows_the_process_by_what_it_holds_at_once():
    kept = []

    def call():
        kept[:] = [np.ones(int(30 * MB) // 8)]
        half = np.ones(int(60 * MB) // 8)
        del half
        np.ones(int(20 * MB) // 8)

    grown = memory.growth_mb(call)
    assert 58 < grown < 64  # at most 30 and 60 at once, of which 30 are held from call to call


def test_nothing_is_told_where_the_system_does_not(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "PROCESS", tmp_path / "absent")
    assert memory.growth_mb(lambda: None) is None


def test_free_memory_is_a_share_of_what_is_available():
    assert 0 < memory.free_mb(0.4) == pytest.approx(memory.free_mb(0.8) / 2, rel=0.2)
