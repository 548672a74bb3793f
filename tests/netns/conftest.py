"""The hosts that tests of several machines without SLURM share."""

import os
from collections.abc import Iterator

import pytest

from tests.netns import ssh
from tests.netns.hosts import Host, two_hosts, what_is_missing


def require(missing: str | None) -> None:
    """Skips a test, saying what is missing; `CI=true` refuses to go without."""
    if missing is not None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(missing)


@pytest.fixture(scope="session")
def hosts() -> Iterator[tuple[Host, Host]]:
    """Two hosts, joined by a cable without a limit."""
    require(what_is_missing())
    with two_hosts() as both:
        yield both


@pytest.fixture(scope="session")
def path_with_ssh(hosts: tuple[Host, Host], tmp_path_factory: pytest.TempPathFactory) -> str:
    """PATH on both hosts, with an `ssh` that asks for no password."""
    require(ssh.what_is_missing())
    return ssh.connect(hosts, tmp_path_factory.mktemp("ssh"))
