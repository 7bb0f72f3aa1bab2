"""What asks a run to stop: signals and a time, heeded at a boundary where the run can save."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

STOP_AT = "MSD_STOP_AT"
"""Environment variable: unix seconds at which runs stop as if by a signal; whoever starts a run for a limited time
sets it."""
TIME_IS_UP = "the time limit"
ENOUGH = "the limit of this run"


class StopRequest:
    """Remembers the signal that came while the context was open, and knows the time limit."""

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)

    def __init__(self) -> None:
        self._signal: str | None = None
        self._stop_at = float(os.environ.get(STOP_AT, "inf"))
        self._old: dict[signal.Signals, Any] = {}

    @property
    def requested(self) -> str | None:
        """Name of the last signal, or ``TIME_IS_UP``; None: nothing asks to stop."""
        return self._signal or (TIME_IS_UP if time.time() >= self._stop_at else None)

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._old = {s: signal.signal(s, self._note) for s in self.SIGNALS}
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signal = signal.Signals(number).name

    def __exit__(self, *_: object) -> None:
        for s, handler in self._old.items():
            signal.signal(s, handler)
