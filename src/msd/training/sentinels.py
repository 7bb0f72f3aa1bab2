"""Values that warn: a line in the journal when one crosses its limit, once until it has come back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msd.training.step import Watch


class Sentinels:
    """Looks at what is journalled.

    Args:
        watches: what to look for.
        past: metrics that were journalled before, images seen → values.
    """

    def __init__(self, watches: Sequence[Watch], past: Mapping[int, Mapping[str, float | None]]) -> None:
        self.watches = watches
        self._largest: dict[str, float] = {}
        self._warned: set[Watch] = set()
        for metrics in past.values():
            self.warnings(metrics)

    def warnings(self, metrics: Mapping[str, float | None]) -> list[str]:
        """One line for each value that has crossed its limit since the last look."""
        lines = []
        for watch in self.watches:
            value = metrics.get(watch.metric)
            if value is None:
                continue
            limit = watch.limit
            if watch.kind == "fallen_to":
                self._largest[watch.metric] = max(value, self._largest.get(watch.metric, value))
                limit *= self._largest[watch.metric]
            if value >= limit:
                self._warned.discard(watch)
            elif watch not in self._warned:
                self._warned.add(watch)
                lines.append(f"{watch.metric} is {value:.3g}, below {limit:.3g}: {watch.meaning}")
        return lines
