"""What a tracker should hold of an experiment, read from what it leaves behind: a row per variant and stage.

Finished work is read from manifests and the journals beside them, work at hand from the state of the training.
Knows no tracker; ``tracking`` brings the rows to MLflow.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from msd.plan import Plan, VariantPlan
from msd.runs.facts import made
from msd.runs.row import FINISHED, STATUS, Row
from msd.runs.stage import stage_row
from msd.runs.variant import variant_row
from msd.standing import Standing

__all__ = ["Row", "rows_of"]


def rows_of(plan: Plan, variant: VariantPlan, standings: Mapping[Path, Standing]) -> list[Row]:
    """The variant's own row, then one per training node; students that share a node share its row.

    Args:
        standings: manifest → standing of each trained node.

    Returns:
        Nothing of what has not begun.

    Raises:
        DamagedFileError: a manifest is broken.
    """
    key = f"{plan.experiment.experiment}/{variant.name}/{variant.evaluation.digest}"
    users: dict[Path, list[int]] = {}
    for k, student in enumerate(variant.students):
        for node in student.stages:
            users.setdefault(node.manifest, []).append(k)
    begun = {path: ks for path, ks in users.items() if standings[path].state in STATUS}
    stages = [stage_row(key, plan, variant, standings[path], ks) for path, ks in begun.items()]
    whole = len(stages) == len(users) and all(row.status == FINISHED for row in stages)
    evaluation = made(variant.evaluation) if whole else None
    if not stages and evaluation is None:
        return []
    return [variant_row(key, plan, variant, evaluation, stages), *stages]
