"""The teacher's own training: it learns, flips where told, and resumes with the same bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny import data, network

from msd.config import TeacherTraining
from msd.data.archive import LabelledImages
from msd.draws import Draws
from msd.networks import Preconditioned
from msd.teachers.step import TeacherStep

BATCH = 8


def step(net: Preconditioned | None = None, images: LabelledImages | None = None, **changes: Any) -> TeacherStep:
    settings = {"images": 100 * BATCH, "batch_size": BATCH, "optimizer": {"learning_rate": 3e-3}} | changes
    return TeacherStep(net or network(1), images or data(), TeacherTraining.model_validate(settings), Draws(5))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"architecture": "song"},
        {"architecture": "song", "song": {"embedding": "fourier", "encoder": "residual", "taps": [1, 3, 3, 1]}},
        {"architecture": "song", "song": {"encoder": "skip", "decoder": "skip"}},
        {"preconditioning": "vp"},
    ],
)
def test_every_architecture_learns(changes: dict[str, Any]) -> None:
    train = step(network(1, **changes))
    losses = [train(start)["loss"].item() for start in range(0, 100 * BATCH, BATCH)]
    assert np.mean(losses[-20:]) < 0.7 * np.mean(losses[:20])


def test_resumed_training_has_the_same_bits() -> None:
    whole, first, second = step(), step(), step(network(9))
    for start in range(0, 6 * BATCH, BATCH):
        whole(start)
    for start in range(0, 3 * BATCH, BATCH):
        first(start)
    second.load_state_dict(first.state_dict())
    for start in range(3 * BATCH, 6 * BATCH, BATCH):
        second(start)
    averages = (step.emas["weights"].averages for step in (whole, second))
    assert all(torch.equal(a, b) for a, b in zip(*averages, strict=True))


def test_half_of_the_images_are_mirrored_where_told() -> None:
    rows = np.arange(8, dtype=np.uint8) * 30
    images = LabelledImages(np.tile(rows, (40, 1, 8, 1)), np.zeros(40, dtype=np.int64), 4, "of-no-importance")
    seen: dict[bool, list[torch.Tensor]] = {False: [], True: []}
    for flip in (False, True):
        train = step(images=images, flip=flip, noise={"p_mean": -12.0, "p_std": 0.1})
        train.net.register_forward_pre_hook(lambda _, inputs, flip=flip: seen[flip].append(inputs[0].detach()))
        for start in range(0, 20 * BATCH, BATCH):
            train(start)
    rising = {flip: (torch.cat(x)[:, 0, 0, 7] > torch.cat(x)[:, 0, 0, 0]).float().mean() for flip, x in seen.items()}
    assert rising[False] == 1
    assert 0.35 < rising[True] < 0.65
