"""The protocols as slow loops over single images: Pillow rescales and crops, torch computes."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from vggdist.artifacts.weights import load_weights
from vggdist.model.loading import build_network


def rescaled(path: Path, scale: int) -> Image.Image:
    """Shorter side `scale`, the longer one rounded half up."""
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    shorter = min(image.size)
    size = tuple((2 * side * scale + shorter) // (2 * shorter) for side in image.size)
    return image.resize(size, Image.Resampling.BILINEAR)  # type: ignore[arg-type]


class Reference:
    """One image at a time, with plain torch operations on the weights of the file."""

    def __init__(self, weights: Path) -> None:
        stored = load_weights(weights)
        self.network = build_network(stored)
        self.size, self.mean = stored.description.crop_size, stored.description.mean
        self.std = stored.description.std

    def tensor(self, image: Image.Image) -> torch.Tensor:
        """(1, 3, height, width), as the network is fed it."""
        pixels = (np.asarray(image, dtype=np.float64) - self.mean) / self.std
        return torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)[None]

    def crop(self, *images: Image.Image) -> NDArray[np.float32]:
        """The mean posteriors of crops."""
        with torch.no_grad():
            logits = self.network(torch.cat([self.tensor(image) for image in images]))
        return logits.softmax(1).mean(0).numpy()

    def center_crop(self, path: Path, scale: int) -> NDArray[np.float32]:
        """The source window that the crop of the rescaled image shows, to the nearest pixel."""
        with Image.open(path) as opened:
            image = opened.convert("RGB")
        side = int(self.size * min(image.size) / scale + 0.5)
        left, top = ((length - side) // 2 for length in image.size)
        window = image.crop((left, top, left + side, top + side))
        return self.crop(window.resize((self.size, self.size), Image.Resampling.BILINEAR))

    def dense(self, image: Image.Image, average: str) -> NDArray[np.float32]:
        network = self.network
        side = self.size // 2 ** (len(network.features) // 2)
        with torch.no_grad():
            maps = network.features(self.tensor(image))
            places = [
                network.fc8(
                    network.fc7(network.fc6(maps[..., i : i + side, j : j + side].flatten(1)))
                )
                for i in range(maps.shape[2] - side + 1)
                for j in range(maps.shape[3] - side + 1)
            ]
            scores = torch.cat(places)
            one = scores.mean(0).softmax(0) if average == "logits" else scores.softmax(1).mean(0)
            return one.numpy()

    def multi_crop(self, image: Image.Image, mirrored: bool) -> NDArray[np.float32]:
        width, height = image.size
        crops = []
        for row in range(5):
            for column in range(5):
                top = int((height - self.size) * row / 4 + 0.5)
                left = int((width - self.size) * column / 4 + 0.5)
                crop = image.crop((left, top, left + self.size, top + self.size))
                crops += [crop, ImageOps.mirror(crop)] if mirrored else [crop]
        return self.crop(*crops)
