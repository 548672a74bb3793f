"""Which format a file of weights has, by its first bytes: a file's name proves nothing."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal
from zipfile import BadZipFile, ZipFile

from vggdist.artifacts.paths import quote, require_text
from vggdist.errors import WeightsError

WeightsFormat = Literal["torch", "numpy", "safetensors"]
MOMENTUM_KEY = "vggdist-momentum"
"""In the metadata of a checkpoint's momentum, whose tensors have the names of weights."""

_HEAD = 512  # bytes; a tar archive says what it is in byte 257
_LARGEST_HEADER = 100 * 2**20  # bytes, of a .safetensors file


def find_format(path: Path) -> WeightsFormat:
    """The format of a file; `torch` is a zip or a pickle of torch.save, or any other pickle.

    Raises:
        WeightsError: there is no such file, or it is something else, which the message names.
    """
    if not path.exists():
        raise WeightsError(f"{quote(path)} does not exist; give a file with weights.")
    if path.is_dir():
        raise WeightsError(
            f"{quote(path)} is a folder; give a file. Run folders and checkpoints of vggdist are "
            "taken by every command as they are."
        )
    try:
        require_text(str(path))
    except ValueError as error:
        raise WeightsError(str(error)) from None
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
        names = _members(path) if head.startswith(b"PK") else []
    except OSError as error:
        raise WeightsError(f"{quote(path)} cannot be read: {error}.") from error
    if _is_safetensors(head):  # first: it begins with a number, so with any bytes
        if path.name == "momentum.safetensors" or MOMENTUM_KEY.encode() in head:
            raise WeightsError(
                f"{quote(path)} is the momentum of a training, which looks like weights. Give "
                "weights.safetensors beside it."
            )
        return "safetensors"
    for matches, what in _NOT_WEIGHTS:
        if matches(head, path, names):
            raise WeightsError(f"{quote(path)} is {what}")
    if head.startswith(b"PK"):
        return "numpy" if any(name.endswith(".npy") for name in names) else "torch"
    if head.startswith(b"\x80"):
        return "torch"
    raise WeightsError(
        f"{quote(path)} is no file of weights that is known here: it begins with {head[:16]!r}. "
        "Files of torch.save, .safetensors and .npz are read."
    )


def _members(path: Path) -> list[str]:
    """Names in a zip; none where it was cut off, since they stand at its end."""
    try:
        with ZipFile(path) as archive:
            return archive.namelist()
    except BadZipFile:
        return []


def _is_safetensors(head: bytes) -> bool:
    """The length of a header, in 8 bytes, and the header, in JSON."""
    return head[8:10] in (b'{"', b"{}") and int.from_bytes(head[:8], "little") < _LARGEST_HEADER


def _starts(*beginnings: bytes) -> Callable[[bytes, Path, list[str]], bool]:
    return lambda head, path, names: head.startswith(beginnings)


def _holds(pattern: str) -> Callable[[bytes, Path, list[str]], bool]:
    return lambda head, path, names: any(re.fullmatch(pattern, name) for name in names)


def _is_plain_zip(head: bytes, path: Path, names: list[str]) -> bool:
    return bool(names) and not any(name.endswith((".npy", "/data.pkl")) for name in names)


def _is_compressed(head: bytes, path: Path, names: list[str]) -> bool:
    """By gzip, xz, bzip2, 7-zip or zstd; or a tar archive."""
    magic = (b"\x1f\x8b", b"\xfd7zXZ", b"BZh", b"7z\xbc\xaf", b"\x28\xb5\x2f\xfd")
    return head.startswith(magic) or head[257:262] == b"ustar"


def _is_web_page(head: bytes, path: Path, names: list[str]) -> bool:
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<!--"))


def _is_onnx(head: bytes, path: Path, names: list[str]) -> bool:
    """Field 1 of a ModelProto, the version of its format, and the next of its fields."""
    next_fields = b"\x12\x1a\x22\x28\x32\x3a\x42"
    return len(head) > 2 and head[0] == 8 and 0 < head[1] < 32 and head[2] in next_fields


def _is_caffe(head: bytes, path: Path, names: list[str]) -> bool:
    """Field 1 of a NetParameter, the network's name."""
    name = head[2 : 2 + head[1]] if len(head) > 2 and head[0] == 10 else b""
    return path.suffix == ".caffemodel" or (len(name) > 2 and name.isascii() and b"VGG" in name)


_ARRAYS = "save its arrays by their names with numpy.savez, and import that file."

# What a file is, and what to do; the first that matches counts.
_NOT_WEIGHTS: tuple[tuple[Callable[[bytes, Path, list[str]], bool], str], ...] = (
    (
        lambda head, path, names: not head,
        "empty: it was not copied or fetched whole. Fetch it again.",
    ),
    (
        _starts(b"version https://git-lfs"),
        "a pointer of Git LFS, which stands for the file itself. Fetch that with `git lfs pull` in "
        "its repository.",
    ),
    (
        _is_web_page,
        "a web page: the server sent one, of a login or an error, in place of the weights. Open "
        "the address in a browser, and fetch the file itself.",
    ),
    (
        _holds(r".+/(constants\.pkl|code/.+)"),
        "a TorchScript archive, which holds a program. Save its tensors alone: "
        "torch.save(torch.jit.load(FILE).state_dict(), NEW).",
    ),
    (
        _holds(r"(.+/)?(archive_format|serialized_exported_program\.json|models/.+\.json)"),
        "a program of torch.export. Import the weights that it was made from, or save its tensors "
        "alone: torch.save(torch.export.load(FILE).state_dict, NEW).",
    ),
    (
        _holds(r"model\.weights\.h5"),
        f"a model of Keras. Load it in Keras, and {_ARRAYS}",
    ),
    (
        _starts(b"\x89HDF\r\n\x1a\n"),
        f"an HDF5 file, as Keras writes them. Open it with Keras or h5py, {_ARRAYS}",
    ),
    (
        _is_onnx,
        "an ONNX graph, which holds what is computed. Import the weights that it was made from.",
    ),
    (_is_caffe, f"a model of Caffe. Load it in Caffe, and {_ARRAYS}"),
    (
        _starts(b"\x93NUMPY"),
        f"a single array of NumPy, without a name. For weights, {_ARRAYS}",
    ),
    (_is_compressed, "an archive or a compressed file. Unpack it, and give what is in it."),
    (_is_plain_zip, "a zip archive. Unpack it, and give what is in it."),
    (
        _starts(b"{", b"["),
        "text in JSON, such as the index of weights in several files. Give a file with weights.",
    ),
)
