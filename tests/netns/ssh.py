"""ssh between the two hosts, without a password, as clusters without SLURM have it.

Each host has an sshd with a key of its own; all files are in one folder, and neither /etc/ssh nor
anybody's ~/.ssh is read or changed.
"""

import shutil
import subprocess
from pathlib import Path

from tests.netns.hosts import PATH, Host

# sshd wants that folder; /run is the host's own.
SSHD = "mkdir /run/sshd && exec /usr/sbin/sshd -D"

SERVER = """\
HostKey {folder}/{name}
AuthorizedKeysFile {folder}/user.pub
AuthenticationMethods publickey
PermitRootLogin prohibit-password
PermitUserRC no
# The folder lies in /tmp, where everybody may write.
StrictModes no
UsePAM no
PidFile none
"""
CLIENT = """\
IdentityFile {folder}/user
IdentitiesOnly yes
UserKnownHostsFile {folder}/known_hosts
GlobalKnownHostsFile none
BatchMode yes
# One a second: sshd may still be starting.
ConnectionAttempts 20
"""


def what_is_missing() -> str | None:
    """Why there can be no ssh between hosts here, as a sentence; None where there can."""
    for program, package in {"sshd": "openssh-server", "pdsh": "pdsh", "pkill": "procps"}.items():
        if shutil.which(program, path=PATH) is None:
            return f"ssh between hosts needs {program}; install Debian's package {package}."
    return None


def connect(hosts: tuple[Host, Host], folder: Path) -> str:
    """Lets the hosts, and each by itself, log in to each other.

    Args:
        folder: for keys and settings.

    Returns:
        PATH with an `ssh` that has these settings, as if they were in the user's ~/.ssh/config.
    """
    _make_key(folder / "user")
    known = []
    for host in hosts:
        _make_key(folder / host.name)
        known.append(f"{host.name} {(folder / host.name).with_suffix('.pub').read_text()}")
        settings = folder / f"{host.name}.sshd"
        settings.write_text(SERVER.format(folder=folder, name=host.name))
        host.start("sh", "-c", f"{SSHD} -f {settings} -E {folder}/{host.name}.log")
    (folder / "known_hosts").write_text("".join(known))
    (folder / "ssh_config").write_text(CLIENT.format(folder=folder))
    command = folder / "bin" / "ssh"
    command.parent.mkdir()
    program = shutil.which("ssh")
    command.write_text(f'#!/bin/sh\nexec {program} -F {folder}/ssh_config "$@"\n')
    command.chmod(0o755)
    return f"{command.parent}:{PATH}"


def _make_key(file: Path) -> None:
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "vggdist's tests", "-f"]
    subprocess.run([*command, str(file)], check=True)
