"""A Slurm of one node and one core on this machine, for as long as a test wants it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue")
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
AuthType=auth/munge
AuthInfo=socket={folder}/munge/sock
CryptoType=crypto/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
ReturnToService=2
SlurmctldPort={port}
SlurmdPort={node_port}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmdSpoolDir={folder}/spool
StateSaveLocation={folder}/state
SlurmUser=root
SlurmdUser=root
SwitchType=switch/none
TaskPlugin=task/none
SchedulerType=sched/backfill
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmctldLogFile={folder}/log/ctld.log
SlurmdLogFile={folder}/log/d.log
NodeName={host} NodeAddr=127.0.0.1 CPUs=1 RealMemory=4000 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


@contextmanager
def slurm(folder: Path) -> Iterator[dict[str, str]]:
    """The environment in which sbatch reaches it; skips, with the reason, where it does not start."""
    lacking = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    if lacking or os.getuid() != 0:
        pytest.skip(f"no Slurm: {', '.join(lacking) or 'its daemons want root'}")
    for name in ("munge", "spool", "state", "log"):
        (folder / name).mkdir(parents=True)
    environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": _path()}
    (folder / "slurm.conf").write_text(
        CONFIG.format(
            host=socket.gethostname(), folder=folder, port=_free_port(), node_port=_free_port()
        )
    )
    try:
        _start(folder, environment)
        yield environment
    finally:
        for name in ("slurmd.pid", "slurmctld.pid", "munge/pid"):
            with suppress(OSError, ValueError):
                os.kill(int((folder / name).read_text()), signal.SIGTERM)


def _start(folder: Path, environment: dict[str, str]) -> None:
    key = folder / "munge" / "key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    names = {"key-file": "key", "socket": "sock", "pid-file": "pid", "log-file": "log"}
    names["seed-file"] = "seed"
    flags = [f"--{flag}={folder / 'munge' / name}" for flag, name in names.items()]
    config = ["-f", str(folder / "slurm.conf")]
    for words in (
        ["munged", "--force", *flags],
        ["slurmctld", *config],
        ["slurmd", *config, "-N", socket.gethostname()],
    ):
        started = subprocess.run(
            words, env=environment, capture_output=True, text=True, check=False
        )
        if started.returncode:
            pytest.skip(f"no Slurm: {words[0]} says {started.stderr.strip()[-200:]}")
    for _ in range(600):
        words = ["sinfo", "--noheader", "--format=%T"]
        found = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
        if found.stdout.strip() == "idle":
            return
        time.sleep(0.1)
    pytest.skip(f"no Slurm: the node is {found.stdout.strip() or found.stderr.strip()[-200:]}")


def _path() -> str:
    """Where Debian has daemons, too."""
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]
