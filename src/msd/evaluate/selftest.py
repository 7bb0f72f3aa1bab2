"""A metric's self-test: known answers, and mistakes that evaluations are known for, made on purpose and to be noticed.

A set of images is at no distance from itself. So each mistake is made on one side of that comparison, and the distance
that appears is what the mistake would have added to a result.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

from msd.data.images import image_of
from msd.errors import SelfTestError
from msd.evaluate.features import Extractor
from msd.evaluate.frechet import frechet_distance
from msd.evaluate.metrics import Features, statistics_of
from msd.evaluate.protocol import batches
from msd.evaluate.statistics import Statistics

NOTHING = 1e-3  # a distance that counts as none
AGREEMENT = 1e-6  # relative difference between two ways to compute one distance
ROUGH = 1e-4  # the same with fewer images than features, where the library's way carries rounding errors
Images = NDArray[np.uint8]


@dataclass(frozen=True)
class Outcome:
    """One line of the test.

    Attributes:
        value: what was measured.
        limit: a known answer has to be below it, the shift of a mistake above.
        mistake: whether it is one.
    """

    name: str
    value: float
    limit: float
    mistake: bool

    @property
    def passed(self) -> bool:
        return self.value > self.limit if self.mistake else self.value < self.limit

    def __str__(self) -> str:
        verdict = ("caught" if self.passed else "NOT CAUGHT") if self.mistake else ("ok" if self.passed else "WRONG")
        return f"{self.name:<58} {self.value:12.4g}   {'>' if self.mistake else '<'} {self.limit:<9.3g} {verdict}"


@dataclass(frozen=True)
class Sample:
    """Real images with labels, the network that looks at them, and their features."""

    images: Images
    labels: NDArray[np.int64]
    extractor: Extractor
    features: Features

    def look(self, images: Images) -> Statistics:
        """Mean and covariance of the features of other images."""
        return statistics_of(self.extractor.all_of(batches(images)))


Mistake = Callable[[Sample], float]  # → the distance that appears


def known_answers(one: Sample, other: Sample) -> list[Outcome]:
    """What must come out if nothing is broken; ``other`` are different images of the same kind."""
    mine, theirs = statistics_of(one.features), statistics_of(other.features)
    again = one.look(one.images[::-1])  # through the network once more, in another order and other batches
    distance, back = frechet_distance(mine, theirs), frechet_distance(theirs, mine)
    # in double precision, for it would take the means in single precision
    moments = [fid_features_to_statistics(torch.from_numpy(sample.features).double()) for sample in (one, other)]
    library = fid_statistics_to_metric(*moments, verbose=False)[KEY_METRIC_FID]
    full_rank = min(len(one.features), len(other.features)) > one.features.shape[1]
    return [
        Outcome("a set against itself", abs(frechet_distance(mine, again)), NOTHING, False),
        Outcome("one half against the other: the order of the two", abs(distance - back), NOTHING, False),
        Outcome(
            "the same by torch-fidelity, relative difference",
            abs(library / distance - 1),
            AGREEMENT if full_rank else ROUGH,
            False,
        ),
    ]


def accumulator_from_ones(sample: Sample) -> float:
    """The covariance's accumulator starts at one."""
    right = statistics_of(sample.features)
    return frechet_distance(Statistics(right.mu, right.sigma + 1 / (len(sample.features) - 1)), right)


def jpeg_in_between(sample: Sample) -> float:
    """Images were saved as JPEG files of Pillow's usual quality."""
    return frechet_distance(sample.look(_each(sample.images, _as_jpeg)), statistics_of(sample.features))


def other_resize_filter(sample: Sample) -> float:
    """Both sides are brought to half their size and back, by Lanczos on one side and bilinear on the other."""
    filters = (Image.Resampling.BILINEAR, Image.Resampling.LANCZOS)
    one, other = (sample.look(_each(sample.images, partial(_there_and_back, how=how))) for how in filters)
    return frechet_distance(one, other)


def skewed_labels(sample: Sample) -> float:
    """The images of the first half of the classes are there three times."""
    classes = np.unique(sample.labels)
    often = np.isin(sample.labels, classes[: len(classes) // 2])
    return frechet_distance(
        statistics_of(np.repeat(sample.features, np.where(often, 3, 1), axis=0)), statistics_of(sample.features)
    )


MISTAKES: Mapping[str, Mistake] = {
    "covariance accumulator that starts from ones": accumulator_from_ones,
    "JPEG in between": jpeg_in_between,
    "another resize filter": other_resize_filter,
    "skewed labels": skewed_labels,
}


def self_test(one: Sample, other: Sample, mistakes: Mapping[str, Mistake] = MISTAKES) -> list[Outcome]:
    """Known answers, then every mistake on ``one``."""
    outcomes = known_answers(one, other)
    return outcomes + [Outcome(name, mistake(one), NOTHING, True) for name, mistake in mistakes.items()]


def require(outcomes: list[Outcome]) -> None:
    """Check that all passed.

    Raises:
        SelfTestError: one did not.
    """
    failed = [outcome for outcome in outcomes if not outcome.passed]
    if failed:
        raise SelfTestError(
            "The metric's self-test failed.",
            why="; ".join(str(outcome) for outcome in failed),
            todo="Believe no number of this protocol until it passes.",
        )


def sample_of(images: Images, labels: NDArray[np.int64], extractor: Extractor) -> Sample:
    """Images with their features."""
    return Sample(images, labels, extractor, extractor.all_of(batches(images)))


def _each(images: Images, change: Callable[[Image.Image], Image.Image]) -> Images:
    changed = [np.atleast_3d(np.asarray(change(image_of(image)))) for image in images]
    return np.moveaxis(np.stack(changed), -1, 1)


def _as_jpeg(picture: Image.Image) -> Image.Image:
    content = io.BytesIO()
    picture.save(content, format="JPEG")
    return Image.open(content)


def _there_and_back(picture: Image.Image, how: Image.Resampling) -> Image.Image:
    width, height = picture.size
    return picture.resize((width // 2, height // 2), how).resize((width, height), how)
