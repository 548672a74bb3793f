"""Paths of users: home folders, how they are shown, and where nothing may be written."""

from __future__ import annotations

import os
import shlex
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from vggdist.errors import ConfigError


def expand_home(path: str) -> str:
    """A path as a user gives it, with a home folder in place of its `~` or `~user`.

    Raises:
        ValueError: there is no such user, or no file can have this name.
    """
    if not path or "\0" in path:
        raise ValueError(f"{path!r} is no path; name a file or a folder.")
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise ValueError(
            f"{path!r} begins with ~, and there is no such user; write ./{path} if it is a name."
        )
    return expanded


def require_text(path: str) -> str:
    """Refuses a path with bytes that are no text, in which safetensors cannot keep weights.

    Raises:
        ValueError: it has such bytes.
    """
    try:
        path.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"{quote(path)} has a name that is no UTF-8, where weights cannot be kept; rename it."
        ) from None
    return path


def quote(path: str | os.PathLike[str]) -> str:
    """A path as it is typed in a shell: as it is, or in quotes that show what cannot be seen.

    That is: spaces at an end, control characters, bytes that are not text, decomposed accents.
    """
    text = os.fspath(path)
    is_composed = unicodedata.is_normalized("NFC", text)
    if text.isprintable() and is_composed:
        return shlex.quote(text)
    escaped = (
        char
        if char.isprintable() and char not in "'\\" and (is_composed or char.isascii())
        else _escape(char)
        for char in text
    )
    return f"$'{''.join(escaped)}'"


def _escape(char: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in os.fsencode(char))


def lies_in(path: str | Path, folder: str | Path) -> bool:
    """Whether a path, with all links followed, is a folder or something in it."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def require_apart(
    option: str, out: Path, inputs: Sequence[str | Path], data: Sequence[str | Path]
) -> None:
    """Refuses to write over what is read, or into a data set.

    Args:
        option: names `out`.
        out: a file or a folder.
        inputs: files and folders that are read.
        data: images that are read, and folders of such.

    Raises:
        ConfigError: `out` is one of the inputs, or lies in a data set, or its name is no text.
    """
    try:
        require_text(str(out))
    except ValueError as error:
        raise ConfigError(f"{option} {error}") from None
    for read in (*inputs, *data):
        if _is_same(out, read):
            raise ConfigError(
                f"{option} {quote(out)} is what is read, and would be written over; give another "
                "name."
            )
    for root in data:
        if lies_in(out, root):
            raise ConfigError(
                f"{option} {quote(out)} lies in {quote(root)}, whose images are read, and nothing "
                "is written among them; name a place outside."
            )


def require_suffix(option: str, out: Path, suffixes: Sequence[str]) -> None:
    """Refuses a file name that speaks of another format than what is written.

    Args:
        suffixes: that it may have, the usual one first.

    Raises:
        ConfigError: it has none of them.
    """
    if out.suffix.lower() not in suffixes:
        named = " or ".join(filter(None, [", ".join(suffixes[:-1]), suffixes[-1]]))
        raise ConfigError(
            f"{option} {quote(out)} does not end in {named}, as files of what is written do; name "
            f"it {quote(out.with_suffix(suffixes[0]))}."
        )


def _is_same(path: str | Path, read: str | Path) -> bool:
    try:
        return os.path.samefile(path, read)  # hard links too
    except OSError:
        return os.path.realpath(path) == os.path.realpath(read)
