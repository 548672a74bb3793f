"""Shards: uncompressed tar files in WebDataset's naming, each with an index of offsets beside it.

A sample is an image, `000000012.jpg`, and its label as a decimal number, `000000012.cls`. The index
is the text that DALI's wds2idx writes: `v1.2 SAMPLES`, then for each sample a line of `EXTENSION
OFFSET BYTES NAME` for each of its files. Reading an image needs neither: the manifest has its
offset.
"""

from __future__ import annotations

import tarfile
from pathlib import Path

_END = 2 * tarfile.BLOCKSIZE  # a tar ends with two empty blocks


def shard_name(number: int) -> str:
    """What the shard of a number is called."""
    return f"shard-{number:06d}.tar"


def sample_extension(file_name: str) -> str:
    """The extension of an image in a shard: its file's, in lower case, and jpg for jpeg."""
    extension = file_name.rpartition(".")[2].lower()
    return "jpg" if extension == "jpeg" else extension


class ShardWriter:
    """Writes one shard and its index. The same samples give the same bytes, whoever packs them.

    Args:
        path: the shard, NAME.tar; replaced if it is there. Its index is NAME.idx.

    Raises:
        OSError: it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("wb")
        self._index: list[str] = []
        self.num_bytes = 0
        """Length so far."""

    def add(self, number: int, extension: str, encoded: bytes, label: int) -> int:
        """Appends a sample.

        Args:
            number: its place among the samples of all shards of the split.
            extension: of the image, without a dot.
            encoded: the image.
            label: its class.

        Returns:
            The offset of the image's first byte in the shard.
        """
        entries = ((extension, encoded), ("cls", str(label).encode("ascii")))
        offsets, described = [], []
        for suffix, content in entries:
            name = f"{number:09d}.{suffix}"
            offsets.append(self._append(name, content))
            described.append(f"{suffix} {offsets[-1]} {len(content)} {name}")
        self._index.append(" ".join(described))
        return offsets[0]

    def close(self) -> None:
        """Ends the shard and writes its index."""
        padded = -(-(self.num_bytes + _END) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE
        self._write(bytes(padded - self.num_bytes))
        self._file.close()
        lines = [f"v1.2 {len(self._index)}", *self._index]
        self._path.with_suffix(".idx").write_text("\n".join(lines) + "\n", encoding="ascii")

    def abandon(self) -> None:
        """Closes an unfinished shard; who continues writes it again."""
        self._file.close()

    def _append(self, name: str, content: bytes) -> int:
        header = tarfile.TarInfo(name)  # of time 0 and of nobody, so that bytes are reproducible
        header.size = len(content)
        self._write(header.tobuf(tarfile.USTAR_FORMAT))
        offset = self.num_bytes
        self._write(content)
        self._write(bytes(-len(content) % tarfile.BLOCKSIZE))
        return offset

    def _write(self, content: bytes) -> None:
        self._file.write(content)
        self.num_bytes += len(content)
