"""Memory that a training takes on each rank, in bytes, before it is started."""

from __future__ import annotations

from collections.abc import Mapping

from vggdist.config import Config
from vggdist.distributed.traffic import BUCKET_ELEMENTS, ELEMENT_BYTES
from vggdist.planning.messages import Work

FP32_BYTES, INDEX_BYTES = 4, 8


def estimate_memory(
    config: Config, work: Work, world_size: int, ways: Mapping[str, str]
) -> dict[str, int]:
    """Bytes by what they are for, and their sum, `total`.

    The library's own buffers are not counted: a context of CUDA takes about 0.5 GB, cuDNN's
    workspaces and DALI's buffers more.

    Args:
        work: of a rank.
        ways: how each fully connected gradient is sent.
    """
    layers = work.layers
    parameters = sum(layer.num_parameters for layer in layers)
    never_whole = sum(layer.num_parameters for layer in work.never_whole(ways))
    trained = sum(layer.num_parameters for layer in layers if layer.is_trained)
    element = ELEMENT_BYTES[work.precision]
    pixels = 3 * config.data.crop_size**2
    kept = sum(element * layer.kept_elements + INDEX_BYTES * layer.kept_indices for layer in layers)
    # The gradients of a layer's outputs and inputs are there at once, both of the largest's size.
    passing = 2 * element * max(layer.kept_elements for layer in layers)
    memory = {
        "weights": FP32_BYTES * parameters,
        "gradients": FP32_BYTES * (trained - never_whole),
        "momentum": FP32_BYTES * trained,
        # Autocast keeps its copies of the weights until the end of the forward and backward pass.
        "weights_for_arithmetic": 0 if element == 4 else element * parameters,
        "activations": work.micro * (kept + passing),
        "images": work.micro * pixels * (FP32_BYTES + element + config.data.prefetch + 1),
        "exchange": 0 if world_size == 1 else _exchange(work, world_size, ways),
    }
    return {**memory, "total": sum(memory.values())}


def _exchange(work: Work, world_size: int, ways: Mapping[str, str]) -> int:
    """Factors of all ranks; 16-bit copies of what is all-reduced, else of what is sent together."""
    total, element = 0, ELEMENT_BYTES[work.exchange_precision]
    for layer in work.layers:
        if ways.get(layer.name) == "factors" and layer.matrix is not None:
            images = work.images_per_rank * (world_size + 1)
            total += images * sum(layer.matrix) * ELEMENT_BYTES[work.precision]
        elif layer.is_trained and (element < FP32_BYTES or layer.num_parameters < BUCKET_ELEMENTS):
            total += element * layer.num_parameters
    return total
