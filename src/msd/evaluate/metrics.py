"""Metrics of features: Fréchet distance, precision and recall, KID; and the share of images of the class asked for.

KID, precision and recall are torch-fidelity's, the distance is ours (``frechet``). Draws and reads no images.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from msd.config import Protocol
from msd.errors import ConfigError
from msd.evaluate.frechet import frechet_distance
from msd.evaluate.statistics import Moments, Statistics
from msd.store import Manifest

Features = NDArray[np.float32]
KID_SUBSETS = 100


def statistics_of(features: Features) -> Statistics:
    """Mean and covariance (N − 1) in float64 of features (N, D)."""
    moments = Moments(features.shape[1])
    for first in range(0, len(features), 1000):
        moments.update(features[first : first + 1000])
    return Statistics(moments.mu, moments.sigma)


def spread(count: int, most: int | None) -> NDArray[np.int64]:
    """Positions of at most ``most`` of ``count`` things, evenly spread; all of them for None."""
    return np.arange(count) if most is None or most >= count else np.arange(most) * count // most


def score(
    features: Features, reference: Features | None, statistics: Statistics, protocol: Protocol, name: str
) -> dict[str, float]:
    """Distance, precision, recall and KID of images' features.

    Args:
        features: (N, D) of the images.
        reference: (M, D) of the real images that neighbours are looked for in; None: the distance alone.
        statistics: of the reference of the distance.
        protocol: says which metrics and how.
        name: of the distance. In a second feature space the other metrics carry it too.

    Raises:
        ConfigError: there are fewer images than KID's subsets have.
    """
    result = {name: frechet_distance(statistics_of(features), statistics)}
    if reference is None:
        return result
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric  # as long as torch
    from torch_fidelity.metric_prc import prc_features_to_metric

    apart = "" if name == protocol.name else f"_{name}"
    mine = torch.from_numpy(features[spread(len(features), protocol.neighbour_images)])
    theirs = torch.from_numpy(reference)
    found = prc_features_to_metric(mine, theirs, prc_neighborhood=protocol.neighbours, save_cpu_ram=True, verbose=False)
    result |= {
        f"precision{apart}": float(found["precision"]),
        f"recall{apart}": float(found["recall"]),
    }
    if protocol.kid_subset is not None:
        if min(len(mine), len(theirs)) < protocol.kid_subset:
            raise ConfigError(
                "There are fewer images than KID's subsets have.",
                where=f"evaluation.protocol.kid_subset: {protocol.kid_subset}",
                why=f"{len(mine)} images, {len(theirs)} of the reference",
            )
        kid = kid_features_to_metric(
            mine, theirs, kid_subsets=KID_SUBSETS, kid_subset_size=protocol.kid_subset, verbose=False
        )
        result[f"kid{apart}"] = float(kid[KEY_METRIC_KID_MEAN])
    return result


def asked_class_share(
    shown: NDArray[np.int64], asked: NDArray[np.int64], class_of: NDArray[np.int64]
) -> tuple[float, list[float]]:
    """Share of images that the judge assigns to the class they were asked for, in all and by condition.

    Args:
        shown: classes (N,) that the judge sees.
        asked: conditions (N,) that the images were drawn under.
        class_of: the class (C,) that each condition speaks of.
    """
    right = (shown == class_of[asked]).astype(float)
    everywhere = range(len(class_of))
    return float(right.mean()), [float(right[asked == c].mean()) for c in everywhere if (asked == c).any()]


def classes_of_conditions(data: Manifest) -> NDArray[np.int64]:
    """The class (C,) that each condition speaks of: a prompt's, or the class itself."""
    return np.array(data.results.get("class_of") or range(data.results["num_classes"]))
