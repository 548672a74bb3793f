"""The cluster that tests of SLURM share."""

import os
from collections.abc import Iterator

import pytest

from tests.slurm.cluster import Cluster, what_is_missing


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Two idle nodes; `CI=true` refuses to go without."""
    missing = what_is_missing()
    if missing is not None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(missing)
    with Cluster() as cluster:
        yield cluster
