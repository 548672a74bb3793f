"""A SLURM cluster of two nodes on this machine, for tests.

It is a real one: its own munged, slurmctld and two slurmds, started as root from Debian's packages
`munge` and `slurm-wlm`, on ports of their own, with all their files in one folder. Nothing of the
machine is changed, and a SLURM that may run there is not touched.

    with Cluster() as cluster:
        print(cluster.run("srun", "--nodes=2", "hostname").stdout)
"""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from tests.processes import ROOT

PATH = ":".join([str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin", "/sbin"])

NODES = ("127.0.0.1", "127.0.0.2")
"""Ranks look for the first node by its name; these need no resolver."""
CPUS = 4
"""Per node, whatever the machine has."""
GPUS = 2
"""Per node. They are `/dev/null`, but SLURM deals them out like any others."""

SETTINGS = {
    "ClusterName": "vggdist",
    "SlurmUser": "root",
    "AuthType": "auth/munge",
    "CredType": "cred/munge",
    # No cgroups, no PMIx, no accounting: a container may have none of them.
    "ProctrackType": "proctrack/linuxproc",
    "TaskPlugin": "task/none",
    "JobAcctGatherType": "jobacct_gather/none",
    "MpiDefault": "none",
    "SelectType": "select/cons_tres",
    "SelectTypeParameters": "CR_CPU",
    "SlurmdParameters": "config_overrides",
    "GresTypes": "gpu",
    "ReturnToService": "2",
    # Seconds from SIGTERM to SIGKILL; srun waits two longer.
    "KillWait": "5",
    # A requeued job waits `CRED_EXPIRE`, then for the scheduler, else a minute.
    "SchedulerParameters": "sched_interval=1,bf_interval=1",
}
PARTITIONS = ("PartitionName=main Nodes=ALL Default=YES",)

CRED_EXPIRE = 10
"""Seconds. Where a node goes down this must be more than srun waits, as it is by default (120, 32):
else the end of the first attempt's script is taken for that of the second."""

WORKER = os.environ.get("PYTEST_XDIST_WORKER", "gw0")
JOBS_APART = 60
"""More than the jobs of one process's clusters, so that no two have a number at the same time."""

START_SECONDS = 60.0
STOP_SECONDS = 20.0


def what_is_missing() -> str | None:
    """Why no cluster can be started here, as a sentence; None where one can."""
    if os.geteuid() != 0:
        return "a SLURM cluster needs root."
    for program, package in {"munged": "munge", "slurmctld": "slurm-wlm"}.items():
        if shutil.which(program, path=PATH) is None:
            return f"a SLURM cluster needs {program}; install Debian's package {package}."
    return None


def require_slurm() -> None:
    """Skips a test where no cluster can be started, and fails it where `CI=true`."""
    missing = what_is_missing()
    if missing is not None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(missing)


class Cluster:
    """Two nodes in one partition, or what other settings make of them."""

    def __init__(
        self, settings: Mapping[str, str] | None = None, partitions: Sequence[str] = PARTITIONS
    ) -> None:
        """Describes a cluster; nothing runs before `start`, or `with`.

        Args:
            settings: of slurm.conf, on top of `SETTINGS`.
            partitions: its lines on partitions.
        """
        self.settings = SETTINGS | dict(settings or {})
        self.partitions = tuple(partitions)
        # Not pytest's folder: munged wants one open to all, and a socket's path is short.
        self.folder = Path(tempfile.mkdtemp(prefix="vggdist-slurm-"))
        self._daemons: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "Cluster":
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Starts the daemons, and waits until both nodes take jobs."""
        self._write_files()
        self._start_daemon(
            "munged",
            "--foreground",
            f"--key-file={self.folder}/munge.key",
            f"--socket={self.folder}/munge.socket",
            f"--pid-file={self.folder}/munged.pid",
            f"--log-file={self.folder}/munged.log",
            f"--seed-file={self.folder}/munged.seed",
        )
        self._wait(START_SECONDS, "munged listens", (self.folder / "munge.socket").exists)
        self._start_daemon("slurmctld", "-D")
        for node in NODES:
            self._start_daemon("slurmd", "-D", "-N", node)
        self._wait(START_SECONDS, "both nodes are idle", self._is_idle)

    def stop(self) -> None:
        """Ends all jobs and daemons, and removes the folder; may be called at any time."""
        if len(self._daemons) > 1:
            with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
                self.run("scancel", "--user=root", timeout=STOP_SECONDS)
                self._wait(STOP_SECONDS, "no job is left", lambda: not self._jobs())
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in reversed(self._daemons):
            try:
                daemon.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        self._daemons.clear()
        for process in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(
        self, *command: str, stdin: str = "", timeout: float = 100.0, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command of SLURM's, or any other, in the project's root.

        Args:
            stdin: what it reads; `sbatch` reads a script.
            timeout: seconds, after which the test fails.
            variables: of the environment.
        """
        return subprocess.run(
            command,
            cwd=ROOT,
            env=self.environment(**variables),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def environment(self, **variables: str) -> dict[str, str]:
        """This process's environment, but on this cluster and in no job."""
        outside = ("SLURM", "SBATCH", "SALLOC", "SRUN")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(outside)}
        return kept | {"PATH": PATH, "SLURM_CONF": f"{self.folder}/slurm.conf"} | variables

    def processes(self, **variables: str) -> list[int]:
        """Ids of the processes on this cluster with these variables: `SLURM_PROCID="1"` is rank 1.

        Without any: daemons and commands as well.
        """
        wanted = {"SLURM_CONF": f"{self.folder}/slurm.conf"} | variables
        lines = {f"{name}={value}".encode() for name, value in wanted.items()}
        found = []
        for file in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):  # it has ended meanwhile
                if lines <= set(file.read_bytes().split(b"\0")):
                    found.append(int(file.parent.name))
        return found

    def printed_about(self, job: str) -> str:
        """What the daemons have printed about a job."""
        return "\n".join(
            f"{file.name}: {line}"
            for file in sorted(self.folder.glob("*.out"))
            for line in file.read_text(errors="replace").splitlines()
            if re.search(rf"\b{job}\b", line)
        )

    def _jobs(self) -> str:
        return self.run("squeue", "--noheader", timeout=STOP_SECONDS).stdout

    def _is_idle(self) -> bool:
        states = self.run("sinfo", "--noheader", "-N", "-o", "%N %T").stdout.splitlines()
        return set(states) == {f"{node} idle" for node in NODES}

    def _start_daemon(self, *command: str) -> None:
        with (self.folder / f"{command[0]}-{len(self._daemons)}.out").open("wb") as printed:
            daemon = subprocess.Popen(
                command,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for pytest, which then stops the cluster
            )
        self._daemons.append(daemon)

    def _wait(self, seconds: float, what: str, is_so: Callable[[], bool]) -> None:
        deadline = time.monotonic() + seconds
        while not is_so():
            if time.monotonic() > deadline or any(
                daemon.poll() is not None for daemon in self._daemons
            ):
                raise AssertionError(
                    f"the cluster does not get so far that {what}.\n{self._printed()}"
                )
            time.sleep(0.1)

    def _printed(self) -> str:
        """The last lines that each daemon printed."""
        return "\n".join(
            "\n".join([f"{file.name}:", *file.read_text(errors="replace").splitlines()[-15:]])
            for file in sorted(self.folder.glob("*.out"))
        )

    def _write_files(self) -> None:
        self.folder.chmod(0o755)
        key = self.folder / "munge.key"
        key.touch(0o600)
        key.write_bytes(os.urandom(128))
        (self.folder / "state").mkdir()
        for number in range(GPUS):
            (self.folder / f"gpu{number}").symlink_to("/dev/null")
        (self.folder / "gres.conf").write_text(f"Name=gpu File={self.folder}/gpu[0-{GPUS - 1}]\n")
        host = socket.gethostname().partition(".")[0]
        controller, *ports = _free_ports(1 + len(NODES))
        own = {
            # Ranks meet at a port that follows from the job's number, and clusters of several
            # processes of pytest share this machine's ports.
            "FirstJobId": str(1 + JOBS_APART * int(WORKER.removeprefix("gw"))),
            "SlurmctldHost": f"{host}(127.0.0.1)",
            "SlurmctldPort": str(controller),
            "AuthInfo": f"socket={self.folder}/munge.socket,cred_expire={CRED_EXPIRE}",
            "StateSaveLocation": f"{self.folder}/state",
            "SlurmdSpoolDir": f"{self.folder}/spool-%n",
            "SlurmctldPidFile": f"{self.folder}/slurmctld.pid",
            "SlurmdPidFile": f"{self.folder}/slurmd-%n.pid",
        }
        lines = [f"{name}={value}" for name, value in (own | self.settings).items()]
        lines += [
            f"NodeName={node} NodeHostname={host} Port={port} CPUs={CPUS} Gres=gpu:{GPUS}"
            for node, port in zip(NODES, ports, strict=True)
        ]
        (self.folder / "slurm.conf").write_text("\n".join([*lines, *self.partitions]) + "\n")


def _free_ports(count: int) -> list[int]:
    """Ports that nothing listens on now, each another one."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
