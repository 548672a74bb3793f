#!/usr/bin/env python
"""Every protocol beside slow loops over Pillow's images, on a trained network: prints a table.

    python tests/benchmarks/protocols.py runs/quickstart datasets/digits --scales 32,40

Posteriors of both in fp32, and ours in bf16, on the first images of every class.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import ImageOps
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.reference import Reference, rescaled
from vggdist.artifacts.posteriors import load_posteriors
from vggdist.artifacts.run_folder import weights_file
from vggdist.evaluate import Request, evaluate

PROTOCOLS = ("center-crop", "dense", "multi-crop")


def main() -> None:
    """Evaluates, compares, prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network")
    parser.add_argument("root", type=Path)
    parser.add_argument("--scales", default="256,384")
    parser.add_argument("--images", type=int, default=50, help="images compared (default: 50)")
    arguments = parser.parse_args()
    scales = tuple(map(int, arguments.scales.split(",")))
    reference = Reference(weights_file(arguments.network))
    table = Table("protocol", "Q", "images", "largest, fp32", "mean, fp32", "largest, bf16")
    with tempfile.TemporaryDirectory() as folder:
        found = {}
        for precision in ("fp32", "bf16"):
            request = Request(
                arguments.network,
                str(arguments.root),
                protocols=PROTOCOLS,
                scales=scales,
                out=Path(folder) / precision,
                overrides=(f"precision={precision}",),
            )
            evaluated = evaluate(request)
            assert evaluated is not None
            found[precision] = [load_posteriors(path) for path in evaluated.files]
        for exact, rounded in zip(found["fp32"], found["bf16"], strict=True):
            chosen = np.linspace(0, len(exact.labels) - 1, arguments.images).astype(int)
            protocol, scale = exact.source.protocol, exact.source.scale
            expected = [
                _expected(reference, protocol, arguments.root / "val" / exact.names[image], scale)
                for image in chosen
            ]
            fp32 = np.abs(exact.values[chosen] - expected)
            bf16 = np.abs(rounded.values[chosen] - expected)
            table.add_row(
                protocol,
                str(scale),
                str(len(chosen)),
                f"{fp32.max():.5f}",
                f"{fp32.mean():.6f}",
                f"{bf16.max():.4f}",
            )
    Console(width=None if Console().is_terminal else 120).print(table)


def _expected(reference: Reference, protocol: str, path: Path, scale: int) -> np.ndarray:
    if protocol == "center-crop":
        return reference.center_crop(path, scale)
    image = rescaled(path, scale)
    if protocol == "multi-crop":
        return reference.multi_crop(image, mirrored=True)
    mirrored = reference.dense(ImageOps.mirror(image), "logits")
    return (reference.dense(image, "logits") + mirrored) / 2


if __name__ == "__main__":
    main()
