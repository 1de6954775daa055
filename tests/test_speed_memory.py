import mmap
import sys

import numpy as np
import pytest

from experiments.speed import memory

MB = memory.MB


@pytest.mark.skipif(sys.platform != "linux", reason="the growth of a process is read from Linux's /proc")
def test_a_call_grows_the_process_by_what_it_holds_at_once():
    def pages(megabytes):
        """From the system itself: malloc may keep up to 64 MB of what is freed, according to what was freed before."""
        block = mmap.mmap(-1, int(megabytes * MB), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        array = np.frombuffer(block, np.uint8)
        array[:] = 1
        return array

    kept = []

    def call():
        kept[:] = [pages(30)]
        half = pages(60)
        del half
        pages(20)

    grown = memory.growth_mb(call)
    assert 58 < grown < 64  # at most 30 and 60 at once, of which 30 are held from call to call


def test_nothing_is_told_where_the_system_does_not(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "PROCESS", tmp_path / "absent")
    assert memory.growth_mb(lambda: None) is None


def test_free_memory_is_a_share_of_what_is_available():
    assert 0 < memory.free_mb(0.4) == pytest.approx(memory.free_mb(0.8) / 2, rel=0.2)
