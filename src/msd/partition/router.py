"""The router: which student owns a condition. For classes it is a table."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from msd.errors import ConfigError


class ClassRouter:
    """Routes class ids to the students that own them.

    Args:
        parts: the classes of each student.
    """

    def __init__(self, parts: Sequence[Sequence[int]]) -> None:
        owner = {c: k for k, part in enumerate(parts) for c in part}
        self.owner = torch.tensor([owner[c] for c in sorted(owner)])

    def __call__(self, cond: Tensor) -> Tensor:
        """Classes (B,) int64 → students (B,) int64.

        Raises:
            ConfigError: a class that does not exist.
        """
        if len(cond) and (int(cond.min()) < 0 or int(cond.max()) >= len(self.owner)):
            raise ConfigError(
                f"There is no class {int(cond.max() if cond.max() >= len(self.owner) else cond.min())}.",
                todo=f"Classes are 0…{len(self.owner) - 1}.",
            )
        return self.owner.to(cond.device)[cond]
