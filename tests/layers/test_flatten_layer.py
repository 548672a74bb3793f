import pytest
import torch

from vggdist.layers.flatten_layer import FlattenLayer


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_units_are_ordered_channel_row_column_whatever_the_memory_format(
    memory_format: torch.memory_format,
) -> None:
    x = torch.randn(2, 3, 4, 5).to(memory_format=memory_format)
    expected = [
        [x[n, c, h, w].item() for c in range(3) for h in range(4) for w in range(5)]
        for n in range(2)
    ]
    assert FlattenLayer()(x).tolist() == expected
