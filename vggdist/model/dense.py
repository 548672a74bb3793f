"""A trained network, applied fast to whole images of any shape for evaluation.

`VGG.score_map` follows section 3.2 literally. Here the weights are cast once, the convolutions run
on all images that the caller passes, and fc6 to fc8 process the windows of many maps of any shapes
as the rows of one matrix, so that they share each pass over fc6's 103 million weights.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

from vggdist.model.crops import Lines, choose_sharing, crop_maps
from vggdist.model.vgg import VGG, require_whole_images

FullyConnected = Literal["fc6", "fc7", "fc8"]
LAYERS: tuple[FullyConnected, ...] = ("fc6", "fc7", "fc8")

WINDOW_BYTES = 2**25
"""Memory limit for the windows in fc6 at once: 32 MiB, 668 windows of D in bf16."""


class DenseNetwork:
    """A network in one dtype on one device, without gradients or dropout.

    It holds copies, so the original `VGG` can be deleted.
    """

    def __init__(self, network: VGG, dtype: torch.dtype, device: torch.device) -> None:
        """Casts and lays out the weights.

        Args:
            network: the trained network; not changed. Without fully connected layers in memory
                it has maps alone.
            dtype: of weights and activations.
            device: of both.
        """
        self.crop_size, self.window = network.crop_size, network.window
        self.dtype, self.device = dtype, device
        features = copy.deepcopy(network.features).eval().requires_grad_(False)
        for block in features[::2]:
            _fold_normalizations(block)
        self._features = features.to(device, dtype).to(memory_format=torch.channels_last)
        self._layers: list[tuple[Tensor, Tensor]] = []
        for layer in (network.fc6, network.fc7, network.fc8):
            if layer.linear.weight.is_meta:
                break
            weight = layer.linear.weight.detach().to(device, dtype)
            if layer is network.fc6:
                weight = _by_pixels(weight, self.window)
            self._layers.append((weight, layer.linear.bias.detach().to(device, dtype)))

    @torch.no_grad()
    def maps(self, images: Tensor) -> Tensor:
        """The last pooled maps (n, c, h, w), as `VGG.maps`; all images in one pass.

        Raises:
            ValueError: images smaller than the network's input.
        """
        maps: Tensor = self._features(self._ready(images))
        return maps

    @torch.no_grad()
    def crop_maps(self, images: Tensor, rows: Lines, columns: Lines, max_pixels: int) -> Tensor:
        """The last pooled maps of the crops of images at all of `rows` x `columns`.

        Args:
            images: (n, 3, h, w); some layers process all of them at once.
            rows: first rows of the crops, ascending.
            columns: first columns of the crops, ascending.
            max_pixels: most crop pixels that the other layers process at once.

        Returns:
            (n, crops, c, window, window), the crops row by row.

        Raises:
            ValueError: images smaller than the network's input.
        """
        images, size = self._ready(images), self.crop_size
        sharing = choose_sharing(self._features, rows, columns, size)
        return crop_maps(self._features, images, rows, columns, size, max_pixels, sharing)

    def _ready(self, images: Tensor) -> Tensor:
        require_whole_images(images, self.crop_size)
        return images.to(self.device, self.dtype, memory_format=torch.channels_last)

    @torch.no_grad()
    def score_maps(self, maps: Sequence[Tensor], layer: FullyConnected = "fc8") -> list[Tensor]:
        """Applies the fully connected layers at every position of maps of any shapes.

        Args:
            maps: results of `maps`, each (n, c, h, w); n, h and w may differ.
            layer: the last one to apply: fc8 for logits; fc6 and fc7 end with their ReLU.

        Returns:
            For each of `maps` (n, h', w', units), h' = h - window + 1, w' = w - window + 1.
        """
        # Memory order is row, column, channel, so a window's pixel is one row.
        pixels = torch.cat([part.permute(0, 2, 3, 1).flatten(0, 2) for part in maps])
        places = self._places(maps)
        windows = torch.cat([place.flatten(0, 2).flatten(1) for place in places])
        layers = self._layers[: LAYERS.index(layer) + 1]
        width = layers[0][0].shape[1]
        size = max(1, WINDOW_BYTES // (width * pixels.element_size()))
        scores = pixels.new_empty(len(windows), layers[-1][0].shape[0])
        for start in range(0, len(windows), size):
            inside = windows[start : start + size]
            units = pixels.index_select(0, inside.flatten()).view(len(inside), width)
            for number, (weight, bias) in enumerate(layers):
                units = F.linear(units, weight, bias)
                if LAYERS[number] != "fc8":
                    units.relu_()
            scores[start : start + size] = units
        counts = [place[..., 0, 0].numel() for place in places]
        return [
            part.view(*place.shape[:3], -1)
            for part, place in zip(torch.split(scores, counts), places, strict=True)
        ]

    def _places(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """For each of `maps` (n, h', w', window, window): the windows' pixels, numbered."""
        places, first = [], 0
        for part in maps:
            n, _, h, w = part.shape
            numbers = torch.arange(first, first + n * h * w, device=self.device).view(n, h, w)
            places.append(numbers.unfold(1, self.window, 1).unfold(2, self.window, 1))
            first += n * h * w
        return places


def _by_pixels(weight: Tensor, window: int) -> Tensor:
    """fc6's columns, ordered channel, row, column -> row, column, channel."""
    by_channels = weight.view(len(weight), -1, window, window)
    return by_channels.permute(0, 2, 3, 1).reshape(len(weight), -1)


def _fold_normalizations(block: nn.Module) -> None:
    """Folds batch normalizations into the convolutions before them: equal up to rounding."""
    layers = dict(block.named_children())
    for name, layer in layers.items():
        if isinstance(layer, nn.BatchNorm2d):
            convolution = layers[name.replace("norm", "conv")]
            assert isinstance(convolution, nn.Conv2d)
            fused = fuse_conv_bn_eval(convolution, layer)
            convolution.weight, convolution.bias = fused.weight, fused.bias
            delattr(block, name)
