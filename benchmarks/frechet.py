"""Seconds of the Fréchet distance of two Gaussians, ours and the usual ways: ``python benchmarks/frechet.py``.

The covariances are those of random features, of more and of fewer images than features. Prints a table in Markdown;
``docs/metrics.md`` holds one.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
from scipy.linalg import sqrtm

from msd.evaluate.frechet import frechet_distance
from msd.evaluate.statistics import Moments, Statistics


def by_square_root(one: Statistics, other: Statistics) -> float:
    """SciPy's matrix square root, as the FID code of 2017 and clean-fid do it."""
    root = sqrtm(one.sigma @ other.sigma).real
    return float(((one.mu - other.mu) ** 2).sum() + np.trace(one.sigma + other.sigma - 2 * root))


def by_eigenvalues(one: Statistics, other: Statistics) -> float:
    """Eigenvalues of the product, which is not symmetric, as torch-fidelity does it."""
    roots = np.sqrt(np.linalg.eigvals(one.sigma @ other.sigma).astype(complex)).real
    return float(((one.mu - other.mu) ** 2).sum() + np.trace(one.sigma + other.sigma) - 2 * roots.sum())


WAYS: dict[str, Callable[[Statistics, Statistics], float]] = {
    "ours": frechet_distance,
    "eigvals": by_eigenvalues,
    "sqrtm": by_square_root,
}


def statistics(width: int, images: int, seed: int) -> Statistics:
    """Of features whose variances fall as those of real networks do."""
    rng = np.random.default_rng(seed)
    scale = 1 / np.sqrt(1 + np.arange(width))
    moments = Moments(width)
    for _ in range(0, images, 500):
        moments.update(rng.normal(size=(min(500, images), width)) * scale + 0.01 * seed)
    return Statistics(moments.mu, moments.sigma)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=2048, help="features (2048)")
    parser.add_argument("--ways", default=",".join(WAYS), help=f"which of {', '.join(WAYS)}")
    arguments = parser.parse_args()
    print("| images | way | seconds | CPU seconds | distance |\n|--:|:--|--:|--:|--:|", flush=True)
    for images in (2 * arguments.width, arguments.width // 4):
        one, other = (statistics(arguments.width, images, seed) for seed in (0, 1))
        for way in arguments.ways.split(","):
            began, before = time.perf_counter(), time.process_time()
            distance = WAYS[way](one, other)
            seconds, cpu = time.perf_counter() - began, time.process_time() - before
            print(f"| {images} | {way} | {seconds:.1f} | {cpu:.1f} | {distance:.9g} |", flush=True)


if __name__ == "__main__":
    main()
