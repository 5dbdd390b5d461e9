"""A private SLURM cluster on this machine: munged, slurmctld and two slurmd in a temporary folder, ended with the test."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

COMMANDS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol")
CONFIG = """ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerParameters=sched_interval=1,batch_sched_delay=0
KillWait=2
MinJobAge=30
ReturnToService=2
SlurmdParameters=config_overrides
NodeName=node[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{second}] CPUs=1 RealMemory=4000
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def is_installed() -> bool:
    return all(shutil.which(name) for name in COMMANDS)


@contextmanager
def slurm_cluster(folder: Path) -> Iterator[Path]:
    """Two nodes of one core each in a partition `main`; SLURM_CONF names its configuration meanwhile, which is yielded."""
    folder.mkdir()
    folder.chmod(0o755)  # munged insists
    config = folder / "slurm.conf"
    ports = _free_ports(3)
    config.write_text(
        CONFIG.format(
            folder=folder, user=subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip(),
            host=socket.gethostname().split(".")[0], port=ports[0], first=ports[1], second=ports[2],
        )
    )  # fmt: skip
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(config)
    try:
        _run("munged", "--force", f"--key-file={key}", f"--socket={folder}/munge.sock", f"--pid-file={folder}/munged.pid",
             f"--log-file={folder}/munged.log", f"--seed-file={folder}/munge.seed")  # fmt: skip
        _run("slurmctld", "-f", str(config))
        for node in ("node1", "node2"):
            _run("slurmd", "-f", str(config), "-N", node)
        _until_idle(folder)
        yield config
    finally:
        subprocess.run(["scancel", "--user", str(os.getuid())], check=False, capture_output=True)
        for name in ("slurmd-node1", "slurmd-node2", "slurmctld", "munged"):
            _end(folder / f"{name}.pid")
        os.environ.pop("SLURM_CONF")
        if before is not None:
            os.environ["SLURM_CONF"] = before


def _run(*command: str) -> None:
    subprocess.run(command, check=True, timeout=30, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def _free_ports(n: int) -> list[int]:
    """n free ports in a row: SLURM names those of its nodes as a range."""
    for first in range(21_000, 31_000, n):
        sockets = [socket.socket() for _ in range(n)]
        try:
            for port, each in enumerate(sockets, first):
                each.bind(("127.0.0.1", port))
        except OSError:
            continue
        finally:
            for each in sockets:
                each.close()
        return list(range(first, first + n))
    raise RuntimeError("found no free ports for SLURM")


def _until_idle(folder: Path) -> None:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        told = subprocess.run(["sinfo", "-h", "-N", "-o", "%T"], capture_output=True, text=True, check=False)
        if told.stdout.split() == ["idle", "idle"]:
            return
        time.sleep(0.3)
    raise RuntimeError(f"SLURM's nodes are not ready: {told.stdout} {told.stderr}; see the logs in {folder}")


def _end(pid_file: Path) -> None:
    """End the daemon of a file with its process id, and wait for it."""
    with suppress(OSError, ValueError):
        pid = int(pid_file.read_text())
        os.kill(pid, signal.SIGTERM)
        until = time.monotonic() + 10
        while time.monotonic() < until:
            os.kill(pid, 0)
            time.sleep(0.1)
