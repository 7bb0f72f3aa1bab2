"""Signals that ask a run to stop: remembered until it comes to a boundary where it can save."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class StopRequest:
    """Remembers the signal that came while the context was open. Schedulers send SIGUSR2 before a time limit.

    Attributes:
        requested: name of the last signal; None: none came.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)

    def __init__(self) -> None:
        self.requested: str | None = None
        self._old: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._old = {s: signal.signal(s, self._note) for s in self.SIGNALS}
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = signal.Signals(number).name

    def __exit__(self, *_: object) -> None:
        for s, handler in self._old.items():
            signal.signal(s, handler)
