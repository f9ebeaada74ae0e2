"""A real SLURM cluster on this machine's loopback: munged, slurmctld and three slurmd, started and ended by us.

All that it writes lies in one temporary folder. Its nodes claim 64 processors each, so that nothing waits for another;
nodes n1 and n2 are filled first, and n3 is the spare.
"""

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ("munged", "munge", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
NODES = ("n1", "n2", "n3")
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
ENDED = {"COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY", "DEADLINE"}

CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# cred_expire also is the pause before a requeued job starts again, two minutes by default
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdSpoolDir={folder}/spool-%n
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,sched_min_interval=100000,bf_interval=2,bf_min_age_reserve=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
JobRequeue=1
ReturnToService=2
SlurmdParameters=config_overrides
SlurmdTimeout=15
KillWait=30
CompleteWait=0
MinJobAge=3600
NodeName=n[1-3] NodeHostname={host} NodeAddr=127.0.0.1 Port={first}-{last} CPUs=64 RealMemory=1000000 State=UNKNOWN
PartitionName=batch Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=10 State=UP PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=ALL MaxTime=INFINITE DefaultTime=10 State=UP PriorityTier=10 PreemptMode=off
"""
# SLURM 22.05 always loads a cgroup plugin; with linuxproc and task/none, and nothing mounted there, it does nothing.
CGROUPS = """
CgroupPlugin=cgroup/v1
CgroupAutomount=no
CgroupMountpoint={folder}/no-cgroup
"""


class Job(NamedTuple):
    """What SLURM says of a job."""

    state: str
    restarts: int
    nodes: str
    excluded: str


def why_not() -> str:
    """Why no cluster can be started here; empty if one can."""
    missing = [name for name in PROGRAMS if not shutil.which(name, path=PATH)]
    if missing:
        return f"no {', '.join(missing)}; `make test-slurm` installs them where root can"
    return "" if os.getuid() == 0 else "slurmd runs jobs as their users, which only root can"


class Cluster:
    """Of three nodes; a context."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # unix sockets end at 107 characters
        self.port = _free_ports(1 + len(NODES))
        self.env = {
            **os.environ, "PATH": PATH, "SLURM_CONF": f"{self.folder}/slurm.conf", "OMP_NUM_THREADS": "1",
            # the nodes' names mean nothing outside of SLURM, and MASTER_ADDR is the first of them by default
            "MASTER_ADDR": "127.0.0.1", "XTRIMO_HOME": str(ROOT), "VENV": str(ROOT / ".venv"),
        }  # fmt: skip
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> "Cluster":
        facts = dict(folder=self.folder, host=socket.gethostname().partition(".")[0], port=self.port,
                     first=self.port + 1, last=self.port + len(NODES))  # fmt: skip
        facts["first"], facts["last"] = f"[{facts['first']}", f"{facts['last']}]"
        (self.folder / "slurm.conf").write_text(CONFIG.format(**facts))
        (self.folder / "cgroup.conf").write_text(CGROUPS.format(**facts))
        key = self.folder / "munge.key"
        key.touch(0o600)
        key.write_bytes(secrets.token_bytes(1024))
        try:
            self._start("munged", "--foreground", "--force", *(
                f"--{name}={self.folder}/munge.{ending}"
                for name, ending in (("key-file", "key"), ("socket", "socket"), ("pid-file", "pid"),
                                     ("seed-file", "seed"), ("log-file", "log"))
            ))  # fmt: skip
            until(lambda: self._ok("munge", f"--socket={self.folder}/munge.socket", "--no-input"), 20, self.story)
            self._start("slurmctld", "-D")
            for node in NODES:
                self.start_node(node)
            self.wait_for_nodes()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for job in self._said("squeue", "--noheader", "--format=%A").split():
            self._ok("scancel", job)
        deadline = time.monotonic() + 20
        while self._said("squeue", "--noheader", "--format=%A").split() and time.monotonic() < deadline:
            time.sleep(0.2)
        for name in (*NODES, "slurmctld", "munged"):
            daemon = self.daemons.pop(name, None)
            if daemon is None:
                continue
            daemon.terminate()
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def start_node(self, node: str) -> None:
        """Start the slurmd of a node."""
        (self.folder / f"spool-{node}").mkdir(exist_ok=True)
        self._start("slurmd", "-D", "-N", node, name=node)

    def wait_for_nodes(self) -> None:
        """Return when all nodes take jobs."""
        ready = ("sinfo", "--noheader", "--Node", "--partition=batch", "--states=idle,mixed,allocated", "--format=%N")
        until(lambda: len(set(self._said(*ready).split())) == len(NODES), 60, self.story)

    def kill_node(self, node: str) -> None:
        """A node goes down in the middle of its work: its slurmd and all that runs for jobs on it, by SIGKILL."""
        daemon = self.daemons.pop(node)
        daemon.kill()
        daemon.wait()
        own = {pid for pid in _pids() if _environ(pid).get("SLURMD_NODENAME") == node
               and _environ(pid).get("SLURM_CONF") == self.env["SLURM_CONF"]}  # fmt: skip
        above = {pid for pid in map(_parent, own) if _name(pid) == "slurmstepd"}
        assert above, f"no job was at work on {node}"
        for pid in above | own:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def run(self, *command: str) -> str:
        """What a command of SLURM's prints."""
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout.strip()

    def submit(self, *args: str | Path, cwd: Path, **env: object) -> str:
        """sbatch; the job's number. Its log is cwd/NAME-NUMBER.out."""
        command = ("sbatch", "--parsable", *map(str, args))
        full = {**self.env, **{name: str(value) for name, value in env.items()}}
        done = subprocess.run(command, env=full, cwd=cwd, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def job(self, number: str) -> Job:
        """How a job, or NUMBER_TASK of an array, is now."""
        text = self.run("scontrol", "--oneliner", "show", "job", number)
        facts = dict(re.findall(r"(\w+)=(\S*)", text))
        return Job(facts["JobState"], int(facts["Restarts"]), facts["NodeList"], facts["ExcNodeList"])

    def wait(self, number: str, seconds: float = 400) -> Job:
        """How a job ended. (`sbatch --wait` looks every ten seconds, and a requeue ends it.)"""
        until(lambda: self.job(number).state in ENDED, seconds, lambda: f"job {number}: {self.job(number)}")
        return self.job(number)

    def story(self) -> str:
        """The ends of all logs, for a failure's message."""
        return "\n".join(
            f"== {log.name}\n{log.read_text(errors='replace')[-1500:]}" for log in self.folder.glob("*.log")
        )

    def _start(self, program: str, *args: str, name: str = "") -> None:
        found = shutil.which(program, path=PATH)
        assert found
        with (self.folder / f"{name or program}.out.log").open("ab") as log:
            self.daemons[name or program] = subprocess.Popen(
                [found, *args], env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def _said(self, *command: str) -> str:
        return subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=60).stdout

    def _ok(self, *command: str) -> bool:
        return subprocess.run(command, env=self.env, capture_output=True, timeout=60).returncode == 0


def until(happened: Callable[[], object], seconds: float, story: Callable[[], str]) -> None:
    """Return when something has happened; AssertionError with the story if it did not in so many seconds."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, f"not within {seconds} s\n{story()}"
        time.sleep(0.1)


def _free_ports(num: int) -> int:
    """The first of so many neighbouring ports that nobody has."""
    while True:
        first = 10_000 + secrets.randbelow(20_000)
        try:
            for port in range(first, first + num):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
            return first
        except OSError:
            continue


def _pids() -> Sequence[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]


def _environ(pid: int) -> Mapping[str, str]:
    try:
        text = Path(f"/proc/{pid}/environ").read_text(errors="replace")
    except OSError:
        return {}
    return dict(entry.split("=", 1) for entry in text.split("\0") if "=" in entry)


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""
