"""A copy of what a clone holds, whose students go to the tests' cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from cluster import Cluster
from working_copy import MICRO, WorkingCopy

# looking often makes the tests short; nothing else differs from what a user does
OFTEN = ("--slurm-init-seconds-before-status-checks", "3", "--seconds-between-status-checks", "3")


class CopyOnCluster(WorkingCopy):
    """A copy whose snakemake calls use the slurm profile, unchanged unless told otherwise."""

    def __init__(self, folder: Path, cluster: Cluster) -> None:
        super().__init__(folder)
        self.cluster = cluster

    def command(self, *arguments: str, configfile: str | None = MICRO, profile: str = "slurm") -> list[str]:
        often = OFTEN if profile == "slurm" else ()
        return super().command(*arguments, *often, configfile=configfile, profile=profile)

    def environment(self) -> dict[str, str]:  # type: ignore[override]
        ours, theirs = super().environment(), self.cluster.environment
        return {**theirs, **ours, "PATH": f"{ours['PATH'].split(':')[0]}:{theirs['PATH']}"}

    def with_profile(self, **changes: Any) -> str:
        """Another profile, with resources of ``dm`` changed; its name."""
        content = yaml.safe_load((self.folder / "slurm" / "config.yaml").read_text())
        content["set-resources"]["dm"] |= changes.pop("dm", {})
        name = f"slurm-{len(list(self.folder.glob('slurm-*')))}"
        (self.folder / name).mkdir()
        (self.folder / name / "config.yaml").write_text(yaml.safe_dump(content | changes))
        return name
