"""How names of files and classes are shown to people."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from vggdist.artifacts.paths import quote

LARGEST_LIST = 5
"""Names that an error message spells out before it says how many more there are."""

_MOST_LABELS = 12


def spelled(name: str) -> str:
    """A name in quotes, so that a space at its end, a decomposed accent and control characters can
    be seen."""
    return repr(name) if unicodedata.is_normalized("NFC", name) else ascii(name)


def listed(names: Sequence[str]) -> str:
    """A few names for a message, quoted, and how many more there are."""
    return shortened([spelled(name) for name in names[:LARGEST_LIST]], len(names))


def shortened(texts: Sequence[str], num_texts: int | None = None) -> str:
    """A few texts for a message, and how many more there are.

    Args:
        texts: the first ones at least.
        num_texts: how many there are; none: as many as `texts`.
    """
    more = (len(texts) if num_texts is None else num_texts) - LARGEST_LIST
    shown = ", ".join(texts[:LARGEST_LIST]) or "nothing"
    return f"{shown} and {more} more" if more > 0 else shown


def printable(text: str) -> str:
    """Text that any terminal, picture or file takes: bytes that are no UTF-8, and characters that
    are not to be seen, become escapes."""
    return "".join(c if c.isprintable() else _escape(c) for c in text)


def has_control_characters(name: str) -> bool:
    """Whether a name would not stay on one line, or would change what stands around it."""
    return any(unicodedata.category(c) in ("Cc", "Zl", "Zp") for c in name)


def twins(names: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of different names that are equal after Unicode normalization."""
    seen: dict[str, str] = {}
    pairs = []
    for name in names:
        first = seen.setdefault(unicodedata.normalize("NFC", name), name)
        if first != name:
            pairs.append((first, name))
    return pairs


def sentences(*texts: str) -> str:
    """Those that are not empty, one after the other."""
    return " ".join(filter(None, texts))


def explain_twins(names: Iterable[str]) -> str:
    """A sentence about names between which nobody sees a difference; empty: there are none."""
    pairs = twins(sorted(names))
    if not pairs:
        return ""
    shown = ", ".join(
        f"{spelled(first)} and {spelled(twin)}" for first, twin in pairs[:LARGEST_LIST]
    )
    return (
        f"{shown} are equal after Unicode normalization: some systems store an accent as a "
        "character of its own."
    )


def render_labels(classes: Sequence[str], file: Path) -> str:
    """Which class got which number.

    Args:
        classes: in the order of labels.
        file: that lists them all.
    """
    shown = [f"{label} {spelled(name)}" for label, name in enumerate(classes)]
    if len(shown) > _MOST_LABELS:
        shown = [*shown[:2], "...", shown[-1]]
    rest = f"; all of them, a line each: {quote(file)}" if "..." in shown else ""
    return f"labels, in the order of the class folders: {', '.join(shown)}{rest}"


def _escape(character: str) -> str:
    byte = ord(character) - 0xDC00  # how Python keeps a byte of a name that is no UTF-8
    return f"\\x{byte:02x}" if 0x80 <= byte <= 0xFF else ascii(character)[1:-1]
