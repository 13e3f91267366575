"""A real Slurm of two nodes on this machine, for as long as a test needs it."""

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue")
NODES = ("n1", "n2")
CONFIG = """
ClusterName=tiny
SlurmctldHost=localhost(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={place}/munge.sock,cred_expire=10
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmctldPort={ports[0]}
StateSaveLocation={place}/state
SlurmdSpoolDir={place}/spool-%n
SlurmctldPidFile={place}/slurmctld.pid
SlurmdPidFile={place}/slurmd-%n.pid
SlurmctldLogFile={place}/ctld.log
SlurmdLogFile={place}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
KillWait=10
JobRequeue=1
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[1]} {cores}
NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[2]} {cores}
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""
CORES = "CPUs=2 Sockets=1 CoresPerSocket=2 ThreadsPerCore=1 RealMemory=2000"


def missing() -> list[str]:
    """Programs that are not installed here."""
    return [name for name in PROGRAMS if which(name) is None]


def which(name: str) -> str | None:
    """Where a program is; daemons are not on everybody's path."""
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


def free_ports(number: int) -> list[int]:
    """Ports that nobody listens at."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(closing(socket.socket())) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextmanager
def cluster() -> Iterator[dict[str, str]]:
    """The environment in which its commands work; every daemon ends with it."""
    place = Path(tempfile.mkdtemp(prefix="slurm"))  # a short path: it holds a socket
    place.chmod(0o755)
    key, config = place / "munge.key", place / "slurm.conf"
    key.write_bytes(secrets.token_bytes(32))
    key.chmod(0o600)
    (place / "state").mkdir()
    config.write_text(CONFIG.format(place=place, ports=free_ports(3), cores=CORES))
    env = os.environ | {"SLURM_CONF": str(config)}
    files = {"key": key, "socket": place / "munge.sock", "pid": place / "munged.pid"}
    files |= {"log": place / "munged.log", "seed": place / "munge.seed"}
    names = {
        "pid": "pid-file",
        "log": "log-file",
        "seed": "seed-file",
        "key": "key-file",
    }
    munge = [f"--{names.get(name, name)}={path}" for name, path in files.items()]
    commands = [["munged", "--foreground", "--force", *munge]]
    commands += [["slurmctld", "-D", "-c", "-i"]]
    commands += [["slurmd", "-D", "-N", node] for node in NODES]
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        for command in commands:
            with (place / f"{command[0]}{len(daemons)}.out").open("wb") as out:
                program = [which(command[0]) or command[0], *command[1:]]
                daemons.append(
                    subprocess.Popen(program, env=env, stdout=out, stderr=out)
                )
            if command[0] == "munged":
                until(files["socket"].exists)
        until(lambda: ran(env, "srun", "-N2", "true"))
        yield env
    finally:
        ran(env, "scancel", "--me", "--signal=KILL", "--full")
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        shutil.rmtree(place, ignore_errors=True)


def ran(env: dict[str, str], *command: str) -> bool:
    """Whether a command succeeds."""
    try:
        done = subprocess.run(
            command, check=False, env=env, capture_output=True, timeout=60
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def until(condition, seconds: float = 60) -> None:
    """Return when a condition holds; AssertionError if it does not in time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, condition
        time.sleep(0.05)
