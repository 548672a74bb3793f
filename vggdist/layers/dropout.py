"""Dropout whose mask depends on the image, not on the process that computes it.

A mask from a random stream changes with the number of ranks and with the micro batch. Here it is a
pure function of (the image's key, the layer's number, the unit's number), so a run has the same
masks however its work is divided.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _signed(value: int) -> int:
    """The int64 of the same 64 bits: torch takes no constants of 2^63 and more."""
    return (value + 2**63) % 2**64 - 2**63


# SplitMix64 (Steele, Lea & Flood, OOPSLA 2014): its counter's increment, its finalizer's factors.
INCREMENT = _signed(0x9E3779B97F4A7C15)
FACTOR_1 = _signed(0xBF58476D1CE4E5B9)
FACTOR_2 = _signed(0x94D049BB133111EB)
# Between two layers' counters: more increments, either way, than a layer has units.
LAYER_DISTANCE = 0xD1B54A32D192ED03


class KeyedDropout(nn.Module):
    """Dropout with masks derived from image keys; torch's own without keys; off in eval mode."""

    def __init__(self, ratio: float, layer: int) -> None:
        """Builds the layer.

        Args:
            ratio: fraction of units set to zero, in [0, 1); the others grow by 1 / (1 - ratio).
            layer: the layer's number, such as 6 for fc6; each layer has its own masks.
        """
        assert 0.0 <= ratio < 1.0, ratio
        super().__init__()
        self.ratio = ratio
        self.layer = layer

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """Sets some units to zero and scales the others up.

        Args:
            x: activations (n, d).
            keys: int64 (n,), one random 64-bit number per image and step, on the device of `x`.

        Returns:
            (n, d), of the type of `x`.
        """
        if not self.training or self.ratio == 0.0:
            return x
        if keys is None:
            return F.dropout(x, self.ratio)
        assert keys.dtype == torch.int64, keys.dtype
        assert keys.shape == x.shape[:1], (keys.shape, x.shape)
        return x * self._kept(keys, x.shape[1]) * (1.0 / (1.0 - self.ratio))

    def _kept(self, keys: Tensor, num_units: int) -> Tensor:
        """Keys (n,) -> bool (n, num_units): the units not dropped, the same on every device.

        Computed in wrapping int64. `>>` copies the sign bit, so the `&` after it makes the shift
        logical.
        """
        units = torch.arange(num_units, device=keys.device) * INCREMENT
        bits = (keys + _signed(self.layer * LAYER_DISTANCE)).unsqueeze(1) + units
        bits = (bits ^ ((bits >> 30) & (2**34 - 1))) * FACTOR_1
        bits = (bits ^ ((bits >> 27) & (2**37 - 1))) * FACTOR_2
        # SplitMix64 ends with bits ^ (bits >> 31), which does not change the upper 31 bits, and
        # only those are compared: the threshold is a multiple of 2^33.
        return bits >= round(self.ratio * 2**31) * 2**33 - 2**63

    def extra_repr(self) -> str:
        return f"ratio={self.ratio}, layer={self.layer}"
