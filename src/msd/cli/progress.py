"""Progress of a long command: a bar on a terminal, a line at every tenth elsewhere (a log, several jobs at once)."""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import tqdm

LINES = 10


class ProgressDisplay:
    """Callable as the engine's ``Progress``; shows images done, speed and time left.

    Args:
        label: what is running.
    """

    def __init__(self, label: str) -> None:
        self.label, self.began, self.first = label, time.monotonic(), -1
        self.bar: tqdm[Any] | None = None
        self.shown = 0

    def __call__(self, done: int, total: int, metrics: dict[str, float]) -> None:
        if sys.stderr.isatty():
            if self.bar is None:
                self.bar = tqdm(total=total, initial=done, desc=self.label, unit="img")
            self.bar.update(done - self.bar.n)
            self.bar.set_postfix({k: f"{v:.3g}" for k, v in list(metrics.items())[:2]})
            if done >= total:
                self.bar.close()
            return
        tenth = done * LINES // total
        if self.first < 0:
            self.first, self.began = done, time.monotonic()
        elif tenth > self.shown:
            speed = (done - self.first) / max(time.monotonic() - self.began, 1e-9)
            left = (total - done) / max(speed, 1e-9)
            print(f"{self.label}: {100 * done // total}%, {speed:.0f} img/s, {left:.0f} s left", flush=True)
        self.shown = tenth
