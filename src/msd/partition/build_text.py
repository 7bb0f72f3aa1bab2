"""Build a partition of prompts from its settings and write it with its router and its report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from msd.config import TEXT_PARTITION
from msd.errors import PartitionError
from msd.partition.build import PARTITION_SCHEMA
from msd.partition.text_fit import fit_router
from msd.partition.text_report import describe_parts, stability
from msd.store import Manifest, write_json
from msd.text.archive import texts
from msd.text.captions import prompts_of
from msd.text.embeddings import open_embeddings


def build_text_partition(out: Path, settings: dict[str, Any], inputs: dict[str, Path]) -> Manifest:
    """Write ``partition.json`` and the router's two files beside the manifest ``out``.

    Args:
        settings: students, and a ``config.TextPartitionSpec``.
        inputs: manifests of the captions under ``data``, and of their embeddings.

    Raises:
        PartitionError: the prompts cannot be split so.
    """
    students = settings["students"]
    spec = TEXT_PARTITION.validate_python({key: value for key, value in settings.items() if key != "students"})
    captions = Manifest.read(inputs["data"])
    prompts = texts(prompts_of(captions))
    pooled = open_embeddings(Manifest.read(inputs["embeddings"])).pooled().numpy()
    router = fit_router(pooled, spec, students, prompts)
    owners = router(pooled, prompts)
    parts = [(owners == k).nonzero()[0].tolist() for k in range(students)]
    if not all(parts):
        raise PartitionError(
            "A part is empty.",
            where=f"{spec.kind}, {students} students",
            why=f"{len(prompts)} prompts, parts of {[len(part) for part in parts]}",
            todo="Give more prompts, or another seed.",
        )
    named = {"parts": parts} if "class_of" in captions.results else {}  # of millions of prompts the file has them
    router.save(out.parent)
    path, sizes = out.parent / "partition.json", [len(part) for part in parts]
    about = {
        "description": describe_parts(router, pooled, prompts),
        "stability": stability(pooled, spec, students, prompts),
    }
    balance = {"sizes": sizes, "largest_minus_smallest": max(sizes) - min(sizes)}
    body = {"kind": spec.kind, "students": students, "num_classes": len(prompts), "parts": parts, "balance": balance}
    write_json(path, {"schema": PARTITION_SCHEMA, **body})
    return Manifest.write(
        out,
        kind="partition",
        settings=settings,
        inputs=inputs,
        files={"partition": path, **{f"router.{end}": out.parent / f"router.{end}" for end in ("json", "safetensors")}},
        results={**named, **balance, **about},
    )
