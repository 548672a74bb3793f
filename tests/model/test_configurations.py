import pytest

from vggdist.config import ModelConfig
from vggdist.model.configurations import (
    TABLE_1,
    Convolution,
    Normalization,
    column_name,
    parse_configuration,
    parse_layer,
)


def test_table_1_has_the_papers_weight_layers() -> None:
    """The heads of Table 1's columns, fc6 to fc8 included."""
    num_weight_layers = {
        name: 3 + sum(layer != "LRN" for block in blocks for layer in block)
        for name, blocks in TABLE_1.items()
    }
    assert num_weight_layers == {"A": 11, "A-LRN": 11, "B": 13, "C": 16, "D": 16, "E": 19}


def test_columns_have_the_names_that_most_people_call_them() -> None:
    for name, column in {
        **{"VGG11": "A", "vgg13": "B", "VGG-16": "D", "vgg_19": "E"},
        **{"a-lrn": "A-LRN", "d": "D", "C": "C"},
    }.items():
        assert column_name(name) == column
        assert parse_configuration(name) == parse_configuration(column)
        assert ModelConfig(configuration=name).configuration == column
    with pytest.raises(ValueError, match=r"use D, and model\.batch_norm=true"):
        column_name("vgg16_bn")


def test_a_layer_is_read_as_kernel_size_and_channels() -> None:
    assert parse_layer("3-64") == Convolution(kernel_size=3, channels=64)
    assert parse_layer("LRN") == Normalization()


@pytest.mark.parametrize("text", ["64", "3x64", "2-64", "3-0", "lrn", "", "3-64 "])
def test_another_layer_is_refused_with_the_notation(text: str) -> None:
    with pytest.raises(ValueError, match=r"is neither KERNEL-CHANNELS with an odd kernel.*nor LRN"):
        parse_layer(text)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("F", "configuration 'F' is not in Table 1; use one of A, A-LRN, B, C, D, E"),
        ([], "a configuration has 1 to 5 blocks, this one has 0"),
        ([["3-8"]] * 6, "a configuration has 1 to 5 blocks, this one has 6"),
        ([["3-8"], []], "block 2 does not begin with a convolution"),
        ([["LRN", "3-8"]], "block 1 does not begin with a convolution"),
        ([["3-8", "LRN", "LRN"]], "block 1 has an LRN right after another; write it once"),
    ],
)
def test_an_impossible_configuration_is_refused(value: str | list[list[str]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_configuration(value)
