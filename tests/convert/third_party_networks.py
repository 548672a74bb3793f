"""Networks of others, small: torchvision's own class, and Caffe's and Keras's as loops in NumPy."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.models.vgg import VGG as TheirVGG  # noqa: N811
from torchvision.models.vgg import cfgs, make_layers

from vggdist.artifacts.weights import Description, load_weights
from vggdist.model.loading import build_network

Arrays = dict[str, NDArray[np.float32]]

CLASSES, WIDTH = 5, 12
BGR_MEAN = np.array([103.939, 116.779, 123.68])
TINY = "[[3-4],[3-6,1-5]]"
"""The configuration of the Caffe and Keras networks here: 32 pixels, 8 x 8 before fc6."""


def torchvision_network(configuration: str, batch_norm: bool = False, side: int = 1) -> TheirVGG:
    """torchvision's class with a column of its own table; fc6 to fc8 are narrow."""
    with torch.device("meta"):  # its own fully connected layers would take half a gigabyte
        network = TheirVGG(nn.Sequential(), init_weights=False)
    torch.manual_seed(1)
    network.features = make_layers(cfgs[configuration], batch_norm)
    network.avgpool = nn.AdaptiveAvgPool2d(side)
    network.classifier = nn.Sequential(
        nn.Linear(512 * side * side, WIDTH),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(WIDTH, WIDTH),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(WIDTH, CLASSES),
    )
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return network.eval()


class TinyVGG(nn.Module):
    """`TINY` with torchvision's names."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(4, 6, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(6, 5, 1), nn.ReLU(), nn.MaxPool2d(2)),
        )
        self.classifier = nn.Sequential(
            *(nn.Linear(5 * 8 * 8, WIDTH), nn.ReLU(), nn.Dropout()),
            *(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Dropout()),
            nn.Linear(WIDTH, CLASSES),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images).flatten(1))


def random_pixels(side: int = 32, count: int = 2) -> NDArray[np.uint8]:
    """(count, side, side, 3), RGB."""
    return np.random.default_rng(7).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def fed(pixels: NDArray[np.uint8], description: Description) -> Tensor:
    """What a network is fed, as its description says."""
    scaled = (pixels - np.array(description.mean)) / np.array(description.std)
    return torch.from_numpy(scaled.transpose(0, 3, 1, 2)).float()


def our_logits(file: Path, pixels: NDArray[np.uint8]) -> Tensor:
    """Logits of a weights file, by nothing but what stands in it."""
    weights = load_weights(file)
    with torch.inference_mode():
        return build_network(weights)(fed(pixels, weights.description))


def caffe_arrays() -> Arrays:
    """By the names of Caffe's layers, in its orders."""
    random = np.random.default_rng(3)
    shapes = {
        "conv1_1": (4, 3, 3, 3),
        "conv2_1": (6, 4, 3, 3),
        "conv2_2": (5, 6, 1, 1),
        "fc6": (WIDTH, 5 * 8 * 8),
        "fc7": (WIDTH, WIDTH),
        "fc8": (CLASSES, WIDTH),
    }
    arrays = {}
    for layer, shape in shapes.items():
        scale = (2 / np.prod(shape[1:])) ** 0.5
        arrays[f"{layer}_W"] = (random.normal(size=shape) * scale).astype(np.float32)
        arrays[f"{layer}_b"] = random.normal(size=shape[0]).astype(np.float32)
    return arrays


def caffe_logits(pixels: NDArray[np.uint8], arrays: Arrays) -> NDArray[np.float64]:
    """Caffe's deploy.prototxt: blue first, less the mean; blobs are channel, row, column."""
    logits = []
    for image in pixels:
        blob = (image[..., ::-1] - BGR_MEAN).transpose(2, 0, 1)
        blob = _caffe_pool(_caffe_convolution(blob, arrays, "conv1_1"))
        blob = _caffe_convolution(blob, arrays, "conv2_1")
        blob = _caffe_pool(_caffe_convolution(blob, arrays, "conv2_2"))
        units = blob.ravel()
        for layer in ("fc6", "fc7", "fc8"):
            units = arrays[f"{layer}_W"] @ units + arrays[f"{layer}_b"]
            units = units if layer == "fc8" else np.maximum(units, 0)
        logits.append(units)
    return np.stack(logits)


def _caffe_convolution(blob: NDArray, arrays: Arrays, layer: str) -> NDArray:
    kernels, biases = arrays[f"{layer}_W"], arrays[f"{layer}_b"]
    size = kernels.shape[2]
    padded = np.pad(blob, ((0, 0), (size // 2,) * 2, (size // 2,) * 2))
    out = np.empty((len(kernels), *blob.shape[1:]))
    for y in range(blob.shape[1]):
        for x in range(blob.shape[2]):
            window = padded[:, y : y + size, x : x + size]
            for channel, kernel in enumerate(kernels):
                out[channel, y, x] = max(0.0, (window * kernel).sum() + biases[channel])
    return out


def _caffe_pool(blob: NDArray) -> NDArray:
    channels, height, width = blob.shape
    return blob.reshape(channels, height // 2, 2, width // 2, 2).max(axis=(2, 4))


def keras_arrays() -> Arrays:
    """By the names of keras.applications' layers: HWIO kernels, (in, out) matrices."""
    random = np.random.default_rng(4)
    shapes = {
        "block1_conv1": (3, 3, 3, 4),
        "block2_conv1": (3, 3, 4, 6),
        "block2_conv2": (1, 1, 6, 5),
        "fc1": (8 * 8 * 5, WIDTH),
        "fc2": (WIDTH, WIDTH),
        "predictions": (WIDTH, CLASSES),
    }
    arrays = {}
    for layer, shape in shapes.items():
        scale = (2 / np.prod(shape[:-1])) ** 0.5
        arrays[f"{layer}/kernel:0"] = (random.normal(size=shape) * scale).astype(np.float32)
        arrays[f"{layer}/bias:0"] = random.normal(size=shape[-1]).astype(np.float32)
    return arrays


def keras_logits(pixels: NDArray[np.uint8], arrays: Arrays) -> NDArray[np.float64]:
    """keras.applications with preprocess_input of mode caffe; maps are row, column, channel."""
    logits = []
    for image in pixels:
        maps = image[..., ::-1] - BGR_MEAN
        maps = _keras_pool(_keras_convolution(maps, arrays, "block1_conv1"))
        maps = _keras_convolution(maps, arrays, "block2_conv1")
        maps = _keras_pool(_keras_convolution(maps, arrays, "block2_conv2"))
        units = maps.ravel()  # Keras's Flatten
        for layer in ("fc1", "fc2", "predictions"):
            units = units @ arrays[f"{layer}/kernel:0"] + arrays[f"{layer}/bias:0"]
            units = units if layer == "predictions" else np.maximum(units, 0)
        logits.append(units)
    return np.stack(logits)


def _keras_convolution(maps: NDArray, arrays: Arrays, layer: str) -> NDArray:
    kernel, bias = arrays[f"{layer}/kernel:0"], arrays[f"{layer}/bias:0"]
    size = len(kernel)
    padded = np.pad(maps, ((size // 2,) * 2, (size // 2,) * 2, (0, 0)))
    out = np.zeros((*maps.shape[:2], kernel.shape[3]))
    for y in range(maps.shape[0]):
        for x in range(maps.shape[1]):
            for row in range(size):
                for column in range(size):
                    out[y, x] += padded[y + row, x + column] @ kernel[row, column]
    return np.maximum(out + bias, 0)


def _keras_pool(maps: NDArray) -> NDArray:
    height, width, channels = maps.shape
    return maps.reshape(height // 2, 2, width // 2, 2, channels).max(axis=(1, 3))
