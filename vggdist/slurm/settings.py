"""Settings of a cluster: partition, account, time limit, processors, memory.

They come from flags and from a YAML file of their own, never from the file of an experiment: the
same experiment runs on any cluster. They become lines of a shell script, so every value is checked
before it goes there.
"""

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from vggdist.config_file import read_yaml, validate
from vggdist.section import Section
from vggdist.slurm.queue import seconds

_WORD = re.compile(r"[\w.,:@+*%/&|!=()\[\]-]+")


def _word(value: str) -> str:
    if not _WORD.fullmatch(value):
        raise ValueError(
            f"{value!r} must be letters, digits and signs such as . _ - , without spaces, quotes, "
            "backslashes or control characters, since it becomes part of a shell script."
        )
    return value


def _line(value: str) -> str:
    if not value.isprintable():
        raise ValueError(
            f"{value!r} has a control character, such as the end of a line, and what follows it "
            "would be run by a shell; write it in one line."
        )
    return value


_NAMED_OTHERWISE = {
    *("gpus_per_node", "cpus_per_rank", "memory_gb", "setup", "signal_seconds", "max_requeues")
}
"""Settings that are no options of sbatch, or not by this name."""

Word = Annotated[str, AfterValidator(_word)]
Line = Annotated[str, AfterValidator(_line)]


class ClusterSettings(Section):
    """What sbatch is asked for, whatever is trained.

    The keys are those of the YAML file; each but `setup` is a flag too, with the description as its
    help (`add_cluster_flags` in `vggdist/slurm/commands.py`). Those that are not in
    `_NAMED_OTHERWISE` are options of sbatch too.
    """

    gpus_per_node: int | None = Field(
        None, ge=0, description="GPUs of each node, a rank on each; 0: none"
    )
    partition: Word | None = Field(None, description="partition, or several with commas between")
    account: Word | None = Field(None, description="account that is charged")
    qos: Word | None = Field(None, description="quality of service")
    time: str = Field(
        "24:00:00",
        description="limit of an attempt: minutes, hours:minutes:seconds or days-hours:minutes:"
        "seconds; a training that is not finished by then goes on in another",
    )
    cpus_per_rank: int | None = Field(
        None,
        ge=1,
        description="CPUs of each rank, which decode its images (default: 8 beside a GPU, else 1)",
    )
    memory_gb: float | None = Field(
        None,
        gt=0.0,
        description="memory of each node, GB; 0.5 is 512 MB (default: the partition's)",
    )
    exclusive: bool = Field(False, description="whole nodes, shared with no other job")
    constraint: Word | None = Field(None, description="features that the nodes must have")
    nodelist: Word | None = Field(None, description="nodes to use")
    exclude: Word | None = Field(None, description="nodes not to use")
    reservation: Word | None = Field(None, description="reservation to run in")
    gres: Word | None = Field(None, description="further generic resources, such as scratch:100")
    licenses: Word | None = Field(None, description="licenses that the job holds")
    wckey: Word | None = Field(None, description="workload characterization key")
    mail_user: Word | None = Field(None, description="who is told about the job")
    mail_type: Word | None = Field(None, description="what about, such as END,FAIL")
    comment: Line | None = Field(None, description="comment of the job")
    setup: tuple[Line, ...] = Field(
        (),
        description="lines of shell that run before the ranks start, such as `module load cuda`",
    )
    signal_seconds: int = Field(
        120,
        ge=1,
        le=65535,
        description="how long before the time limit the ranks are told to save and stop, seconds; "
        "SLURM may tell them up to a minute earlier",
    )
    max_requeues: int = Field(
        50,
        ge=0,
        description="how often a job that met its time limit may start again by itself; where "
        "others took its nodes away does not count",
    )

    @field_validator("time", mode="before")
    @classmethod
    def _time(cls, value: object) -> str:
        text = str(value)
        if isinstance(value, bool) or not 0 < seconds(text) < math.inf:
            raise ValueError(
                f"{value!r} is no time limit; give minutes such as 90, hours such as 24:00:00, or "
                "days such as 2-00:00:00."
            )
        return text

    @field_validator("setup", mode="before")
    @classmethod
    def _lines(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _signal_fits(self) -> Self:
        if self.signal_seconds >= 60 * self.timeout_minutes:
            raise ValueError(
                f"signal_seconds {self.signal_seconds} is not shorter than the time limit "
                f"{self.time} ({self.timeout_minutes} min), so a job would be told to stop as it "
                "starts; ask for more time, or set signal_seconds lower."
            )
        return self

    def sbatch_options(self) -> dict[str, Any]:
        """The settings that are options of sbatch, by its names; None: it is not given."""
        memory = None if self.memory_gb is None else f"{round(1024 * self.memory_gb)}M"
        same_names = self.model_dump(exclude=_NAMED_OTHERWISE)
        return {**same_names, "mem": memory, "exclusive": self.exclusive or None}

    @property
    def timeout_minutes(self) -> int:
        """The time limit in whole minutes, which is how SLURM counts it."""
        return math.ceil(seconds(self.time) / 60)


def load_settings(path: Path | None, flags: Mapping[str, object]) -> ClusterSettings:
    """Settings from a file, with flags on top.

    Args:
        path: a YAML file of settings; None for the user's own (`default_file`), if there is one.
        flags: by the names of `ClusterSettings`, and perhaps of other flags; None stands for a flag
            that was not given.

    Raises:
        ConfigError: lists every problem.
    """
    file = path if path is not None else default_file()
    values = {}
    if path is not None or file.is_file():
        values = read_yaml(file, "give --cluster a YAML file of keys such as `partition: gpu`")
    given = {
        name: flags[name] for name in ClusterSettings.model_fields if flags.get(name) is not None
    }
    sources = ((str(file), values), ("the flags", given))
    source = " and ".join(text for text, used in sources if used)
    return validate(ClusterSettings, values | given, source or "the settings of the cluster")


def default_file() -> Path:
    """Where a user's settings of the cluster are, unless --cluster names another file."""
    folder = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(folder).expanduser() / "vggdist" / "cluster.yaml"
