"""How long a router takes to find the owner of a prompt, one at a time and in batches: ``python benchmarks/route.py``.

Embeddings are random, as their values do not matter for speed; prompts are short sentences. The text encoder's time is
not in it. Prints a table in Markdown: of each row the fastest of some rounds, by the clock and of the CPU alone.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from msd.config import Hashed, Quadrants, TextKMeans, TextPartitionSpec
from msd.partition.text_fit import fit_router
from msd.partition.text_router import TextRouter

KINDS: list[TextPartitionSpec] = [Quadrants(), TextKMeans(kind="text-kmeans"), Hashed(kind="hash")]
FITTED_ON, ROUNDS, PER_ROUND = 4096, 20, 16_384


def microseconds(router: TextRouter, embeddings: np.ndarray, prompts: list[str], batch: int) -> tuple[float, float]:
    """For each prompt, by the clock and of the CPU."""
    starts = range(0, min(len(prompts), 2000 * batch), batch)
    rounds = []
    for _ in range(ROUNDS):
        began, before = time.perf_counter(), time.process_time()
        for i in starts:
            router(embeddings[i : i + batch], prompts[i : i + batch])
        rounds.append((time.perf_counter() - began, time.process_time() - before))
    clock, cpu = (1e6 * min(seconds) / (len(starts) * batch) for seconds in zip(*rounds, strict=True))
    return clock, cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--widths", default="384,768", help="of the embeddings (384,768)")
    parser.add_argument("--students", type=int, default=4, help="K (4)")
    parser.add_argument("--batches", default="1,64,4096", help="prompts at once (1,64,4096)")
    arguments = parser.parse_args()
    print("| width | kind | prompts at once | µs each | CPU µs each |\n|--:|:--|--:|--:|--:|", flush=True)
    for width in (int(w) for w in arguments.widths.split(",")):
        embeddings = np.random.default_rng(0).normal(size=(PER_ROUND, width)).astype(np.float32)
        prompts = [f"A photo of {i} giraffes that stand near a tree in a field" for i in range(PER_ROUND)]
        for spec in KINDS:
            router = fit_router(embeddings[:FITTED_ON], spec, arguments.students)
            for batch in (int(b) for b in arguments.batches.split(",")):
                clock, cpu = microseconds(router, embeddings, prompts, batch)
                print(f"| {width} | {spec.kind} | {batch} | {clock:.2f} | {cpu:.2f} |", flush=True)


if __name__ == "__main__":
    main()
