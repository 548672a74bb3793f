"""The GPU's DALI graphs as DALI itself writes them down, which it does without a GPU.

DALI refuses to build them without a driver. What it serializes is what it would build: operators,
where each of them works, and their arguments.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import nvidia.dali as dali
import pytest
import torch
from google.protobuf.empty_pb2 import Empty
from google.protobuf.unknown_fields import UnknownFieldSet

from vggdist.data import decode
from vggdist.data.decode import Graph, gpu_decoding

GPU = torch.device("cuda", 0)
GIB = 2**30
CROPS = Graph(64, GPU, 224, resizes=True)
WHOLE = Graph(64, GPU)


class Operator(NamedTuple):
    kind: str
    inputs: list[tuple[str, str]]
    """Name and device; tensors that are arguments included."""
    outputs: list[tuple[str, str]]
    arguments: dict[str, Any]


def fields(message: bytes) -> list[tuple[int, Any]]:
    """Number and value of each field of any protocol buffer."""
    return [(one.field_number, one.data) for one in UnknownFieldSet(Empty.FromString(message))]


def operators(serialized: bytes) -> list[Operator]:
    """Field numbers are those of dali.proto: a pipeline's operators are field 5."""
    found = []
    for number, message in fields(serialized):
        if number == 5:
            parts = fields(message)
            inputs, outputs = ([ends(part) for n, part in parts if n == k] for k in (2, 3))
            arguments = dict(argument(part) for n, part in parts if n == 4)
            found.append(Operator(dict(parts)[1].decode(), inputs, outputs, arguments))
    return found


def ends(message: bytes) -> tuple[str, str]:
    """Name and device of an operator's input or output."""
    values = dict(fields(message))
    return values[1].decode(), values[2].decode()


def argument(message: bytes) -> tuple[str, Any]:
    """Name and value; of several values a list."""
    parts = fields(message)
    several = [argument(value)[1] for number, value in parts if number == 7]
    # Fields 3 to 6 are of one type each: float (as its bits), integer, text, truth.
    single = [
        value.decode() if number == 5 else value for number, value in parts if 3 <= number < 7
    ]
    return dict(parts)[1].decode(), several or (single[0] if single else None)


def as_float(bits: int) -> float:
    return float(np.uint32(bits).view(np.float32))


@pytest.fixture
def graph(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The operators of the pipeline that the product would build."""
    define = dali.pipeline_def

    def without_gpu(function: Any) -> Any:
        def make(*arguments: Any, **options: Any) -> Any:
            assert options.pop("device_id") == GPU.index
            return define(function)(*arguments, device_id=None, **options)

        return make

    monkeypatch.setattr(decode.dali, "pipeline_def", without_gpu)
    monkeypatch.setattr(dali.Pipeline, "build", lambda _: None)

    def operators_of(graph: Graph) -> list[Operator]:
        return operators(graph.build(iter([]), 2).serialize())

    return operators_of


def the_decoder(found: list[Operator]) -> Operator:
    (decoder,) = [one for one in found if one.kind.startswith("decoders__")]
    return decoder


@pytest.mark.parametrize("of", [CROPS, WHOLE])
def test_a_gpu_decodes_the_window_that_the_host_has_computed_and_keeps_it(
    graph: Any, of: Graph
) -> None:
    decoder = the_decoder(graph(of))
    assert decoder.kind == "decoders__ImageSlice"
    assert decoder.arguments["device"] == "mixed"
    assert [device for _, device in decoder.inputs] == ["cpu"] * 3  # bytes, start, shape
    assert [device for _, device in decoder.outputs] == ["gpu"]
    assert decoder.arguments["axes"] == [0, 1]
    assert not decoder.arguments["adjust_orientation"]
    assert decoder.arguments["jpeg_fancy_upsampling"]


def test_crops_are_resized_and_flipped_on_the_gpu(graph: Any) -> None:
    found = {one.kind: one for one in graph(CROPS) if one.kind != "ExternalSource"}
    assert list(found) == ["decoders__ImageSlice", "Resize", "Flip"]
    for kind in ("Resize", "Flip"):
        assert found[kind].arguments["device"] == "gpu"
        assert [device for _, device in found[kind].outputs] == ["gpu"]
    assert found["Resize"].inputs == found["decoders__ImageSlice"].outputs
    assert found["Resize"].arguments["antialias"]
    assert [as_float(side) for side in found["Resize"].arguments["size"]] == [224.0, 224.0]
    images, flip = found["Flip"].inputs
    assert images == found["Resize"].outputs[0]
    assert flip[1] == "cpu"


def test_whole_images_are_only_decoded_by_the_graph(graph: Any) -> None:
    kinds = [one.kind for one in graph(WHOLE)]
    assert kinds == ["ExternalSource"] * 3 + ["decoders__ImageSlice"]


@pytest.mark.parametrize("part", [0.0, 0.65, 1.0])
def test_the_hardware_decoder_gets_its_share(graph: Any, part: float) -> None:
    for of in (CROPS, WHOLE):
        decoder = the_decoder(graph(replace(of, hardware_decoder_share=part)))
        assert as_float(decoder.arguments["hw_decoder_load"]) == pytest.approx(part)


@pytest.mark.parametrize("part", [0.0, 0.65, 1.0])
@pytest.mark.parametrize("batch_size", [1, 8, 64, 256, 1024])
def test_what_is_taken_for_large_images_at_the_start_is_bounded_whatever_the_batch(
    graph: Any, batch_size: int, part: float
) -> None:
    """As nvImageCodec asks nvJPEG for it: the share of the batch, in whole rounds of the decoders
    (8 on an H100), 3 bytes a pixel."""
    of = replace(CROPS, batch_size=batch_size, hardware_decoder_share=part)
    decoder = the_decoder(graph(of))
    width, height = (decoder.arguments[f"preallocate_{side}_hint"] for side in ("width", "height"))
    num_images = -(-round(part * batch_size) // 8) * 8
    assert num_images * 3 * width * height <= GIB
    assert min(width, height) > 500  # as ImageNet's usual image
    if batch_size == 1:
        assert (width, height) == (5980, 6430)


def test_on_a_cpu_the_decoder_is_told_nothing_of_that() -> None:
    pipe = Graph(2, torch.device("cpu"), 224).build(iter([]), 1)
    arguments = the_decoder(operators(pipe.serialize())).arguments
    assert arguments["device"] == "cpu"
    assert not arguments.keys() & gpu_decoding(0.65, 2).keys()
