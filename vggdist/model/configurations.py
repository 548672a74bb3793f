"""Table 1 of the paper as data: the convolution blocks of configurations A, A-LRN, B, C, D and E.

A layer is written as in the table: `3-64` is a convolution of kernel size 3 with 64 channels, `LRN`
is local response normalization. In every configuration each block ends in a max-pooling, and fc6,
fc7 and fc8 follow the last block.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Convolution:
    """One convolution: stride 1, padded to keep height and width, followed by ReLU."""

    kernel_size: int
    channels: int


@dataclass(frozen=True)
class Normalization:
    """Local response normalization over channels (only in A-LRN)."""


Layer = Convolution | Normalization
Configuration = tuple[tuple[Layer, ...], ...]

TABLE_1: dict[str, tuple[tuple[str, ...], ...]] = {
    "A": (("3-64",), ("3-128",), ("3-256",) * 2, ("3-512",) * 2, ("3-512",) * 2),
    "A-LRN": (("3-64", "LRN"), ("3-128",), ("3-256",) * 2, ("3-512",) * 2, ("3-512",) * 2),
    "B": (("3-64",) * 2, ("3-128",) * 2, ("3-256",) * 2, ("3-512",) * 2, ("3-512",) * 2),
    "C": (
        ("3-64",) * 2,
        ("3-128",) * 2,
        ("3-256", "3-256", "1-256"),
        ("3-512", "3-512", "1-512"),
        ("3-512", "3-512", "1-512"),
    ),
    "D": (("3-64",) * 2, ("3-128",) * 2, ("3-256",) * 3, ("3-512",) * 3, ("3-512",) * 3),
    "E": (("3-64",) * 2, ("3-128",) * 2, ("3-256",) * 4, ("3-512",) * 4, ("3-512",) * 4),
}

USUAL_NAMES = {"VGG11": "A", "VGG13": "B", "VGG16": "D", "VGG19": "E"}
"""The usual names of columns of Table 1."""

MAX_BLOCKS = 5
"""The crop size is a multiple of 32 = 2^5, so it can be halved five times."""


def configuration_name(configuration: str | Sequence[Sequence[str]]) -> str:
    """A column of Table 1, or `custom` for blocks of one's own."""
    return configuration if isinstance(configuration, str) else "custom"


def parse_layer(text: str) -> Layer:
    """`"3-64"` -> Convolution(3, 64), `"LRN"` -> Normalization().

    Raises:
        ValueError: not of that form, or an even kernel size (which would change height and width).
    """
    if text == "LRN":
        return Normalization()
    match = re.fullmatch(r"(\d+)-(\d+)", str(text))
    if match is None or int(match[1]) % 2 == 0 or int(match[2]) == 0:
        raise ValueError(
            f"layer {text!r} is neither KERNEL-CHANNELS with an odd kernel size, such as 3-64 or "
            "1-256, nor LRN."
        )
    return Convolution(int(match[1]), int(match[2]))


def column_name(text: str) -> str:
    """The name of a column of Table 1: accepts `A-LRN`, `d`, `VGG16`, `vgg-16`.

    Raises:
        ValueError: not the name of a column.
    """
    plain = re.sub(r"[-_ ]", "", text.upper())
    columns = {name.replace("-", ""): name for name in TABLE_1} | USUAL_NAMES
    if plain in columns:
        return columns[plain]
    if plain.removesuffix("BN") in columns:
        raise ValueError(
            f"configuration {text!r} is {columns[plain.removesuffix('BN')]} with batch "
            f"normalization; use {columns[plain.removesuffix('BN')]}, and model.batch_norm=true."
        )
    raise ValueError(
        f"configuration {text!r} is not in Table 1; use one of {', '.join(TABLE_1)}; or "
        f"{', '.join(USUAL_NAMES)}."
    )


def parse_configuration(value: str | Sequence[Sequence[str]]) -> Configuration:
    """A column's name in Table 1, or blocks of layers in its notation -> the convolution blocks.

    Raises:
        ValueError: an unknown name, no block or more than five, a block that does not begin with a
            convolution, or an LRN right after another.
    """
    if isinstance(value, str):
        value = TABLE_1[column_name(value)]
    if not 1 <= len(value) <= MAX_BLOCKS:
        raise ValueError(
            f"a configuration has 1 to {MAX_BLOCKS} blocks, this one has {len(value)}."
        )
    blocks = tuple(tuple(parse_layer(layer) for layer in block) for block in value)
    for number, block in enumerate(blocks, start=1):
        if not block or not isinstance(block[0], Convolution):
            raise ValueError(
                f"block {number} does not begin with a convolution; write its first layer as, say, "
                "3-64."
            )
        if any(a == b == Normalization() for a, b in pairwise(block)):
            raise ValueError(f"block {number} has an LRN right after another; write it once.")
    return blocks
