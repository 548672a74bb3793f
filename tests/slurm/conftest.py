"""What tests of SLURM share: a cluster, a training for it, and what is to come out."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ranks import train_in_ranks
from tests.slurm.cluster import Cluster, require_slurm


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Two idle nodes; `CI=true` refuses to go without."""
    require_slurm()
    with Cluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def overrides(tiny_network: list[str]) -> list[str]:
    """Some seconds of training, in which batch statistics and momentum could be lost."""
    return [
        *tiny_network,
        "model.batch_norm=true",
        "schedule.num_steps=400",
        "evaluation.every_epochs=100",
        "checkpoint.every_steps=40",
        "log.every_steps=20",
        "device=cpu",
    ]


@pytest.fixture(scope="session")
def undisturbed(overrides: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of the training that nothing happens to, on no cluster at all."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    assert train_in_ranks(2, [*overrides, f"run.folder={folder}"]) == [0, 0]
    return folder
