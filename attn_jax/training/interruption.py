"""Ctrl-C and SIGTERM: the first one asks the loop to stop between two steps, the second one stops at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

NOTICE = b"\nstopping after this step; a checkpoint is saved first. Ctrl-C again stops at once\n"


class Interrupted(Exception):
    """Training was interrupted; ``step`` is that of the newest checkpoint, None if there is none."""

    def __init__(self, step: int | None):
        what = "before the first checkpoint" if step is None else f"after a checkpoint of step {step}"
        super().__init__(f"interrupted {what}")
        self.step = step


@contextmanager
def interruptions() -> Iterator[threading.Event]:
    """Turns the first Ctrl-C or SIGTERM into a flag, so that no step is cut in half; the second is a KeyboardInterrupt.

    Outside the main thread, where Python handles no signals, the flag is never set.
    """
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

    def handle(number: int, frame: object) -> None:
        if flag.is_set():
            raise KeyboardInterrupt
        flag.set()
        os.write(2, NOTICE)  # not print: the signal may fall into the middle of one

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def interrupt_deferred() -> Iterator[None]:
    """Keeps Ctrl-C waiting for the end of the block, for imports: C extensions lose it, or make it another error.

    In the main thread only.
    """
    came = threading.Event()
    before = signal.signal(signal.SIGINT, lambda number, frame: came.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came.is_set():
        raise KeyboardInterrupt


def interrupt_again(unraisable: Any) -> None:
    """Sends a Ctrl-C once more that fell into a garbage collection, where Python drops exceptions.

    For ``sys.unraisablehook``. JAX runs Python code at each collection, and tracing is full of them.
    """
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
    else:
        sys.__unraisablehook__(unraisable)
