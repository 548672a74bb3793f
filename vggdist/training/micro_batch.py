"""The micro batch of a training on GPUs, where none is set: the largest that all of them hold."""

from __future__ import annotations

from vggdist.config import Config, split_batch
from vggdist.distributed import process as world
from vggdist.distributed.device import memory_of
from vggdist.distributed.process import Process
from vggdist.errors import ConfigError
from vggdist.model.fitting import fitting_split, needed_memory


def resolve_micro(
    config: Config, process: Process, before: Config | None = None
) -> tuple[Config, str]:
    """The configuration with its micro batch, and the reason as text; collective.

    One that is set is kept. On a CPU, and where memory does not decide
    (`Config.micro_follows_memory`), it stays open, and the text is empty.

    Args:
        config: with a precision.
        before: of the run that is continued, whose micro batch is kept if the ranks can share it.

    Raises:
        ConfigError: that micro batch does not fit the GPUs.
    """
    if process.device.type == "cpu" or not config.micro_follows_memory:
        return config, ""
    memory = memory_of(process.device)
    if process.world_size > 1:
        memory = min(world.gather(memory))
    return choose_micro(config, process.world_size, memory, before)


def choose_micro(
    config: Config, world_size: int, memory_bytes: int, before: Config | None = None
) -> tuple[Config, str]:
    """As `resolve_micro`, for the memory of the smallest GPU."""
    gigabytes = f"{memory_bytes / 1e9:.1f} GB"
    fitting = fitting_split(config, world_size, memory_bytes)
    split, reason = fitting, f"the largest up to 256 that fits {gigabytes}"
    if before is not None:
        usual = split_batch(config.batch, world_size)
        kept = before.batch.micro or usual.micro
        if usual.per_rank % kept == 0:
            split = split_batch(_with_micro(config, kept).batch, world_size)
            reason = "as this run was begun"
            needed = needed_memory(config, split)
            if split.micro > fitting.micro and needed > memory_bytes:
                raise ConfigError(
                    f"this run was begun with micro batches of {split.micro} images, for which a "
                    f"GPU needs about {needed / 1e9:.1f} GB, and the smallest here has "
                    f"{gigabytes}. Set batch.micro={fitting.micro}, which fits, or "
                    f"batch.micro={split.micro} to try it all the same."
                )
    return _with_micro(config, split.micro), f"micro batch {split.micro}, {reason}"


def _with_micro(config: Config, micro: int) -> Config:
    batch = config.batch.model_copy(update={"micro": micro})
    return config.model_copy(update={"batch": batch})
