"""The network: blocks of convolutions, each pooled, then three fully connected layers.

It knows nothing of ranks, files or DeepSpeed. Its weights come from `initialization.py` or from a
checkpoint.
"""

import re
from collections import OrderedDict
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vggdist.config import ModelConfig
from vggdist.layers.conv_block import ConvBlock
from vggdist.layers.fc_layer import FCLayer
from vggdist.layers.flatten_layer import FlattenLayer
from vggdist.layers.maxpool_layer import MaxPoolLayer
from vggdist.model.configurations import Configuration
from vggdist.model.summary import require_halves


class VGG(nn.Module):
    """A column of Table 1, or custom blocks: images (n, 3, crop, crop) -> logits (n, classes).

    `features` holds `block1`, `pool1`, `block2`, `pool2` and so on. The loss and the evaluation
    apply the soft-max.

    Attributes:
        compiled: if set, computes `features` in training mode (`training/compilation.py`).
    """

    def __init__(
        self,
        blocks: Configuration,
        *,
        batch_norm: bool = False,
        num_classes: int = 1000,
        crop_size: int = 224,
        fc_width: int = 4096,
        dropout: float = 0.5,
    ) -> None:
        """Builds the network with torch's default weights, which takes seconds; see `build_vgg`.

        Args:
            blocks: the convolution blocks.
            batch_norm: batch normalization after every convolution (not in the paper).
            num_classes: width of fc8.
            crop_size: side of the images in pixels, a multiple of 2^(number of blocks).
            fc_width: width of fc6 and fc7.
            dropout: dropout ratio after fc6 and fc7.

        Raises:
            ValueError: `crop_size` cannot be halved once per block.
        """
        super().__init__()
        require_halves(crop_size, len(blocks))
        self.crop_size = crop_size
        channels, side = 3, crop_size
        features: OrderedDict[str, nn.Module] = OrderedDict()
        for number, layers in enumerate(blocks, start=1):
            block = ConvBlock(channels, layers, batch_norm)
            features[f"block{number}"] = block
            features[f"pool{number}"] = MaxPoolLayer()
            channels, side = block.out_channels, side // 2
        self.features = nn.Sequential(features)
        self.compiled: Callable[[Tensor], Tensor] | None = None
        self.flatten = FlattenLayer()
        self.fc6 = FCLayer(channels * side * side, fc_width, number=6, dropout=dropout)
        self.fc7 = FCLayer(fc_width, fc_width, number=7, dropout=dropout)
        self.fc8 = FCLayer(fc_width, num_classes, number=8, last=True)

    def forward(self, images: Tensor, dropout_keys: Tensor | None = None) -> Tensor:
        """Computes the logits.

        Args:
            images: (n, 3, crop_size, crop_size), RGB, minus the mean; preferably channels_last.
            dropout_keys: int64 (n,), one per image as in `KeyedDropout`; used in training only.

        Returns:
            Logits (n, num_classes).

        Raises:
            ValueError: images of another size.
        """
        size = self.crop_size
        if images.shape[1:] != (3, size, size):
            raise ValueError(
                f"the images have shape {tuple(images.shape)}, but this network takes "
                f"(n, 3, {size}, {size}); crop them to {size} pixels, or build it with their size."
            )
        features = self.compiled if self.training and self.compiled else self.features
        maps = self.flatten(features(images))
        units = self.fc7(self.fc6(maps, dropout_keys), dropout_keys)
        logits: Tensor = self.fc8(units)
        return logits

    def maps(self, images: Tensor) -> Tensor:
        """The last pooled maps (pool5 in Table 1) of whole images.

        Args:
            images: (n, 3, h, w), h and w at least crop_size.

        Returns:
            (n, c, h // 2^blocks, w // 2^blocks): a pooling drops an odd last row or column.

        Raises:
            ValueError: images smaller than the network's input.
        """
        require_whole_images(images, self.crop_size)
        maps: Tensor = self.features(images)
        return maps

    @property
    def window(self) -> int:
        """Side of fc6's input in the last pooled maps: 7 for 224 pixels and five blocks."""
        return self.crop_size >> len(self.features) // 2

    def score_map(self, images: Tensor) -> Tensor:
        """Logits at every position of whole images (section 3.2): fc6 as a convolution as large as
        its window, fc7 and fc8 as 1x1 convolutions, all without padding; no dropout.

        `model/dense.py` computes the same, but faster.

        Args:
            images: as for `maps`.

        Returns:
            (n, num_classes, h', w'), h' = h // 2^blocks - window + 1, and w' likewise.

        Raises:
            ValueError: images smaller than the network's input.
        """
        maps = self.maps(images)
        for layer, side in ((self.fc6, self.window), (self.fc7, 1), (self.fc8, 1)):
            linear = layer.linear
            kernel = linear.weight.view(linear.out_features, maps.shape[1], side, side)
            maps = F.conv2d(maps, kernel, linear.bias)
            if layer is not self.fc8:
                maps = maps.relu()
        return maps


def require_whole_images(images: Tensor, crop_size: int) -> None:
    """Refuses images smaller than a network's input.

    Raises:
        ValueError: not (n, 3, h, w) with h and w at least `crop_size`.
    """
    if images.dim() != 4 or images.shape[1] != 3 or min(images.shape[2:]) < crop_size:
        raise ValueError(
            f"the images have shape {tuple(images.shape)}, but this network takes (n, 3, h, w) "
            f"with h and w at least {crop_size}; rescale them to a shorter side of {crop_size} or "
            "more."
        )


def build_vgg(config: ModelConfig, crop_size: int, device: str = "cpu") -> VGG:
    """Builds the configured network with NaN for weights: `initialize` it or load a checkpoint.

    Drawing torch's default weights would take seconds, only to be overwritten. Uninitialized memory
    is often zero, and such a network would silently never learn; NaN shows in the first loss.

    Args:
        config: the network.
        crop_size: side of the images in pixels.
        device: where the weights are; `meta` gives shapes without memory.

    Raises:
        ValueError: `crop_size` cannot be halved once per block.
    """
    with torch.device("meta"):
        model = VGG(
            config.blocks(),
            batch_norm=config.batch_norm,
            num_classes=config.fc8_width,
            crop_size=crop_size,
            fc_width=config.fc_width,
            dropout=config.dropout,
        )
    # Not `to_empty`, which imports torch's compiler: a second at every start.
    unset = {
        name: torch.full(
            tensor.shape,
            float("nan") if tensor.is_floating_point() else 0,
            dtype=tensor.dtype,
            device=device,
        )
        for name, tensor in model.state_dict().items()
    }
    model.load_state_dict(unset, assign=True)
    return model


def layer_name(path: str) -> str:
    """The paper's name of a layer, from the path of a module, parameter or buffer of `VGG`.

    `features.block3.conv2.weight` -> `conv3_2`, `features.pool3` -> `pool3`,
    `fc6.linear.bias` -> `fc6`.

    Raises:
        ValueError: not a path of `VGG`.
    """
    if match := re.match(r"features\.block(\d+)\.([a-z]+)(\d+)(\.|$)", path):
        return f"{match[2]}{match[1]}_{match[3]}"
    if match := re.match(r"(?:features\.)?(pool\d+|fc[678])(\.|$)", path):
        return match[1]
    raise ValueError(
        f"{path!r} is not part of a VGG network, whose parts have names such as fc6.linear.weight."
    )
