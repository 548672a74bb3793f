"""A weight matrix's gradient, kept as a product and never stored in memory as a whole.

Writing the gradient of fc6, reading it to check that it is finite, and reading it again to update
the weights costs more memory traffic than the update itself. Instead it is computed from its
factors block by block, each used while it is in the cache; its norm and bound follow from the
factors alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK_ELEMENTS = {"cpu": 1 << 22, "cuda": 1 << 24}
"""Elements of a gradient in memory at a time: what fits a cache, or keeps a GPU busy."""


@dataclass(frozen=True)
class Product:
    """scale dY^T X.

    Attributes:
        weight: (out_features, in_features), the weights of this gradient.
        dy: (n, out_features).
        x: (n, in_features), of the same type.
        scale: what the sum over images is multiplied by.
    """

    weight: Tensor
    dy: Tensor
    x: Tensor
    scale: float

    def write(self, rows: slice, out: Tensor) -> None:
        """Writes some rows of the gradient, computed in fp32; `out` (rows, in_features), fp32."""
        multiply(self.dy[:, rows], self.x, self.scale, out)

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Row ranges and their part of the gradient, which the next part overwrites."""
        height, width = self.weight.shape
        step = max(1, BLOCK_ELEMENTS[self.weight.device.type] // width)
        part = torch.empty(
            (min(step, height), width), dtype=torch.float32, device=self.weight.device
        )
        for start in range(0, height, step):
            rows = slice(start, min(start + step, height))
            block = part[: rows.stop - start]
            self.write(rows, block)
            yield rows, block

    def norm(self) -> Tensor:
        """The Euclidean norm, as a scalar on the device.

        |dY^T X|^2 is the sum of the elements of (dY dY^T) (X X^T), multiplied one by one.
        """
        grams = [rows.float() @ rows.float().T for rows in (self.dy, self.x)]
        # Rounding may make the square of a tiny norm negative.
        square: Tensor = (grams[0] * grams[1]).sum().clamp(min=0)
        return square.sqrt() * self.scale

    def bound(self) -> Tensor:
        """A scalar that no element exceeds; it is finite exactly when the factors are.

        |dY| |X|, by Cauchy-Schwarz; unless the bound exceeds 3e38.
        """
        of_dy, of_x = (torch.linalg.vector_norm(f, dtype=torch.float32) for f in (self.dy, self.x))
        bound: Tensor = of_dy * of_x
        return bound


def multiply(dy: Tensor, x: Tensor, scale: float, out: Tensor) -> None:
    """Sets `out` to scale dY^T X, of 16-bit or fp32 factors, computed in fp32.

    Args:
        dy: (n, out_features).
        x: (n, in_features), of the same type.
        scale: applied after the sum, so that fp16 factors lose nothing.
        out: (out_features, in_features), fp32; its previous values are not used.
    """
    if dy.is_cuda and dy.dtype != torch.float32:
        torch.addmm(out, dy.T, x, out_dtype=torch.float32, beta=0, alpha=scale, out=out)
    else:
        # On a CPU in fp32, too: with few rows, writing the result dominates, and a 16-bit product
        # would be an extra write.
        torch.addmm(out, dy.T.float(), x.float(), beta=0, alpha=scale, out=out)
