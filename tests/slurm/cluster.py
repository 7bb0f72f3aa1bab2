"""A SLURM of its own for the tests: two nodes on this machine, run by any user, on loopback only.

Debian's slurm-wlm and munge with their own key, ports and folders; nothing of the system is touched. The GPUs are GPUs
in name only. There is no accounting.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

NODES = ("n1", "n2")
DAEMONS = {"n1": "slurmd-n1", "n2": "slurmd-n2", "controller": "slurmctld", "munge": "munged"}
DEVICES = {"n1": ("/dev/null", "/dev/zero"), "n2": ("/dev/full", "/dev/random")}  # SLURM wants character devices
SBIN = "/usr/sbin:/sbin"
PATIENCE = 120  # seconds

CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_min_interval=0,requeue_delay=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
CompleteWait=0
GresTypes=gpu
ReturnToService=1
SlurmctldTimeout=10
SlurmdTimeout=10
KillWait=10
MinJobAge=300
PriorityType=priority/basic
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=8 RealMemory=100000 Gres=gpu:fake:2
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=8 RealMemory=100000 Gres=gpu:fake:2
PartitionName=gpu Nodes=ALL Default=YES PriorityTier=1 DefMemPerCPU=512 State=UP
PartitionName=cpu Nodes=ALL PriorityTier=1 DefMemPerCPU=512 State=UP
PartitionName=urgent Nodes=ALL PriorityTier=9 DefMemPerCPU=512 State=UP
"""


def missing() -> list[str]:
    """Commands of SLURM and munge that this machine lacks."""
    path = f"{os.environ['PATH']}:{SBIN}"
    return [c for c in ("slurmctld", "slurmd", "munged", "sbatch", "srun") if shutil.which(c, path=path) is None]


class Cluster:
    """The daemons and commands of one SLURM.

    Args:
        folder: for configuration, state and logs; its path must be short enough for a socket's.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("state", "spool-n1", "spool-n2", "bin"):
            (folder / name).mkdir(parents=True)
        folder.chmod(0o755)  # munged checks who else could write where its socket is
        key = folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        text = CONFIGURATION.format(host=socket.gethostname(), user=getpass.getuser(), folder=folder, ports=_ports(3))
        (folder / "slurm.conf").write_text(text)
        gres = [f"NodeName={n} Name=gpu Type=fake File={device}\n" for n in NODES for device in DEVICES[n]]
        (folder / "gres.conf").write_text("".join(gres))
        # Snakemake's executor calls srun without any SLURM variable, also without the one that names the configuration
        srun = shutil.which("srun")
        wrapper = folder / "bin" / "srun"
        wrapper.write_text(f'#!/bin/sh\nSLURM_CONF={folder}/slurm.conf exec {srun} "$@"\n')
        wrapper.chmod(0o755)

    @property
    def environment(self) -> dict[str, str]:
        """This process's, with the commands of this cluster."""
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}:{SBIN}"
        return {**os.environ, "SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": path}

    def __call__(self, *command: str) -> str:
        """Run a command; what it printed."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout.strip()

    def start(self, daemon: str) -> None:
        """Start one of ``DAEMONS``; it goes on by itself."""
        folder = self.folder
        munged = ["munged", "--force", f"--key-file={folder}/munge.key", f"--socket={folder}/munge.socket"]
        munged += [f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log"]
        munged += [f"--seed-file={folder}/munge.seed"]
        self(*{"munge": munged, "controller": ["slurmctld"]}.get(daemon, ["slurmd", "-N", daemon]))

    def kill(self, daemon: str) -> None:
        """kill -9 of one of ``DAEMONS``."""
        os.kill(self._pid(daemon), signal.SIGKILL)

    def up(self) -> None:
        """Start everything and wait until both nodes are idle."""
        for daemon in ("munge", "controller", *NODES):
            self.start(daemon)
        self.wait_for_idle_nodes()

    def wait_for_idle_nodes(self) -> None:
        """Wait until nothing runs and no node is down."""
        until(lambda: self.sinfo() == dict.fromkeys(NODES, "idle"), lambda: self("sinfo", "-N") + self("squeue"))

    def sinfo(self) -> dict[str, str]:
        """Node → its state."""
        try:
            lines = self("sinfo", "--noheader", "--Node", "--partition", "gpu", "-o", "%N %t").splitlines()
        except AssertionError:  # the controller is not there yet
            return {}
        return dict(line.split() for line in lines)

    def jobs(self) -> list[tuple[str, str, str]]:
        """Id, state and node of every job in the queue."""
        text = self("squeue", "--noheader", "-o", "%A|%T|%N")
        return [(job, state, node) for job, state, node in (line.split("|") for line in text.splitlines())]

    def down(self) -> None:
        """Cancel all jobs and stop the daemons, by their process ids."""
        with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
            self("scancel", "--user", getpass.getuser())
            until(lambda: not self.jobs(), lambda: "", patience=40)
        for daemon in (*NODES, "controller", "munge"):
            with contextlib.suppress(OSError, ValueError):
                pid = self._pid(daemon)
                os.kill(pid, signal.SIGTERM)
                until(lambda pid=pid: not Path(f"/proc/{pid}").exists(), lambda: "", patience=10)
        self._kill_leftovers()

    def _kill_leftovers(self) -> None:
        """Processes of jobs that outlived them, which on a cluster a cgroup would end."""
        mark = f"SLURM_CONF={self.folder}/slurm.conf".encode()
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (process / "environ").read_bytes().split(b"\0") and process.name != str(os.getpid()):
                    os.kill(int(process.name), signal.SIGKILL)

    def _pid(self, daemon: str) -> int:
        return int((self.folder / f"{DAEMONS[daemon]}.pid").read_text())


def until(condition: Callable[[], object], explain: Callable[[], str], patience: float = PATIENCE) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, explain()
        time.sleep(0.2)


def _ports(count: int) -> Sequence[int]:
    """Free ones."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]
