"""Facts about a cluster: partition, account, time limit, processors, memory.

They come from flags and from a YAML file of their own, never from the file of an experiment: the
same experiment runs on any cluster. What they say becomes lines of a shell script, so every value
is checked before it goes there.
"""

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from vggdist.config import Section
from vggdist.config_file import read_yaml, validate

_WORD = re.compile(r"[\w.,:@+*%/&|!=()\[\]-]+")
_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<rest>\d+(?::\d+){0,2})")


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


Word = Annotated[str, AfterValidator(_word)]
Line = Annotated[str, AfterValidator(_line)]


class ClusterFacts(Section):
    """What sbatch is asked for, whatever is trained. The keys are those of the YAML file."""

    partition: Word | None = Field(None, description="Partition, or several with commas between.")
    account: Word | None = Field(None, description="Account that is charged.")
    qos: Word | None = Field(None, description="Quality of service.")
    time: str = Field(
        "24:00:00",
        description="Time limit of an attempt: minutes, hours:minutes:seconds, or "
        "days-hours:minutes:seconds. A training that is not finished by then goes on in another.",
    )
    gpus_per_node: int | None = Field(None, ge=0, description="GPUs of each node; 0: none.")
    cpus_per_rank: int | None = Field(
        None,
        ge=1,
        description="CPUs of each rank, which decode its images; none: 8 beside a GPU, else 1.",
    )
    memory_gb: float | None = Field(
        None, gt=0.0, description="Memory of each node, GB; 0.5 is 512 MB; none: the partition's."
    )
    exclusive: bool = Field(False, description="Whole nodes, shared with no other job.")
    constraint: Word | None = Field(None, description="Features that the nodes must have.")
    nodelist: Word | None = Field(None, description="Nodes to use.")
    exclude: Word | None = Field(None, description="Nodes not to use.")
    reservation: Word | None = Field(None, description="Reservation to run in.")
    gres: Word | None = Field(None, description="Further generic resources, such as scratch:100.")
    licenses: Word | None = Field(None, description="Licenses that the job holds.")
    wckey: Word | None = Field(None, description="Workload characterization key.")
    mail_user: Word | None = Field(None, description="Who is told about the job.")
    mail_type: Word | None = Field(None, description="What about, such as END,FAIL.")
    comment: Line | None = Field(None, description="Comment of the job.")
    setup: tuple[Line, ...] = Field(
        (),
        description="Lines of shell that run before the ranks start, such as `module load cuda`; "
        "only in the file.",
    )
    signal_seconds: int = Field(
        120,
        ge=1,
        le=65535,
        description="How long before the time limit the ranks are told to save and stop, seconds; "
        "SLURM may tell them up to a minute earlier.",
    )
    max_requeues: int = Field(
        50,
        ge=0,
        description="How often a job that met its time limit may start again by itself. Where "
        "others took its nodes away does not count.",
    )

    @field_validator("time", mode="before")
    @classmethod
    def _time(cls, value: object) -> str:
        text = str(value)
        if isinstance(value, bool) or not _TIME.fullmatch(text) or _minutes(text) == 0:
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

    @property
    def timeout_minutes(self) -> int:
        """The time limit in whole minutes, which is how SLURM counts it."""
        return _minutes(self.time)


def load_facts(path: Path | None, flags: Mapping[str, object]) -> ClusterFacts:
    """Facts from a file, with flags on top.

    Args:
        path: a YAML file of facts; None for the user's own (`default_file`), if there is one.
        flags: keys of `ClusterFacts`; None stands for a flag that was not given.

    Raises:
        ConfigError: lists every problem.
    """
    file = path if path is not None else default_file()
    values = {}
    if path is not None or file.is_file():
        values = read_yaml(file, "give --cluster a YAML file of keys such as `partition: gpu`")
    given = {key: value for key, value in flags.items() if value is not None}
    source = " and ".join(
        text for text, used in ((str(file), values), ("the flags", given)) if used
    )
    return validate(ClusterFacts, values | given, source=source or "the facts about the cluster")


def default_file() -> Path:
    """Where a user's facts about the cluster stand, unless --cluster names another file."""
    folder = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(folder).expanduser() / "vggdist" / "cluster.yaml"


def _minutes(text: str) -> int:
    """SLURM's forms of a time limit -> minutes, rounded up: m, m:s, h:m:s, d-h, d-h:m, d-h:m:s."""
    match = _TIME.fullmatch(text)
    assert match is not None
    parts = [int(part) for part in match["rest"].split(":")]
    if match["days"] is not None:
        hours, minutes, seconds = [*parts, 0, 0][:3]
        hours += 24 * int(match["days"])
    else:
        hours, minutes, seconds = {1: [0, *parts, 0], 2: [0, *parts], 3: parts}[len(parts)]
    return math.ceil((3600 * hours + 60 * minutes + seconds) / 60)
