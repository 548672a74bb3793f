"""Tables 3 to 7 of the paper (arXiv:1409.1556v6) as data: errors on ILSVRC2012, as fractions."""

from __future__ import annotations

from dataclasses import dataclass, replace

from vggdist.artifacts.posteriors import Protocol

NUM_CLASSES = 1000
NUM_VALIDATION_IMAGES = 50_000


@dataclass(frozen=True)
class TestedNetwork:
    """A configuration trained at S = `train_scale` and applied at every Q of `scales`."""

    configuration: str
    train_scale: tuple[int, int]
    scales: tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """One row: the mean of the posteriors of all its networks, protocols and scales."""

    networks: tuple[TestedNetwork, ...]
    """Empty where the method is not the paper's own."""
    protocols: tuple[Protocol, ...]
    top1_error: float | None
    """Of the validation images; none: the paper prints a dash."""
    top5_error: float | None
    """Of the validation images."""
    top5_test_error: float | None = None
    """Of the test images, whose labels are not public."""
    method: str = ""
    """Tables 6 and 7: what the paper calls it."""


@dataclass(frozen=True)
class PaperTable:
    """A table of the paper, with its caption."""

    number: int
    caption: str
    rows: tuple[Row, ...]


JITTERED = (256, 512)
"""S drawn for each image."""
_MULTIPLE = {
    (256, 256): (224, 256, 288),
    (384, 384): (352, 384, 416),
    JITTERED: (256, 384, 512),
}
"""S -> the three Q of section 4.2."""


def _single(name: str, smallest: int, largest: int, top1: float, top5: float) -> Row:
    """At Q = S, or in the middle of its range (section 4.1)."""
    tested = TestedNetwork(name, (smallest, largest), ((smallest + largest) // 2,))
    return Row((tested,), ("dense",), top1, top5)


def _multiple(name: str, smallest: int, largest: int) -> TestedNetwork:
    scale = (smallest, largest)
    return TestedNetwork(name, scale, _MULTIPLE[scale])


D, E = _multiple("D", *JITTERED), _multiple("E", *JITTERED)
DENSE: tuple[Protocol, ...] = ("dense",)
MULTI_CROP: tuple[Protocol, ...] = ("multi-crop",)
BOTH: tuple[Protocol, ...] = ("multi-crop", "dense")

TABLE_3 = PaperTable(
    3,
    "ConvNet performance at a single test scale",
    (
        _single("A", 256, 256, 0.296, 0.104),
        _single("A-LRN", 256, 256, 0.297, 0.105),
        _single("B", 256, 256, 0.287, 0.099),
        _single("C", 256, 256, 0.281, 0.094),
        _single("C", 384, 384, 0.281, 0.093),
        _single("C", *JITTERED, 0.273, 0.088),
        _single("D", 256, 256, 0.270, 0.088),
        _single("D", 384, 384, 0.268, 0.087),
        _single("D", *JITTERED, 0.256, 0.081),
        _single("E", 256, 256, 0.273, 0.090),
        _single("E", 384, 384, 0.269, 0.087),
        _single("E", *JITTERED, 0.255, 0.080),
    ),
)

TABLE_4 = PaperTable(
    4,
    "ConvNet performance at multiple test scales",
    (
        Row((_multiple("B", 256, 256),), DENSE, 0.282, 0.096),
        Row((_multiple("C", 256, 256),), DENSE, 0.277, 0.092),
        Row((_multiple("C", 384, 384),), DENSE, 0.278, 0.092),
        Row((_multiple("C", *JITTERED),), DENSE, 0.263, 0.082),
        Row((_multiple("D", 256, 256),), DENSE, 0.266, 0.086),
        Row((_multiple("D", 384, 384),), DENSE, 0.265, 0.086),
        Row((D,), DENSE, 0.248, 0.075),
        Row((_multiple("E", 256, 256),), DENSE, 0.269, 0.087),
        Row((_multiple("E", 384, 384),), DENSE, 0.267, 0.086),
        Row((E,), DENSE, 0.248, 0.075),
    ),
)

TABLE_5 = PaperTable(
    5,
    "ConvNet evaluation techniques comparison",
    (
        Row((D,), DENSE, 0.248, 0.075),
        Row((D,), MULTI_CROP, 0.246, 0.075),
        Row((D,), BOTH, 0.244, 0.072),
        Row((E,), DENSE, 0.248, 0.075),
        Row((E,), MULTI_CROP, 0.246, 0.074),
        Row((E,), BOTH, 0.244, 0.071),
    ),
)

_SUBMISSION = (
    _multiple("D", 256, 256),
    _multiple("D", 384, 384),
    D,  # here the paper had fine-tuned the fully connected layers only
    _multiple("C", 256, 256),
    _multiple("C", 384, 384),
    _multiple("E", 256, 256),
    _multiple("E", 384, 384),
)

TABLE_6 = PaperTable(
    6,
    "Multiple ConvNet fusion results",
    (
        Row(_SUBMISSION, DENSE, 0.247, 0.075, 0.073, "ILSVRC submission, 7 networks, dense"),
        Row((D, E), DENSE, 0.240, 0.071, 0.070, "D and E [256;512], dense"),
        Row((D, E), MULTI_CROP, 0.239, 0.072, None, "D and E [256;512], multi-crop"),
        Row((D, E), BOTH, 0.237, 0.068, 0.068, "D and E [256;512], multi-crop & dense"),
    ),
)


def _others(method: str, top1: float | None, top5: float | None, test: float | None) -> Row:
    return Row((), (), top1, top5, test, method)


TABLE_7 = PaperTable(
    7,
    "Comparison with the state of the art in ILSVRC classification",
    (
        replace(TABLE_6.rows[3], method="VGG (2 nets, multi-crop & dense)"),
        replace(
            TABLE_5.rows[5],
            top5_test_error=0.070,
            method="VGG (1 net, multi-crop & dense)",
        ),
        replace(TABLE_6.rows[0], method="VGG (ILSVRC submission, 7 nets, dense)"),
        # One number for validation and test images, in the middle of both columns.
        _others("GoogLeNet (1 net)", None, 0.079, 0.079),
        _others("GoogLeNet (7 nets)", None, 0.067, 0.067),
        _others("MSRA (11 nets)", None, None, 0.081),
        _others("MSRA (1 net)", 0.279, 0.091, 0.091),
        _others("Clarifai (multiple nets)", None, None, 0.117),
        _others("Clarifai (1 net)", None, None, 0.125),
        _others("Zeiler & Fergus (6 nets)", 0.360, 0.147, 0.148),
        _others("Zeiler & Fergus (1 net)", 0.375, 0.160, 0.161),
        _others("OverFeat (7 nets)", 0.340, 0.132, 0.136),
        _others("OverFeat (1 net)", 0.357, 0.142, None),
        _others("Krizhevsky et al. (5 nets)", 0.381, 0.164, 0.164),
        _others("Krizhevsky et al. (1 net)", 0.407, 0.182, None),
    ),
)

TABLES = (TABLE_3, TABLE_4, TABLE_5, TABLE_6, TABLE_7)
