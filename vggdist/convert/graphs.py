"""A network as a graph of operations that other programs run: ONNX, and .pt2 of torch.export."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vggdist.artifacts.weights import METADATA_KEY, Description
from vggdist.model.vgg import VGG

Network = Callable[[Tensor], Tensor]
"""Images -> logits."""


class DenseLogits(nn.Module):
    """Whole images (n, 3, h, w), h and w at least crop_size -> logits, the score map's mean."""

    def __init__(self, network: VGG) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network.score_map(images).mean(dim=(2, 3))


def write_onnx(
    original: nn.Module, description: Description, preprocessing: Mapping[str, Any], path: Path
) -> Network:
    """Writes a graph; returns what it computes once it is loaded again."""
    import onnxruntime

    axes = ("batch", None, "height", "width")
    with _any_size():
        program = torch.onnx.export(
            original,
            (_example(original, description),),
            dynamo=True,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({i: axes[i] for i in _free_axes(original)},),
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props.update(description.to_metadata(preprocessing))
    program.save(path, external_data=False)
    del program
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        (logits,) = session.run(None, {"images": images.numpy()})
        return torch.from_numpy(logits)

    return run


def write_torch_export(
    original: nn.Module, description: Description, preprocessing: Mapping[str, Any], path: Path
) -> Network:
    """Writes a program; returns what it computes once it is loaded again."""
    with _any_size():
        program = torch.export.export(
            original,
            (_example(original, description),),
            dynamic_shapes=(dict.fromkeys(_free_axes(original), torch.export.Dim.DYNAMIC),),
        )
    torch.export.save(program, path, extra_files=description.to_metadata(preprocessing))
    del program
    loaded: Network = torch.export.load(path, extra_files={METADATA_KEY: ""}).module()
    return loaded


@contextmanager
def _any_size() -> Iterator[None]:
    """Lets an exported graph take sizes that its example has not.

    Without this setting torch notes that a score map of the example had more than one place, and
    the graph refuses images of the crop size, whose score map has one.
    """
    from torch.fx.experimental import _config

    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        unspecialized = _config.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]
        with unspecialized, torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about deprecated parts of torch itself
            yield
    finally:
        logger.setLevel(level)


def _free_axes(original: nn.Module) -> tuple[int, ...]:
    return (0, 2, 3) if isinstance(original, DenseLogits) else (0,)


def _example(original: nn.Module, description: Description) -> Tensor:
    """Two images; for the dense form larger than the crop size, by different numbers of places."""
    size = description.crop_size
    if isinstance(original, DenseLogits):
        return torch.zeros(2, 3, size + 32, size + 64)
    return torch.zeros(2, 3, size, size)
