"""Whether two sets of images hold the same, told by short digests."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Self

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ContentsDigest:
    """What is in the files of a set of images, of which the names are known to be the same.

    Each is a SHA-256 over one quantity of all images; empty: not known of all of them.
    """

    lengths: str = ""
    """Bytes of each encoded image."""
    times: str = ""
    """When each file was last changed before it was listed."""
    sha256: str = ""
    """SHA-256 of each encoded image."""

    @classmethod
    def of(
        cls,
        num_bytes: NDArray[np.int64],
        times: NDArray[np.int64] | None,
        sha256: NDArray[np.uint8] | None,
    ) -> Self:
        """The digest of images, given in an order that belongs to their names.

        Args:
            num_bytes: (n,).
            times: (n,), ns; none: not known of all.
            sha256: (n, 32); none: not known of all.
        """
        given = (num_bytes.astype("<i8"), None if times is None else times.astype("<i8"), sha256)
        return cls(*("" if array is None else _sha256(array.tobytes()) for array in given))

    @classmethod
    def joined(cls, parts: Iterable[Self]) -> Self:
        """That of several sets, one after the other."""
        strings = list(zip(*(asdict(part).values() for part in parts), strict=True))
        return cls(
            *(_sha256("".join(digests).encode()) if all(digests) else "" for digests in strings)
        )

    @classmethod
    def from_mapping(cls, values: Mapping[str, object], prefix: str = "") -> Self:
        """What `to_dict` gave; what is missing is not known."""
        return cls(*(str(values.get(prefix + field.name, "")) for field in fields(cls)))

    def to_dict(self, prefix: str = "") -> dict[str, str]:
        """The fields, each name after `prefix`."""
        return {prefix + name: value for name, value in asdict(self).items()}

    def same_as(self, other: ContentsDigest) -> bool | None:
        """Whether both are of the same contents; None: that cannot be told.

        Hashes decide where both have them. Without, other lengths are other contents and the same
        times are the same; the same lengths at other times may be a copy.
        """
        if self.sha256 and other.sha256:
            return self.sha256 == other.sha256
        if not (self.lengths and other.lengths):
            return None
        if self.lengths != other.lengths:
            return False
        return True if self.times and self.times == other.times else None


UNKNOWN = ContentsDigest()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
