"""Local response normalization, used only in A-LRN (Krizhevsky et al. 2012, section 3.3)."""

from torch import Tensor, nn
from torch.nn import functional as F


class LocalResponseNorm(nn.Module):
    """Divides each unit by the activity of its own and the neighbouring channels, per pixel.

    b_i = a_i / (k + alpha * sum of a_j^2 over the channels |j - i| <= size // 2) ^ beta

    The defaults are AlexNet's parameters, which VGG uses. The printed formula does not divide alpha
    by `size`; `torch.nn.LocalResponseNorm` and Caffe do, so they match this one with alpha = 5e-4.
    Which of the two VGG was trained with is unknown: its code descends from Caffe, its text from
    AlexNet.
    """

    def __init__(
        self, size: int = 5, k: float = 2.0, alpha: float = 1e-4, beta: float = 0.75
    ) -> None:
        super().__init__()
        self.size = size
        self.k = k
        self.alpha = alpha
        self.beta = beta

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, c, h, w), of the same type."""
        # In fp32: fp16 squares are infinite from 256 on, and bf16 loses small sums next to k.
        normalized = F.local_response_norm(
            x.float(), self.size, alpha=self.alpha * self.size, beta=self.beta, k=self.k
        )
        return normalized.to(x.dtype)

    def extra_repr(self) -> str:
        return f"size={self.size}, k={self.k}, alpha={self.alpha}, beta={self.beta}"
