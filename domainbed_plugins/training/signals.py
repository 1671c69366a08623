"""Signals upon which a run saves its state and ends."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

from nacme.errors import NacmeError

#: Signals upon which a run saves its state at the next step and ends.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class InterruptedRun(NacmeError):
    """A run that a signal ended after its state was saved."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: try again


@contextlib.contextmanager
def noticed() -> Iterator[list[int]]:
    """Collect the stop signals that arrive, in place of ending at once."""
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught  # only the main thread can handle signals
        return
    before = {number: signal.signal(number, lambda n, _: caught.append(n)) for number in STOP_SIGNALS}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
