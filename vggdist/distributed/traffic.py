"""Network cost of gradients: bytes that a rank sends in a step, by arithmetic alone.

The gradient of a fully connected layer is dY^T X: a product of the layer's inputs X (images,
in_features) and the gradients dY (images, out_features) of its outputs. Each rank can send either
its matrix or these two factors, from which all ranks compute the same matrix (sufficient factor
broadcasting; Xie et al., UAI 2016; Zhang et al., Poseidon, USENIX ATC 2017).

If a node has several ranks, less is sent between nodes, both ways by the same factor (the ranks per
node): NCCL's rings enter each node once, and over gloo `collectives.py` sums inside a node first.
Which way is sooner is decided in `exchange_time.py`.
"""

from dataclasses import dataclass

from vggdist.config import Precision

ELEMENT_BYTES: dict[Precision, int] = {"fp32": 4, "tf32": 4, "bf16": 2, "fp16": 2}

BUCKET_ELEMENTS = 1 << 20
"""Gradients below this many elements are sent together, larger ones alone."""

PIECE_ELEMENTS = 1 << 22
"""Elements of a sum over gloo that are between nodes at a time: a bound of memory.

Each piece waits for its own steps of the rings, so small pieces are slow ones.
"""


def all_reduce_bytes(num_elements: int, world_size: int, element_bytes: int) -> float:
    """Sent by each rank to sum a tensor over all ranks in a ring, 2 (n - 1) / n times its size."""
    return 2 * (world_size - 1) / world_size * num_elements * element_bytes


def all_reduce_bytes_between_nodes(
    num_elements: int, num_nodes: int, ranks_per_node: int, element_bytes: int
) -> float:
    """Sent by each node to the others, if the sum is computed within each node first.

    For all its ranks together; each sends its part of the tensor to the other nodes.
    """
    return ranks_per_node * all_reduce_bytes(
        num_elements // ranks_per_node, num_nodes, element_bytes
    )


def factor_bytes(
    in_features: int, out_features: int, images_per_rank: int, world_size: int, element_bytes: int
) -> float:
    """Sent by each rank to give all others its X and dY: (n - 1) images (in + out) elements.

    Args:
        images_per_rank: of a whole step, all micro batches.
    """
    elements = images_per_rank * (in_features + out_features)
    return float((world_size - 1) * elements * element_bytes)


def factor_bytes_between_nodes(
    in_features: int,
    out_features: int,
    images_per_rank: int,
    num_nodes: int,
    ranks_per_node: int,
    element_bytes: int,
) -> float:
    """Sent by each node to the others: the factors of its ranks, once to each other node."""
    return ranks_per_node * factor_bytes(
        in_features, out_features, images_per_rank, num_nodes, element_bytes
    )


@dataclass(frozen=True)
class LayerTraffic:
    """A fully connected layer's two ways, in bytes sent by each rank in a step."""

    name: str
    all_reduce: float
    factors: float


def layer_traffic(
    name: str,
    in_features: int,
    out_features: int,
    *,
    images_per_rank: int,
    world_size: int,
    precision: Precision,
    factor_precision: Precision,
) -> LayerTraffic:
    """The two ways of a fully connected layer, weights and biases.

    Args:
        name: such as fc6.
        in_features: input units.
        out_features: output units.
        images_per_rank: of a whole step, all micro batches.
        world_size: ranks.
        precision: of a matrix when sent.
        factor_precision: of X and dY when sent.
    """
    return LayerTraffic(
        name,
        all_reduce=all_reduce_bytes(
            (in_features + 1) * out_features, world_size, ELEMENT_BYTES[precision]
        ),
        # The gradient of the biases is a sum over dY, so it costs nothing.
        factors=factor_bytes(
            in_features, out_features, images_per_rank, world_size, ELEMENT_BYTES[factor_precision]
        ),
    )
