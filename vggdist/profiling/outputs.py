"""Files that a measurement writes: only new ones, or its own earlier ones."""

from collections.abc import Callable
from pathlib import Path

from vggdist.artifacts.paths import quote
from vggdist.errors import ConfigError


def require_own_file(out: Path, is_ours: Callable[[], bool], command: str) -> None:
    """Refuses to write over what another program, or a person, wrote.

    Args:
        out: the file.
        is_ours: whether it was written by `command`; asked if it exists.
        command: such as `vggdist tune data`.

    Raises:
        ConfigError: it is another's, cannot be read, or has no folder.
    """
    folder = out.absolute().parent
    if not folder.is_dir():
        raise ConfigError(f"--out {quote(out)}: {quote(folder)} is no folder; make it first.")
    try:
        is_free = not out.exists() or is_ours()
    except OSError as error:
        raise ConfigError(
            f"--out {quote(out)} cannot be used: {error}. Give another file."
        ) from error
    if not is_free:
        raise ConfigError(
            f"--out {quote(out)} exists and was not written by `{command}`; it is left as it is. "
            "Give another file."
        )
