"""What the training of one student takes, stage by stage, before there is a teacher."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from msd.config import Adm, Compute, Dm, Network, TextNetwork, Training, Tsm
from msd.distill.adm import AdmStep
from msd.distill.dm import DmStep, Pairs
from msd.distill.losses import Metric
from msd.distill.tsm import TsmStep
from msd.networks.discriminator import Discriminator
from msd.networks.summary import network_cost
from msd.training.footprint import DryRun, Footprint

Description = tuple[Network | TextNetwork, tuple[int, int, int], int]
"""Architecture, image shape (C, H, W) and number of classes."""


def stage_footprint(
    settings: Training, student: Network | TextNetwork, teacher: Description, compute: Compute, *, gpu: bool
) -> Footprint:
    """Memory and FLOPs of a stage of one student. One of ``dm`` and ``adm`` has two iterations: an update of the
    student alone, then one of the critics alone.

    Args:
        settings: of the stage: its part of the recipe.
        student: its architecture.
        teacher: the fake score has the same architecture.
        compute: recomputation counts.
        gpu: whether to count as on a GPU or as on the CPU.

    Raises:
        ConfigError: the images' size does not suit one of the networks.
    """
    architecture, image_shape, classes = teacher
    if isinstance(settings, Dm):
        settings = settings.model_copy(update={"two_time_scale_ratio": 2, "strict_alternation": True})
    run = DryRun(settings, compute, gpu=gpu)
    student_net, teacher_net = (run.network(network, image_shape, classes) for network in (student, architecture))
    scaled, data = run.settings, run.data(teacher_net)
    if isinstance(scaled, Tsm):
        return run.measure(lambda: TsmStep(student_net, teacher_net, data, scaled, run.draws))
    assert isinstance(scaled, Dm)
    fake_score = run.network(architecture, image_shape, classes)
    image, label = torch.zeros(1, *image_shape), torch.zeros(1, dtype=torch.int64)
    nets = (student_net, teacher_net, fake_score)
    further: dict[str, Any] = {"pairs": Pairs(image, image, label), "metric": _metric(run, scaled)}
    if not isinstance(scaled, Adm):
        return run.measure(lambda: DmStep(*nets, data, scaled, run.draws, **further))
    head = run.hollow(lambda: Discriminator(*fake_score.features_shape))
    further |= {"data": data, "real": torch.zeros(1, dtype=torch.int64), "discriminator": head}
    return run.measure(lambda: AdmStep(*nets, data, scaled, run.draws, **further))


def flops_per_image(
    settings: Training, footprint: Footprint, student: Network | TextNetwork, teacher: Description
) -> float:
    """FLOPs for each image of a stage's (student) updates, those of the critics' updates in between among them.

    Args:
        footprint: of ``stage_footprint``.
        settings, student, teacher: as there.
    """
    if not isinstance(settings, Dm):
        return footprint.iterations[0].flops
    of_student, of_critics = (iteration.flops for iteration in footprint.iterations)
    if settings.strict_alternation:
        return of_student + (settings.two_time_scale_ratio - 1) * of_critics
    # in the first iteration the critics learn from images that the student has made already
    _, image_shape, classes = teacher
    return of_student + settings.two_time_scale_ratio * of_critics - network_cost(student, image_shape, classes).flops


def _metric(run: DryRun[Any], settings: Dm) -> Metric | None:
    """The regression's metric where it is a network's: LPIPS, but without its weights and their download."""
    if settings.regression is None or settings.regression.metric != "lpips":
        return None
    from torchvision.models import vgg16

    from msd.distill.perceptual import RESIZE

    layers: nn.Sequential = run.hollow(lambda: vgg16().features[:30]).eval().requires_grad_(False)

    def features(x: Tensor) -> list[Tensor]:
        x = F.interpolate(x.expand(-1, 3, -1, -1), (RESIZE, RESIZE), mode="bilinear")
        seen = []
        for i, layer in enumerate(layers):
            x = layer(x)
            if i in (3, 8, 15, 22, 29):  # the last ReLU before each pooling, and the very last
                seen.append(x)
        return seen

    def distance(x: Tensor, y: Tensor) -> Tensor:
        of_x, of_y = features(x), features(y)
        scaled = [[f / f.square().sum(1, keepdim=True).sqrt() for f in of] for of in (of_x, of_y)]
        squares = [(a - b).square() for a, b in zip(*scaled, strict=True)]
        return torch.stack([s.mean((1, 2, 3)) for s in squares]).sum(0)

    return distance
