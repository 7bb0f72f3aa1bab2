"""What a student sees: conditions and real images of its own part, regression pairs of all, fresh noise each time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import BATCH, CLASSES, adm_step, data, dm_step

from msd.data.archive import LabelledImages
from msd.distill.dm import DmStep
from msd.draws import Draws

RATIO = 3
Make = Callable[..., DmStep]
both = pytest.mark.parametrize("make", [dm_step, adm_step], ids=["dm", "adm"])


def record_conditions(monkeypatch: pytest.MonkeyPatch, step: DmStep) -> dict[str, list[int]]:
    """Role → every condition that the network of this role is called with."""
    seen: dict[str, list[int]] = {}
    for role in ("student", "teacher", "fake_score"):
        net, heard = getattr(step, role), seen.setdefault(role, [])

        def one_hot(cond: torch.Tensor, heard: list[int] = heard, real: Any = net._one_hot) -> Any:
            heard += cond.tolist()
            return real(cond)

        monkeypatch.setattr(net, "_one_hot", one_hot)
    return seen


def test_every_critic_update_has_its_own_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    step, asked = dm_step(), []
    real = Draws.normal

    def normal(self: Draws, role: str, index: int, shape: tuple[int, ...]) -> torch.Tensor:
        asked.append((role, index))
        return real(self, role, index, shape)

    monkeypatch.setattr(Draws, "normal", normal)
    for start in (0, BATCH):
        step(start)
    assert len(set(asked)) == len(asked)
    assert sorted(i for role, i in asked if role == "noise") == [BATCH * k for k in range(2 * RATIO)]


@both
def test_only_conditions_of_the_part_are_seen(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    step = make(part=(1, 3))
    seen = record_conditions(monkeypatch, step)
    for start in range(0, 5 * BATCH, BATCH):
        step(start)
    assert {role: set(cond) for role, cond in seen.items()} == {role: {1, 3} for role in seen}


def test_real_images_are_of_the_part(monkeypatch: pytest.MonkeyPatch) -> None:
    step, used = adm_step(part=(1, 3)), []
    real = LabelledImages.batch

    def batch(self: LabelledImages, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, labels = real(self, indices)
        used.append((x, labels, indices))
        return x, labels

    monkeypatch.setattr(LabelledImages, "batch", batch)
    for start in range(0, 5 * BATCH, BATCH):
        step(start)
    labels = torch.cat([labels for _, labels, _ in used])
    assert set(labels.tolist()) == {1, 3}
    greys = torch.cat([((x + 1) * 127.5).mean(dim=(1, 2, 3)) for x, _, _ in used])
    assert torch.equal((greys / 50).long(), labels)  # the images are those of the labels
    assert len(torch.cat([i for *_, i in used]).unique()) > len(data().labels) / CLASSES


def test_regression_pairs_are_not_filtered_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    step = dm_step(part=(1,), regression=True)
    seen = record_conditions(monkeypatch, step)
    for start in range(0, 5 * BATCH, BATCH):
        step(start)
    assert set(seen["student"]) == set(range(CLASSES))
    assert set(seen["teacher"]) == set(seen["fake_score"]) == {1}
