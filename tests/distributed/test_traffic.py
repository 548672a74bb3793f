"""The oracle is the literature: Poseidon's break-even batches, a ring's bytes, measured traffic."""

import pytest

from vggdist.distributed import traffic

FULLY_CONNECTED = {"fc6": (25088, 4096), "fc7": (4096, 4096), "fc8": (4096, 1000)}


def test_a_ring_of_eight_sends_seven_quarters_of_vgg16s_553_megabytes() -> None:
    """Published: 0.969 GB per GPU in fp32, half in 16 bits."""
    assert traffic.all_reduce_bytes(138_357_544, 8, 4) == pytest.approx(0.969e9, rel=1e-3)
    assert traffic.all_reduce_bytes(138_357_544, 8, 2) == pytest.approx(0.484e9, rel=1e-3)
    assert traffic.all_reduce_bytes(138_357_544, 1, 4) == 0


def test_two_ranks_of_16_images_send_31_megabytes_where_an_all_reduce_sends_277() -> None:
    """Measured on a link: 277.3 and 30.9 MB, with the frames' headers."""
    matrices = traffic.all_reduce_bytes(138_357_544, 2, 2)
    convolutions = traffic.all_reduce_bytes(14_714_688, 2, 2)
    factors = sum(traffic.factor_bytes(*shape, 16, 2, 2) for shape in FULLY_CONNECTED.values())
    assert matrices == pytest.approx(277.3e6, rel=5e-3)
    assert convolutions + factors == pytest.approx(30.9e6, rel=5e-3)


@pytest.mark.parametrize(("layer", "batch"), [("fc6", 7042), ("fc7", 4096), ("fc8", 1608)])
def test_factors_break_even_at_the_published_global_batches(layer: str, batch: int) -> None:
    shape = FULLY_CONNECTED[layer]
    assert 2 * shape[0] * shape[1] / sum(shape) == pytest.approx(batch, abs=1)  # at equal precision
    for world_size in (2, 8, 64):
        for batch_of_step, fewer in ((0.99 * batch, "factors"), (1.01 * batch, "all_reduce")):
            images = batch_of_step / world_size
            matrix = traffic.all_reduce_bytes(shape[0] * shape[1], world_size, 2)
            factors = traffic.factor_bytes(*shape, images, world_size, 2)  # type: ignore[arg-type]
            assert ("factors" if factors < matrix else "all_reduce") == fewer


def test_at_equal_global_batches_nodes_change_both_ways_by_the_same_factor() -> None:
    for nodes, ranks in ((2, 2), (16, 8), (128, 4)):
        flat = traffic.factor_bytes(25088, 4096, 4, nodes * ranks, 2) / traffic.all_reduce_bytes(
            25088 * 4096, nodes * ranks, 2
        )
        between = traffic.factor_bytes_between_nodes(25088, 4096, 4, nodes, ranks, 2)
        matrix = traffic.all_reduce_bytes_between_nodes(25088 * 4096, nodes, ranks, 2)
        assert between / matrix == pytest.approx(flat)


def test_between_two_nodes_of_two_a_tensor_goes_once_each_way() -> None:
    assert traffic.all_reduce_bytes_between_nodes(1000, 2, 2, 4) == 4000
    assert traffic.factor_bytes_between_nodes(30, 10, 5, 2, 2, 4) == 2 * 5 * 40 * 4


def test_2048_images_are_fewer_bytes_as_factors_of_fc6_and_fc7_alone() -> None:
    """512 images on each of 4 ranks: 2,048 are above fc8's break-even, below the others'."""
    layers = [
        traffic.layer_traffic(
            name,
            *shape,
            images_per_rank=512,
            world_size=4,
            precision="bf16",
            factor_precision="bf16",
        )
        for name, shape in FULLY_CONNECTED.items()
    ]
    fewer = {layer.name: layer.factors < layer.all_reduce for layer in layers}
    assert fewer == {"fc6": True, "fc7": True, "fc8": False}


def test_matrices_in_fp32_beside_factors_in_16_bits_double_the_break_even() -> None:
    shape = FULLY_CONNECTED["fc8"]
    for precision, fewer in (("bf16", False), ("fp32", True)):
        layer = traffic.layer_traffic(
            "fc8",
            *shape,
            images_per_rank=1200,
            world_size=2,
            precision=precision,  # type: ignore[arg-type]
            factor_precision="bf16",
        )
        assert (layer.factors < layer.all_reduce) == fewer
